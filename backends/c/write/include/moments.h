/* Sums of numbers and of their squares; arithmetic.h and dsp.h come first. */
#ifndef FXP_MOMENTS_H
#define FXP_MOMENTS_H

#include <stdint.h>

/* Four words of constants. */
struct fxp_words4 {
    int32_t a, b, c, d;
};

/* Loads four words from an address that is a multiple of four, and advances it past them. */
FXP_INLINE struct fxp_words4 fxp_load_words4(const int32_t **p)
{
    const int32_t *from = *p;
#if FXP_DSP
    register int32_t a __asm__("r8");
    register int32_t b __asm__("r9");
    register int32_t c __asm__("r10");
    register int32_t d __asm__("r11");
    __asm__("ldm %0!, {r8, r9, r10, r11}"
            : "+r"(from), "=r"(a), "=r"(b), "=r"(c), "=r"(d)
            : "m"(*(const struct fxp_words4 *)(const void *)from));
    const struct fxp_words4 words = {a, b, c, d};
#else
    const struct fxp_words4 words = {from[0], from[1], from[2], from[3]};
    from += 4;
#endif
    *p = from;
    return words;
}

/* Adds four int8 and their squares. */
FXP_INLINE void fxp_add_moments8(const int8_t *x, int32_t *total, int32_t *squares)
{
    const uint32_t even = fxp_even(fxp_load4(x));
    const uint32_t odd = fxp_odd(fxp_load4(x));
    *squares = fxp_dot2(even, even, *squares);
    *total = fxp_dot2(even, 0x00010001u, *total);
    *squares = fxp_dot2(odd, odd, *squares);
    *total = fxp_dot2(odd, 0x00010001u, *total);
}

/* Adds two int16 and their squares. */
FXP_INLINE void fxp_add_moments16(const int16_t *x, int32_t *total, int64_t *squares)
{
    const uint32_t pair = fxp_load2(x);
    *squares = fxp_long_dot2(pair, pair, *squares);
    *total = fxp_dot2(pair, 0x00010001u, *total);
}

/* The sum of squares of `count` int8, and their sum. */
FXP_NOINLINE int64_t fxp_moments8(const int8_t *x, int32_t count, int32_t *sum)
{
    int32_t total = 0, squares = 0;
    for (; count >= 16; count -= 16, x += 16) {
        fxp_add_moments8(x, &total, &squares);
        fxp_add_moments8(x + 4, &total, &squares);
        fxp_add_moments8(x + 8, &total, &squares);
        fxp_add_moments8(x + 12, &total, &squares);
    }
    for (; count >= 4; count -= 4, x += 4) {
        fxp_add_moments8(x, &total, &squares);
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
    for (; count >= 8; count -= 8, x += 8) {
        fxp_add_moments16(x, &total, &squares);
        fxp_add_moments16(x + 2, &total, &squares);
        fxp_add_moments16(x + 4, &total, &squares);
        fxp_add_moments16(x + 6, &total, &squares);
    }
    for (; count >= 2; count -= 2, x += 2) {
        fxp_add_moments16(x, &total, &squares);
    }
    if (count > 0) {
        squares += *x * *x;
        total += *x;
    }
    *sum = total;
    return squares;
}

#endif
