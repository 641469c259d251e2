/* Bounds of float activations, where a NaN stays a NaN, and rounding of reals to integers. */
#ifndef FXP_REAL_H
#define FXP_REAL_H

#include <stddef.h>
#include <stdint.h>

#ifndef FXP_INLINE
#define FXP_INLINE static inline __attribute__((always_inline, unused))
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
    const int32_t rounded = fxp_round(ratio, 256) + zero_point;
    return (int8_t)(rounded < -128 ? -128 : rounded > 127 ? 127 : rounded);
}

/* Rounds, adds the zero point, saturates to int16. */
FXP_INLINE int16_t fxp_quantize16(float ratio, int32_t zero_point)
{
    const int32_t rounded = fxp_round(ratio, 65536) + zero_point;
    return (int16_t)(rounded < -32768 ? -32768 : rounded > 32767 ? 32767 : rounded);
}

#endif
