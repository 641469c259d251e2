/* The arithmetic contract: requantization of int32 accumulators and saturation.
 *
 *     requant(acc, multiplier, shift) = (int64(acc << shift) * multiplier + 2^31) >> 32
 *
 * One rounding, ties toward plus infinity: one instruction with the DSP extension, plain C with the same result
 * elsewhere. Right shifts of negative numbers are assumed to be arithmetic, as they are in GCC and Clang.
 */
#ifndef FXP_ARITHMETIC_H
#define FXP_ARITHMETIC_H

#include <stddef.h>
#include <stdint.h>

/* The DSP paths are Thumb-2 inline assembly. Some use all registers, so they need an optimizing compiler. */
#if defined(__ARM_FEATURE_DSP) && defined(__thumb2__) && defined(__OPTIMIZE__)
#define FXP_DSP 1
#else
#define FXP_DSP 0
#endif

#define FXP_INLINE static inline __attribute__((always_inline, unused))

/* Kernels are not inlined, so that their stack frames do not add up, nor are inner loops, whose accumulators would be
 * spilled in a larger function. */
#define FXP_NOINLINE static __attribute__((noinline, unused))

/* Kernels that several layers call: GCC would clone them for the constants of each call. */
#if defined(__GNUC__) && !defined(__clang__)
#define FXP_NOCLONE static __attribute__((noinline, noclone, unused))
#else
#define FXP_NOCLONE FXP_NOINLINE
#endif

/* requant(acc, multiplier, 0) + addend. */
FXP_INLINE int32_t fxp_scale(int32_t acc, int32_t multiplier, int32_t addend)
{
#if FXP_DSP
    int32_t scaled;
    __asm__("smmlar %0, %1, %2, %3" : "=r"(scaled) : "r"(acc), "r"(multiplier), "r"(addend));
    return scaled;
#elif defined(__ARM_ARCH_6M__) || defined(__ARM_ARCH_8M_BASE__)
    /* Cores without a 32x32 -> 64 bit multiplication: four products of 16-bit halves, the low part rounded. */
    const int32_t low_a = acc & 0xffff, high_a = acc >> 16;
    const int32_t low_b = multiplier & 0xffff, high_b = multiplier >> 16;
    const int32_t cross = high_a * low_b, other = low_a * high_b;
    const uint32_t low = (uint32_t)low_a * (uint32_t)low_b;
    const uint32_t carry = ((uint32_t)cross & 0xffffu) + ((uint32_t)other & 0xffffu) + (low >> 16) + 0x8000u;
    return high_a * high_b + (cross >> 16) + (other >> 16) + (int32_t)(carry >> 16) + addend;
#else
    return (int32_t)(((int64_t)acc * multiplier + INT64_C(0x80000000)) >> 32) + addend;
#endif
}

/* requant(acc, multiplier, 0) + addend for accumulators of up to 48 bits, saturated: the upper and lower parts are
 * multiplied separately. */
FXP_INLINE int32_t fxp_scale_sum(int64_t acc, int32_t multiplier, int32_t addend)
{
    const int64_t low = ((acc & 0xffff) * multiplier + INT64_C(0x80000000)) >> 16;
    const int64_t scaled = (((acc >> 16) * multiplier + low) >> 16) + addend;
    return scaled < INT32_MIN ? INT32_MIN : scaled > INT32_MAX ? INT32_MAX : (int32_t)scaled;
}

/* acc << shift for accumulators of either sign; fxpress has proven that the result fits int32. */
FXP_INLINE int32_t fxp_shift_left(int32_t acc, int32_t shift)
{
    return (int32_t)((uint32_t)acc << shift);
}

/* Zero bits above the highest one; 31 for 0. */
FXP_INLINE int32_t fxp_leading_zeros(uint32_t value)
{
#if FXP_DSP
    int32_t zeros;
    __asm__("clz %0, %1" : "=r"(zeros) : "r"(value | 1u));
    return zeros;
#else
    int32_t zeros = 0;
    for (uint32_t top = value | 1u; top < UINT32_C(1) << 31; top <<= 1) {
        zeros++;
    }
    return zeros;
#endif
}

