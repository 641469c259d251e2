/* ring: a network compiled to C99 by fxpress. See ring.h for how to call it. */
#include "ring.h"

#include <stddef.h>
#include <stdint.h>

#if __STDC_HOSTED__
#include <string.h>
#else /* for compilers without string.h */
void *memcpy(void *restrict to, const void *restrict from, size_t count);
void *memset(void *to, int byte, size_t count);
#endif

/* The arithmetic contract: requantization of int32 accumulators and saturation.
 *
 *     requant(acc, multiplier, shift) = (int64(acc << shift) * multiplier + 2^31) >> 32
 *
 * One rounding, ties toward plus infinity: one instruction with the DSP extension, plain C with the same result
 * elsewhere. Right shifts of negative numbers are assumed to be arithmetic, as they are in GCC and Clang.
 */

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

/* Hook that is called with the result of each step. */
#ifndef FXP_TRACE
#define FXP_TRACE(step, data, bytes) ((void)0)
#endif

extern const int8_t ring_weights_2[12];
extern const int32_t ring_bias_2[4];
extern const int32_t ring_multipliers_2[1];

/* Copy of 8 elements to another place or order. */
FXP_NOINLINE void ring_concat_0(const int8_t *x, int8_t *y)
{
    {
        memcpy(y + 0, x + 0, 8 * sizeof(int8_t));
    }
}

/* Copy of 4 elements to another place or order. */
FXP_NOINLINE void ring_concat_0_(const int8_t *x, int8_t *y)
{
    {
        memcpy(y + 8, x + 0, 4 * sizeof(int8_t));
    }
}

/* Depthwise convolution 1x3, 1x3x4 to 1x1x4, int8. */
FXP_NOINLINE void ring_conv_2(const int8_t *x, int8_t *y, const int8_t *weights, const int32_t *bias, const int32_t *multipliers)
{
    int32_t at = 0;
    for (int32_t n = 0; n < 1; n++) {
        for (int32_t oy = 0; oy < 1; oy++) {
            for (int32_t ox = 0; ox < 1; ox++) {
                const int8_t *taps[3];
                const int8_t **tap = taps;
                for (int32_t ky = 0; ky < 1; ky++) {
                    const int32_t iy = oy * 1 + ky * 1 - 0;
                    for (int32_t kx = 0; kx < 3; kx++) {
                        const int32_t ix = ox * 1 + kx * 1 - 0;
                        *tap++ = x + ((n * 1 + iy) * 3 + ix) * 4;
                    }
                }
                const int8_t *w = weights;
                for (int32_t c = 0; c < 4; c++, at++) {
                    int32_t acc = bias[c];
                    acc += taps[0][c] * w[0];
                    acc += taps[1][c] * w[1];
                    acc += taps[2][c] * w[2];
                    w += 3;
                    y[at] = fxp_saturate8(fxp_scale(acc, multipliers[0], 5));
                }
            }
        }
    }
}

int ring_reset(void *state)
{
    unsigned char *const states = (unsigned char *)state;

    if (state == NULL) {
        return 1;
    }
    if (((uintptr_t)state & 63u) != 0u) {
        return 2;
    }

    memset(states + 0, -3, 8);
    return 0;
}

int ring_step(const int8_t *x, void *state, int8_t *y, void *arena)
{
    unsigned char *const memory = (unsigned char *)arena;
    unsigned char *const states = (unsigned char *)state;

    if (x == NULL || y == NULL || state == NULL || arena == NULL) {
        return 1;
    }
    if (((uintptr_t)arena & 3u) != 0u || ((uintptr_t)state & 63u) != 0u) {
        return 2;
    }

    /* 0: concat */
    int8_t *const t0 = (int8_t *)(memory + 0);
    ring_concat_0((int8_t *)(states + 0), t0);
    ring_concat_0_(x, t0);
    FXP_TRACE(0, t0, 12);
    /* 1: slice */
    FXP_TRACE(1, (int8_t *)(memory + 4), 8);
    /* output past_out */
    memcpy(states + 0, (int8_t *)(memory + 4), 8);
    /* 2: conv from conv at net.py:3 */
    ring_conv_2(t0, y, ring_weights_2, ring_bias_2, ring_multipliers_2);
    FXP_TRACE(2, y, 4);
    return 0;
}
