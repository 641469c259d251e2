/* Words of two 16-bit lanes on the DSP extension of Cortex-M4, M7 and M33.
 *
 * Every function is one instruction where the extension exists, and plain C with the same result elsewhere.
 * An activation or weight word holds four int8 in memory order b0 b1 b2 b3; SXTB16 splits it into
 * the even word (b0, b2) and the odd word (b1, b3), low lane first.
 */
#ifndef FXP_DSP_H
#define FXP_DSP_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* The asm blocks own all registers, so they need an optimizing compiler that needs no frame pointer. */
#if defined(__ARM_FEATURE_DSP) && defined(__thumb2__) && defined(__OPTIMIZE__)
#define FXP_DSP 1
#else
#define FXP_DSP 0
#endif

#define FXP_INLINE static inline __attribute__((always_inline, unused))

/* Four bytes from any address, the first one lowest. */
FXP_INLINE uint32_t fxp_load4(const int8_t *p)
{
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    return (uint32_t)(uint8_t)p[0] | (uint32_t)(uint8_t)p[1] << 8 | (uint32_t)(uint8_t)p[2] << 16
           | (uint32_t)(uint8_t)p[3] << 24;
#else
    uint32_t word;
    memcpy(&word, p, 4);
    return word;
#endif
}

FXP_INLINE int32_t fxp_low(uint32_t pair)
{
    return (int16_t)(uint16_t)pair;
}

FXP_INLINE int32_t fxp_high(uint32_t pair)
{
    return (int16_t)(uint16_t)(pair >> 16);
}

/* (low, high) as one word of two lanes. */
FXP_INLINE uint32_t fxp_pair(int32_t low, int32_t high)
{
    return ((uint32_t)low & 0xffffu) | (uint32_t)high << 16;
}

/* The even bytes of a word, sign extended to two lanes. */
FXP_INLINE uint32_t fxp_even(uint32_t word)
{
#if FXP_DSP
    uint32_t pair;
    __asm__("sxtb16 %0, %1" : "=r"(pair) : "r"(word));
    return pair;
#else
    return fxp_pair((int8_t)(uint8_t)word, (int8_t)(uint8_t)(word >> 16));
#endif
}

/* The odd bytes of a word, sign extended to two lanes. */
FXP_INLINE uint32_t fxp_odd(uint32_t word)
{
#if FXP_DSP
    uint32_t pair;
    __asm__("sxtb16 %0, %1, ror #8" : "=r"(pair) : "r"(word));
    return pair;
#else
    return fxp_pair((int8_t)(uint8_t)(word >> 8), (int8_t)(uint8_t)(word >> 24));
#endif
}

/* acc + a.low * b.low + a.high * b.high, modulo 2^32. */
FXP_INLINE int32_t fxp_dot2(uint32_t a, uint32_t b, int32_t acc)
{
#if FXP_DSP
    int32_t sum;
    __asm__("smlad %0, %1, %2, %3" : "=r"(sum) : "r"(a), "r"(b), "r"(acc));
    return sum;
#else
    return (int32_t)((uint32_t)acc + (uint32_t)(fxp_low(a) * fxp_low(b)) + (uint32_t)(fxp_high(a) * fxp_high(b)));
#endif
}

/* The high word of acc * multiplier, rounded once, plus an addend: the arithmetic contract's requantization. */
FXP_INLINE int32_t fxp_scale(int32_t acc, int32_t multiplier, int32_t addend)
{
#if FXP_DSP
    int32_t scaled;
    __asm__("smmlar %0, %1, %2, %3" : "=r"(scaled) : "r"(acc), "r"(multiplier), "r"(addend));
    return scaled;
#else
    return (int32_t)(((int64_t)acc * multiplier + INT64_C(0x80000000)) >> 32) + addend;
#endif
}

FXP_INLINE int32_t fxp_clamp(int32_t value, int32_t low, int32_t high)
{
    return value < low ? low : value > high ? high : value;
}

/* Saturation to int8. */
FXP_INLINE int8_t fxp_saturate8(int32_t value)
{
#if FXP_DSP
    int32_t saturated;
    __asm__("ssat %0, #8, %1" : "=r"(saturated) : "r"(value));
    return (int8_t)saturated;
#else
    return (int8_t)fxp_clamp(value, -128, 127);
#endif
}

/* Sums of two output channels, a and b, over three pixels. */
struct fxp_sums {
    int32_t a0, a1, a2, b0, b1, b2;
};

/* One step of the product: four taps of three pixels, times two channels. */
FXP_INLINE void fxp_step(const uint32_t *x, const int32_t *w, struct fxp_sums *sums)
{
    const uint32_t a_even = fxp_even((uint32_t)w[0]);
    const uint32_t a_odd = fxp_odd((uint32_t)w[0]);
    const uint32_t b_even = fxp_even((uint32_t)w[1]);
    const uint32_t b_odd = fxp_odd((uint32_t)w[1]);
    sums->a0 = fxp_dot2(a_odd, x[3], fxp_dot2(a_even, x[0], sums->a0));
    sums->a1 = fxp_dot2(a_odd, x[4], fxp_dot2(a_even, x[1], sums->a1));
    sums->a2 = fxp_dot2(a_odd, x[5], fxp_dot2(a_even, x[2], sums->a2));
    sums->b0 = fxp_dot2(b_odd, x[3], fxp_dot2(b_even, x[0], sums->b0));
    sums->b1 = fxp_dot2(b_odd, x[4], fxp_dot2(b_even, x[1], sums->b1));
    sums->b2 = fxp_dot2(b_odd, x[5], fxp_dot2(b_even, x[2], sums->b2));
}

/* The same in assembly: 24 products in 19 instructions.
 *
 * r0: activations, even words of three pixels, then odd ones; r1: one weight word of each channel;
 * r2, r3, r4 and r5, r6, r7: the sums.
 */
#define FXP_STEP_3X2                \
    "ldm r0!, {r8, r9, r10}\n\t"    \
    "ldm r1!, {r11, r12}\n\t"       \
    "sxtb16 lr, r11\n\t"            \
    "smlad r2, lr, r8, r2\n\t"      \
    "smlad r3, lr, r9, r3\n\t"      \
    "smlad r4, lr, r10, r4\n\t"     \
    "sxtb16 lr, r12\n\t"            \
    "smlad r5, lr, r8, r5\n\t"      \
    "smlad r6, lr, r9, r6\n\t"      \
    "smlad r7, lr, r10, r7\n\t"     \
    "ldm r0!, {r8, r9, r10}\n\t"    \
    "sxtb16 r11, r11, ror #8\n\t"   \
    "smlad r2, r11, r8, r2\n\t"     \
    "smlad r3, r11, r9, r3\n\t"     \
    "smlad r4, r11, r10, r4\n\t"    \
    "sxtb16 r12, r12, ror #8\n\t"   \
    "smlad r5, r12, r8, r5\n\t"     \
    "smlad r6, r12, r9, r6\n\t"     \
    "smlad r7, r12, r10, r7\n\t"

#endif
