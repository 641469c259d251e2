/* Bounds of float activations, which keep NaN, and rounding of reals to integers. */
#ifndef FXP_REAL_H
#define FXP_REAL_H

#include <stddef.h>
#include <stdint.h>

#ifndef FXP_INLINE
#define FXP_INLINE static inline __attribute__((always_inline, unused))
#endif

#ifndef FXP_NOINLINE
#define FXP_NOINLINE static __attribute__((noinline, unused))
#endif

/* See arithmetic.h. */
#ifndef FXP_NOCLONE
#if defined(__GNUC__) && !defined(__clang__)
#define FXP_NOCLONE static __attribute__((noinline, noclone, unused))
#else
#define FXP_NOCLONE FXP_NOINLINE
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

/* Maximum and minimum; NaN if an operand is NaN. */
FXP_INLINE float fxp_larger(float a, float b)
{
    return a > b || a != a ? a : b;
}

FXP_INLINE float fxp_smaller(float a, float b)
{
    return a < b || a != a ? a : b;
}

/* Remainder of a division: from the sign of the dividend to that of the divisor. */
FXP_INLINE float fxp_floor_remainder(float rest, float divisor)
{
    return rest != 0.0f && (divisor < 0.0f) != (rest < 0.0f) ? rest + divisor : rest;
}

/* Floor of a quotient, up to rounding errors. */
FXP_INLINE float fxp_floor_quotient(float a, float b, float rest)
{
    const float quotient = (a - rest) / b;
    if (b == 0.0f) {
        return a / b;
    }
    return rest != 0.0f && (b < 0.0f) != (rest < 0.0f) ? quotient - 1.0f : quotient;
}

/* Remainder and quotient of floor division of integers; 0 for a divisor of 0. */
FXP_INLINE int64_t fxp_integer_remainder(int64_t a, int64_t b)
{
    const int64_t rest = b == 0 || b == -1 ? 0 : a % b;
    return rest != 0 && (b < 0) != (rest < 0) ? rest + b : rest;
}

FXP_INLINE int64_t fxp_integer_floor_divide(int64_t a, int64_t b)
{
    return b == 0 ? 0 : b == -1 ? -a : (a - fxp_integer_remainder(a, b)) / b;
}

/* Rounding to the nearest bfloat16 or float16, ties to even. */
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
    if (magnitude < 0x38800000u) { /* subnormal float16: multiples of 2^-24 */
        const float raised = x < 0.0f ? x - 0.5f : x + 0.5f;
        return x < 0.0f ? raised + 0.5f : raised - 0.5f;
    }
    v.bits += 0x0fffu + ((v.bits >> 13) & 1u);
    v.bits &= 0xffffe000u;
    if ((v.bits & 0x7fffffffu) > 0x477fe000u) { /* above the largest float16 */
        v.bits = (v.bits & 0x80000000u) | 0x7f800000u;
    }
    return v.real;
}

/* Rounds ties away from zero, saturates to [-limit, limit]; NaN gives zero. */
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
