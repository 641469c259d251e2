/* Rows of scores and of exponentials as words of two keys, three queries interleaved; arithmetic.h and dsp.h come first. */
#ifndef FXP_EXPONENTIALS_H
#define FXP_EXPONENTIALS_H

#include <stdint.h>

/* value >> halvings, 0 beyond 31; only the lowest byte of halvings is used. */
FXP_INLINE uint32_t fxp_halved(uint32_t value, uint32_t halvings)
{
#if FXP_DSP
    uint32_t halved;
    __asm__("lsr %0, %1, %2" : "=r"(halved) : "r"(value), "r"(halvings));
    return halved;
#else
    return halvings > 31 ? 0 : value >> halvings;
#endif
}

/* 2^-(d / 2^16) on the scale of a table of the fractions, 257 numbers, interpolated linearly. */
FXP_INLINE int32_t fxp_power(const int32_t *table, int32_t d)
{
    const int32_t *part = table + (d >> 8 & 255);
    const int32_t between = (part[0] * 256 + (part[1] - part[0]) * (d & 255) + 128) >> 8;
    return between >> (d >> 16 < 31 ? d >> 16 : 31);
}

/* Maximum of each of two lanes. */
FXP_INLINE uint32_t fxp_largest2(uint32_t a, uint32_t b)
{
#if FXP_DSP
    uint32_t largest;
    __asm__("ssub16 %0, %1, %2\n\tsel %0, %1, %2" : "=&r"(largest) : "r"(a), "r"(b) : "cc");
    return largest;
#else
    return fxp_pair(fxp_low(a) > fxp_low(b) ? fxp_low(a) : fxp_low(b), fxp_high(a) > fxp_high(b) ? fxp_high(a) : fxp_high(b));
#endif
}

/* The low lanes of a and b, a low. */
FXP_INLINE uint32_t fxp_lows(uint32_t a, uint32_t b)
{
#if FXP_DSP
    uint32_t lows;
    __asm__("pkhbt %0, %1, %2, lsl #16" : "=r"(lows) : "r"(a), "r"(b));
    return lows;
#else
    return (a & 0xffffu) | b << 16;
#endif
}

/* The high lanes of a and b, a low. */
FXP_INLINE uint32_t fxp_highs(uint32_t a, uint32_t b)
{
#if FXP_DSP
    uint32_t highs;
    __asm__("pkhtb %0, %1, %2, asr #16" : "=r"(highs) : "r"(b), "r"(a));
    return highs;
#else
    return a >> 16 | (b & 0xffff0000u);
#endif
}

/* Both lanes of a + b, each saturated. */
FXP_INLINE uint32_t fxp_saturating_sum2(uint32_t a, uint32_t b)
{
#if FXP_DSP
    uint32_t sum;
    __asm__("qadd16 %0, %1, %2" : "=r"(sum) : "r"(a), "r"(b));
    return sum;
#else
    return fxp_pair(fxp_saturate16(fxp_low(a) + fxp_low(b)), fxp_saturate16(fxp_high(a) + fxp_high(b)));
#endif
}

/* Hides the keys of a query from one to another. */
FXP_NOINLINE void fxp_hide(uint32_t *scores, int32_t from, int32_t to)
{
    for (; from < to; from++) {
        uint32_t *const word = scores + 3 * (from >> 1);
        *word = from & 1 ? (*word & 0xffffu) | 0x80000000u : (*word & 0xffff0000u) | 0x8000u;
    }
}

/* 2^-(below / 256) of two lanes from a table of the fractions; a result is 0 beyond 31 halvings. */
FXP_INLINE uint32_t fxp_powers2(const int16_t *powers, uint32_t below)
{
    const uint32_t low = fxp_halved((uint32_t)powers[below & 0xffu], below >> 8 & 0xffu);
    const uint32_t high = fxp_halved((uint32_t)powers[below >> 16 & 0xffu], below >> 24);
    return fxp_lows(low, high);
}

/* Replaces the scores of a query, in every third of `pairs` words, by exponentials, powers of two; their sum. */
FXP_NOINLINE uint32_t fxp_exponentials(uint32_t *scores, int32_t pairs, const int16_t *powers, uint32_t lowest)
{
    uint32_t *const end = scores + 3 * pairs;
    uint32_t *word = scores;
    uint32_t top = lowest, other = lowest;
    for (; word + 9 < end; word += 12) {
        top = fxp_largest2(word[0], top);
        other = fxp_largest2(word[3], other);
        top = fxp_largest2(word[6], top);
        other = fxp_largest2(word[9], other);
    }
    for (; word < end; word += 3) {
        top = fxp_largest2(word[0], top);
    }
    top = fxp_largest2(top, other);
    top = fxp_low(top) > fxp_high(top) ? fxp_lows(top, top) : fxp_highs(top, top);
    int32_t total = 0;
    for (word = scores; word + 9 < end; word += 12) {
        word[0] = fxp_powers2(powers, fxp_sub2(top, word[0]));
        total = fxp_dot2(word[0], 0x00010001u, total);
        word[3] = fxp_powers2(powers, fxp_sub2(top, word[3]));
        total = fxp_dot2(word[3], 0x00010001u, total);
        word[6] = fxp_powers2(powers, fxp_sub2(top, word[6]));
        total = fxp_dot2(word[6], 0x00010001u, total);
        word[9] = fxp_powers2(powers, fxp_sub2(top, word[9]));
        total = fxp_dot2(word[9], 0x00010001u, total);
    }
    for (; word < end; word += 3) {
        word[0] = fxp_powers2(powers, fxp_sub2(top, word[0]));
        total = fxp_dot2(word[0], 0x00010001u, total);
    }
    return total != 0 ? (uint32_t)total : 1u;
}

#endif
