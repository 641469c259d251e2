/* Sums of numbers and of their squares; arithmetic.h and dsp.h come first. */
#ifndef FXP_MOMENTS_H
#define FXP_MOMENTS_H

#include <stdint.h>

/* The sum of squares of `count` int8, and their sum. */
FXP_NOINLINE int64_t fxp_moments8(const int8_t *x, int32_t count, int32_t *sum)
{
    int32_t total = 0, squares = 0;
    for (; count >= 8; count -= 8, x += 8) {
        const uint32_t a = fxp_load4(x);
        const uint32_t b = fxp_load4(x + 4);
        const uint32_t a_even = fxp_even(a);
        const uint32_t a_odd = fxp_odd(a);
        const uint32_t b_even = fxp_even(b);
        const uint32_t b_odd = fxp_odd(b);
        squares = fxp_dot2(a_even, a_even, squares);
        total = fxp_dot2(a_even, 0x00010001u, total);
        squares = fxp_dot2(a_odd, a_odd, squares);
        total = fxp_dot2(a_odd, 0x00010001u, total);
        squares = fxp_dot2(b_even, b_even, squares);
        total = fxp_dot2(b_even, 0x00010001u, total);
        squares = fxp_dot2(b_odd, b_odd, squares);
        total = fxp_dot2(b_odd, 0x00010001u, total);
    }
    for (; count > 0; count--, x++) {
        squares += *x * *x;
        total += *x;
    }
    *sum = total;
    return squares;
}

/* The same of int16. */
FXP_NOINLINE int64_t fxp_moments16(const int16_t *x, int32_t count, int32_t *sum)
{
    int32_t total = 0;
    int64_t squares = 0;
    for (; count >= 4; count -= 4, x += 4) {
        const uint32_t a = fxp_load2(x);
        const uint32_t b = fxp_load2(x + 2);
        squares = fxp_long_dot2(a, a, squares);
        total = fxp_dot2(a, 0x00010001u, total);
        squares = fxp_long_dot2(b, b, squares);
        total = fxp_dot2(b, 0x00010001u, total);
    }
    for (; count > 0; count--, x++) {
        squares += *x * *x;
        total += *x;
    }
    *sum = total;
    return squares;
}

#endif
