/* net: self-test. Runs the network on stored inputs and compares with stored outputs.
 *
 * net_self_test is for firmware; with NET_TEST_MAIN defined this file is a program that calls it.
 */
#include "net.h"

static const int8_t input_0_0[16] = {
    -128, -112, -96, -80, -64, -48, -32, -16, 0, 16, 32, 48, 64, 80, 96, 112,
};

static const int8_t expected_0_0[3] = {
    -1, 2, 5,
};

static union {
    unsigned char bytes[NET_ARENA_BYTES + 1];
    int64_t aligned;
} test_arena;

static int8_t result_0[3];

static int check_result_0(const int8_t *result, const int8_t *expected)
{
    for (int i = 0; i < 3; i++) {
        if (result[i] != expected[i]) {
            return 1;
        }
    }
    return 0;
}

int net_self_test(void)
{
    int failures = 0;

    failures += net_run(input_0_0, result_0, test_arena.bytes) != 0;
    failures += check_result_0(result_0, expected_0_0);
    return failures;
}

#ifdef NET_TEST_MAIN
#include <stdio.h>

int main(void)
{
    const int failures = net_self_test();

    printf("net: %d of %d outputs differ\n", failures, 1);
    return failures != 0;
}
#endif
