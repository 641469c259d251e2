/* ring: self-test. Runs the network on stored inputs and compares with stored outputs.
 *
 * ring_self_test is for firmware; with RING_TEST_MAIN defined this file is a program that calls it.
 */
#include "ring.h"

#include <stddef.h>

#if __STDC_HOSTED__
#include <string.h>
#else /* for compilers without string.h */
void *memcpy(void *restrict to, const void *restrict from, size_t count);
void *memset(void *to, int byte, size_t count);
#endif

static const int8_t input_0_0[4] = {
    -3, 5, 13, 21,
};

static const int8_t expected_0_0[4] = {
    5, 5, 4, 6,
};

static const int8_t input_1_0[4] = {
    -11, -3, 5, 13,
};

static const int8_t expected_1_0[4] = {
    5, 5, 3, 6,
};

static const int8_t input_2_0[4] = {
    -19, -11, -3, 5,
};

static const int8_t expected_2_0[4] = {
    6, 4, 6, 5,
};

static const int8_t expected_2_1[8] = {
    -11, -3, 5, 13, -19, -11, -3, 5,
};

static union {
    unsigned char bytes[RING_ARENA_BYTES + 1];
    int64_t aligned;
} test_arena;

static unsigned char states[RING_STATE_BYTES + RING_STATE_ALIGNMENT];

static int8_t result_0[4];

static int check_result_0(const int8_t *result, const int8_t *expected)
{
    for (int i = 0; i < 4; i++) {
        if (result[i] != expected[i]) {
            return 1;
        }
    }
    return 0;
}

static int check_result_1(const int8_t *result, const int8_t *expected)
{
    for (int i = 0; i < 8; i++) {
        if (result[i] != expected[i]) {
            return 1;
        }
    }
    return 0;
}

int ring_self_test(void)
{
    int failures = 0;
    unsigned char *const state =
        states + (RING_STATE_ALIGNMENT - (size_t)((uintptr_t)states % RING_STATE_ALIGNMENT));

    failures += ring_reset(state) != 0;
    failures += ring_step(input_0_0, state, result_0, test_arena.bytes) != 0;
    failures += check_result_0(result_0, expected_0_0);
    failures += ring_step(input_1_0, state, result_0, test_arena.bytes) != 0;
    failures += check_result_0(result_0, expected_1_0);
    failures += ring_step(input_2_0, state, result_0, test_arena.bytes) != 0;
    failures += check_result_0(result_0, expected_2_0);
    failures += check_result_1(((int8_t *)(void *)(state + 0)), expected_2_1);
    return failures;
}

#ifdef RING_TEST_MAIN
#include <stdio.h>

int main(void)
{
    const int failures = ring_self_test();

    printf("ring: %d of %d outputs differ\n", failures, 4);
    return failures != 0;
}
#endif