/* Sign-extended bit field of `bits` bits; bit `low` is its lowest. */
FXP_INLINE int32_t fxp_bit_field(int32_t word, int32_t low, int32_t bits)
{
    return (int32_t)((uint32_t)word << (32 - bits - low)) >> (32 - bits);
}

/* Whole number nearest to the square root of v, below 65535^2. */
FXP_INLINE int32_t fxp_rounded_root(uint32_t v)
{
#if defined(__GNUC__) && !defined(__ARM_ARCH_6M__)
    /* Newton's steps for v scaled by a power of 4 to 2^30 or more, from 3/8 v + 0.6: never below the root. */
    const int32_t zeros = __builtin_clz(v | 1u) & ~1;
    const uint32_t scaled = (v | (v == 0)) << zeros;
    uint32_t root = (scaled >> 17) + (scaled >> 18) + 19661u;
    root = (root + scaled / root) >> 1;
    root = (root + scaled / root) >> (1 + zeros / 2);
    root -= root * root > v;
#else
    uint32_t root = 0, rest = v;
    for (uint32_t bit = UINT32_C(1) << 30; bit != 0; bit >>= 2) {
        const uint32_t tried = root + bit;
        root >>= 1;
        if (rest >= tried) {
            rest -= tried;
            root += bit;
        }
    }
#endif
    return (int32_t)(root + (v - root * root > root));
}

/* 1 / sqrt(d) = value * 2^shift / 2^61. */
struct fxp_reciprocal {
    int32_t value, shift;
};

/* High word of a product. */
FXP_INLINE uint32_t fxp_high_word(uint32_t a, uint32_t b)
{
    return (uint32_t)((uint64_t)a * b >> 32);
}

/* For d from 1 to 2^62 - 1, up to one part in 2^28: a parabola and three steps of Newton's method on the 32 highest bits
 * of d. */
FXP_NOINLINE struct fxp_reciprocal fxp_reciprocal_root(uint64_t d)
{
    const uint32_t high = (uint32_t)(d >> 32), low = (uint32_t)d;
    const int32_t zeros = (high != 0 ? fxp_leading_zeros(high) : 32 + fxp_leading_zeros(low)) & ~1;
    /* part: d as a fraction from 1/4 to 1; inverse: 1 / sqrt of it from 1 to 2, of 30 bits */
    const uint32_t part = high == 0 ? low << (zeros - 32) : high << zeros | low >> (32 - zeros);
    uint32_t inverse = 2867787663u - fxp_high_word(part, 3527624810u - fxp_high_word(part, 1759398853u));
    for (int32_t i = 0; i < 3; i++) {
        const uint32_t one = fxp_high_word(part, fxp_high_word(inverse, inverse));
        inverse = fxp_high_word(inverse, ((3u << 28) - one) << 2) << 1;
    }
    const struct fxp_reciprocal found = {(int32_t)(inverse < 0x7fffffffu ? inverse : 0x7fffffffu), (zeros - 2) / 2};
    return found;
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

/* Saturation to int16. */
FXP_INLINE int16_t fxp_saturate16(int32_t value)
{
#if FXP_DSP
    int32_t saturated;
    __asm__("ssat %0, #16, %1" : "=r"(saturated) : "r"(value));
    return (int16_t)saturated;
#else
    return (int16_t)fxp_clamp(value, -32768, 32767);
#endif
}

/* Saturation to [0, 32767]: ReLU on int16. */
FXP_INLINE int16_t fxp_saturate_relu16(int32_t value)
{
#if FXP_DSP
    int32_t saturated;
    __asm__("usat %0, #15, %1" : "=r"(saturated) : "r"(value));
    return (int16_t)saturated;
#else
    return (int16_t)fxp_clamp(value, 0, 32767);
#endif
}

#endif
