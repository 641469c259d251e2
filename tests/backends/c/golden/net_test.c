/* net: self-test. Runs the network on stored inputs and compares with stored outputs; returns 0 on success. */
#include "net.h"

#include <stdio.h>

static const int8_t input_0_0[16] = {
    -128, -112, -96, -80, -64, -48, -32, -16, 0, 16, 32, 48, 64, 80, 96, 112,
};

static const int8_t expected_0_0[3] = {
    -1, 2, 5,
};

static union {
    unsigned char bytes[NET_ARENA_BYTES + 1];
    int64_t aligned;
} arena;

static int8_t result_0[3];

static int check_result_0(const int8_t *expected)
{
    for (int i = 0; i < 3; i++) {
        if (result_0[i] != expected[i]) {
            return 1;
        }
    }
    return 0;
}

int main(void)
{
    int failures = 0;

    failures += net_run(input_0_0, result_0, arena.bytes) != 0;
    failures += check_result_0(expected_0_0);
    printf("net: %d of %d outputs differ\n", failures, 1);
    return failures != 0;
}
