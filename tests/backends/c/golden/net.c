/* net: a network compiled to C99 by fxpress. See net.h for how to call it. */
#include "net.h"

#include <stddef.h>
#include <stdint.h>

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

extern const int8_t net_weights_0[18];
extern const int32_t net_bias_0[2];
extern const int32_t net_multipliers_0[1];
extern const int8_t net_padding_0[1];
extern const int8_t net_table_1[256];
extern const int8_t net_weights_3[6];
extern const int32_t net_bias_3[3];
extern const int32_t net_multipliers_3[1];

/* Convolution 3x3, 4x4x1 to 4x4x2, int8. */
FXP_NOINLINE void net_conv_0(const int8_t *x, int8_t *y, const int8_t *weights, const int32_t *bias, const int32_t *multipliers, const int8_t *padding)
{
    int32_t at = 0;
    for (int32_t n = 0; n < 1; n++) {
        for (int32_t oy = 0; oy < 4; oy++) {
            for (int32_t ox = 0; ox < 4; ox++) {
                const int8_t *w = weights;
                for (int32_t c = 0; c < 2; c++, at++) {
                    const int32_t first = c / 2 * 1;
                    int32_t acc = bias[c];
                    for (int32_t ky = 0; ky < 3; ky++) {
                        const int32_t iy = oy * 1 + ky * 1 - 1;
                        for (int32_t kx = 0; kx < 3; kx++) {
                            const int32_t ix = ox * 1 + kx * 1 - 1;
                            const int8_t *tap = padding;
                            if (iy >= 0 && iy < 4 && ix >= 0 && ix < 4) {
                                tap = x + ((n * 4 + iy) * 4 + ix) * 1 + first;
                            }
                            for (int32_t i = 0; i < 1; i++) {
                                acc += tap[i] * w[i];
                            }
                            w += 1;
                        }
                    }
                    y[at] = fxp_saturate8(fxp_scale(acc, multipliers[0], -128));
                }
            }
        }
    }
}

/* Table of tanh over 32 elements. */
FXP_NOINLINE void net_tanh_1(const int8_t *x, int8_t *y, const int8_t *table)
{
    for (int32_t i = 0; i < 32; i++) {
        y[i] = table[x[i] + 128];
    }
}

/* mean of 32 elements to 2. */
FXP_NOINLINE void net_mean_2(const int8_t *x, int8_t *y)
{
    for (int32_t i0 = 0; i0 < 2; i0++) {
        int32_t acc = 0;
        for (int32_t j0 = 0; j0 < 16; j0++) {
            acc += x[i0 + j0 * 2] - (-1);
        }
        y[i0] = fxp_saturate8(fxp_scale(acc, 268435456, -1));
    }
}

static inline int8_t net_linear_3_requantize(int32_t acc, int32_t c, int32_t at, const int32_t *multipliers)
{
    (void)c;
    (void)at;
    return fxp_saturate8(fxp_scale(acc, multipliers[0], 3));
}

/* One row of 2 elements times all 3 channels, two channels at a time. */
FXP_NOINLINE void net_linear_3_rows(const int8_t *p, int8_t *y, int32_t at, const int8_t *weights, const int32_t *bias, const int32_t *multipliers)
{
    const int8_t *w = weights;
    for (int32_t c = 0; c < 2; c += 2) {
        int32_t even = bias[c];
        int32_t odd = bias[c + 1];
        for (int32_t i = 0; i < 2; i += 2) {
            even += p[i] * w[i];
            odd += p[i] * w[2 + i];
            even += p[i + 1] * w[i + 1];
            odd += p[i + 1] * w[2 + i + 1];
        }
        w += 4;
        const int8_t even_p = net_linear_3_requantize(even, c, at + c, multipliers);
        const int8_t odd_p = net_linear_3_requantize(odd, c + 1, at + c + 1, multipliers);
        y[at + c] = even_p;
        y[at + c + 1] = odd_p;
    }
    int32_t even = bias[2];
    for (int32_t i = 0; i < 2; i++) {
        even += p[i] * w[i];
    }
    const int8_t last_p = net_linear_3_requantize(even, 2, at + 2, multipliers);
    y[at + 2] = last_p;
}

/* Linear layer, 1 x 2 to 3, int8. */
FXP_NOINLINE void net_linear_3(const int8_t *x, int8_t *y, const int8_t *weights, const int32_t *bias, const int32_t *multipliers)
{
    for (int32_t row = 0; row < 1; row += 1) {
        net_linear_3_rows(x + row * 2, y, row * 3, weights, bias, multipliers);
    }
}

int net_run(const int8_t *image, int8_t *logits, void *arena)
{
    unsigned char *const memory = (unsigned char *)arena;

    if (image == NULL || logits == NULL || arena == NULL) {
        return 1;
    }
    if (((uintptr_t)arena & 3u) != 0u) {
        return 2;
    }

    /* 0: conv from features.0 at net.py:12 */
    int8_t *const t0 = (int8_t *)(memory + 0);
    net_conv_0(image, t0, net_weights_0, net_bias_0, net_multipliers_0, net_padding_0);
    FXP_TRACE(0, t0, 32);
    /* 1: tanh from features.1 at net.py:13 */
    int8_t *const t1 = (int8_t *)(memory + 0);
    net_tanh_1(t0, t1, net_table_1);
    FXP_TRACE(1, t1, 32);
    /* 2: mean from net.py:14 */
    int8_t *const t2 = (int8_t *)(memory + 32);
    net_mean_2(t1, t2);
    FXP_TRACE(2, t2, 2);
    /* 3: linear from head at net.py:15 */
    net_linear_3(t2, logits, net_weights_3, net_bias_3, net_multipliers_3);
    FXP_TRACE(3, logits, 3);
    return 0;
}
