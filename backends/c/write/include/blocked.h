/* Multiply-accumulate of floats, fused on machines with a fused multiply-add. */
#ifndef FXP_BLOCKED_H
#define FXP_BLOCKED_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifndef FXP_INLINE
#define FXP_INLINE static inline __attribute__((always_inline, unused))
#endif

FXP_INLINE float fxp_multiply_add(float a, float b, float sum)
{
#if defined(__ARM_FEATURE_FMA)
    return __builtin_fmaf(a, b, sum);
#else
    return a * b + sum;
#endif
}

#endif
