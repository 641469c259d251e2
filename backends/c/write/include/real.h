/* Bounds of float activations, where a NaN stays a NaN, and rounding of reals to integers. */
#ifndef FXP_REAL_H
#define FXP_REAL_H

#include <stddef.h>
#include <stdint.h>

#ifndef FXP_INLINE
#define FXP_INLINE static inline __attribute__((always_inline, unused))
#endif

#ifndef FXP_APART
#define FXP_APART static __attribute__((noinline, unused))
#endif

/* As in arithmetic.h: kernels that several layers call. */
#ifndef FXP_SHARED
#if defined(__GNUC__) && !defined(__clang__)
#define FXP_SHARED static __attribute__((noinline, noclone, unused))
#else
#define FXP_SHARED FXP_APART
#endif
#endif

FXP_INLINE float fxp_maximum(float x, float bound)
{
    return x < bound ? bound : x;
}

FXP_INLINE float fxp_minimum(float x, float bound)
{
    return x > bound ? bound : x;
}

/* The larger and the smaller of two; a NaN wins over everything. */
FXP_INLINE float fxp_larger(float a, float b)
{
    return a > b || a != a ? a : b;
}

FXP_INLINE float fxp_smaller(float a, float b)
{
    return a < b || a != a ? a : b;
}

/* The rest of a division, which has the sign of the dividend, with the sign of the divisor. */
FXP_INLINE float fxp_towards(float rest, float divisor)
{
    return rest != 0.0f && (divisor < 0.0f) != (rest < 0.0f) ? rest + divisor : rest;
}

/* The quotient rounded down, but for an error of rounding. */
FXP_INLINE float fxp_quotient(float a, float b, float rest)
{
    const float quotient = (a - rest) / b;
    if (b == 0.0f) {
        return a / b;
    }
    return rest != 0.0f && (b < 0.0f) != (rest < 0.0f) ? quotient - 1.0f : quotient;
}

/* The same on whole numbers; zero where the divisor is. */
FXP_INLINE int64_t fxp_whole_remainder(int64_t a, int64_t b)
{
    const int64_t rest = b == 0 || b == -1 ? 0 : a % b;
    return rest != 0 && (b < 0) != (rest < 0) ? rest + b : rest;
}

FXP_INLINE int64_t fxp_whole_floor_divide(int64_t a, int64_t b)
{
    return b == 0 ? 0 : b == -1 ? -a : (a - fxp_whole_remainder(a, b)) / b;
}

/* The nearest float that a bfloat16 or a half holds, halves to even. */
FXP_INLINE float fxp_round_bf16(float x)
{
    union {
        float real;
        uint32_t bits;
    } v;
    v.real = x;
    if (x == x) {
        v.bits += 0x7fffu + ((v.bits >> 16) & 1u);
        v.bits &= 0xffff0000u;
    }
    return v.real;
}

FXP_INLINE float fxp_round_f16(float x)
{
    union {
        float real;
        uint32_t bits;
    } v;
    v.real = x;
    const uint32_t magnitude = v.bits & 0x7fffffffu;
    if (magnitude >= 0x7f800000u) {
        return x;
    }
    if (magnitude < 0x38800000u) { /* below the smallest normal half: steps of 2^-24 */
        const float raised = x < 0.0f ? x - 0.5f : x + 0.5f;
        return x < 0.0f ? raised + 0.5f : raised - 0.5f;
    }
    v.bits += 0x0fffu + ((v.bits >> 13) & 1u);
    v.bits &= 0xffffe000u;
    if ((v.bits & 0x7fffffffu) > 0x477fe000u) { /* beyond the largest half */
        v.bits = (v.bits & 0x80000000u) | 0x7f800000u;
    }
    return v.real;
}

/* Rounds halves away from zero, up to a limit of either sign; NaN gives zero. */
FXP_INLINE int32_t fxp_round(float ratio, int32_t limit)
{
    if (ratio >= (float)limit) {
        return limit;
    }
    if (ratio <= (float)-limit) {
        return -limit;
    }
    if (ratio >= 0.0f) {
        return (int32_t)(ratio + 0.5f);
    }
    return ratio < 0.0f ? (int32_t)(ratio - 0.5f) : 0;
}

/* Rounds, adds the zero point, saturates to int8. */
FXP_INLINE int8_t fxp_quantize8(float ratio, int32_t zero_point)
{
    const int32_t rounded = fxp_round(ratio, 256 + (zero_point < 0 ? -zero_point : zero_point)) + zero_point;
    return (int8_t)(rounded < -128 ? -128 : rounded > 127 ? 127 : rounded);
}

/* Rounds, adds the zero point, saturates to int16. */
FXP_INLINE int16_t fxp_quantize16(float ratio, int32_t zero_point)
{
    const int32_t rounded = fxp_round(ratio, 65536) + zero_point;
    return (int16_t)(rounded < -32768 ? -32768 : rounded > 32767 ? 32767 : rounded);
}

#endif
