/* Loops over floats that compilers turn into vector instructions, whatever their width, with equal results. */
#ifndef FXP_VECTOR_H
#define FXP_VECTOR_H

#include <stdint.h>
#include <string.h>

#ifndef FXP_INLINE
#define FXP_INLINE static inline __attribute__((always_inline, unused))
#endif

/* Product of two rows, in 16 partial sums that are added pairwise. */
FXP_INLINE float fxp_dot(const float *a, const float *b, int32_t count)
{
    typedef float lanes __attribute__((vector_size(64)));
    lanes x, y, sums = {0.0f};
    float rest = 0.0f, parts[16];
    int32_t i = 0;
    for (; i + 16 <= count; i += 16) {
        memcpy(&x, a + i, sizeof x);
        memcpy(&y, b + i, sizeof y);
        sums += x * y;
    }
    for (; i < count; i++) {
        rest += a[i] * b[i];
    }
    memcpy(parts, &sums, sizeof parts);
    for (int32_t width = 8; width > 0; width /= 2) {
        for (int32_t lane = 0; lane < width; lane++) {
            parts[lane] += parts[lane + width];
        }
    }
    return parts[0] + rest;
}

/* y += weight * x. */
FXP_INLINE void fxp_add_scaled(float *restrict y, const float *restrict x, float weight, int32_t count)
{
    for (int32_t i = 0; i < count; i++) {
        y[i] += weight * x[i];
    }
}

/* e^x within one unit of the last place, without branches: 2^n times a polynomial (Cephes, Moshier 1989). */
FXP_INLINE float fxp_exp(float x)
{
    union {
        float real;
        uint32_t bits;
    } shifted, low, high;
    const float above = x < -104.0f ? -104.0f : x;
    const float v = above > 89.0f ? 89.0f : above;
    shifted.real = v * 1.44269504f + 12582912.0f; /* 1.5 * 2^23: the low bits are the nearest integer */
    const float n = shifted.real - 12582912.0f;
    const float r = (v - n * 0.693359375f) + n * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    /* 2^n as two factors, so that both are normal numbers; n + 256 is not negative */
    const uint32_t raised = shifted.bits - 0x4b400000u + 256u;
    const uint32_t half = raised / 2u;
    low.bits = (half - 1u) << 23;
    high.bits = (raised - half - 1u) << 23;
    return p * low.real * high.real;
}

#endif
