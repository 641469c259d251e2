/* Bounds of float activations, where a NaN stays a NaN, and rounding of reals to int8. */
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

/* Rounds halves away from zero, adds the zero point, saturates to int8; NaN gives the zero point. */
FXP_INLINE int8_t fxp_quantize(float ratio, int32_t zero_point)
{
    int32_t rounded = 0;
    if (ratio >= 256.0f) {
        rounded = 256;
    } else if (ratio <= -256.0f) {
        rounded = -256;
    } else if (ratio >= 0.0f) {
        rounded = (int32_t)(ratio + 0.5f);
    } else if (ratio < 0.0f) {
        rounded = (int32_t)(ratio - 0.5f);
    }
    rounded += zero_point;
    return (int8_t)(rounded < -128 ? -128 : rounded > 127 ? 127 : rounded);
}

#endif
