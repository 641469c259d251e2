/* Products of numbers with 15 bits of fraction; arithmetic.h comes first. */
#ifndef FXP_RECURRENT_H
#define FXP_RECURRENT_H

#include <stdint.h>
#include <string.h>

/* (v + 2^14) >> 15: a product of two numbers, rounded to 15 bits of fraction. */
FXP_INLINE int32_t fxp_halve(int32_t v)
{
    return (v + (1 << 14)) >> 15;
}

/* Stores four numbers, saturated to int16. */
FXP_INLINE void fxp_store_sums4(int16_t *y, int32_t a, int32_t b, int32_t c, int32_t d)
{
#if FXP_DSP
    const uint32_t low = (uint16_t)fxp_saturate16(a) | (uint32_t)fxp_saturate16(b) << 16;
    const uint32_t high = (uint16_t)fxp_saturate16(c) | (uint32_t)fxp_saturate16(d) << 16;
    memcpy(y, &low, 4);
    memcpy(y + 2, &high, 4);
#else
    y[0] = fxp_saturate16(a);
    y[1] = fxp_saturate16(b);
    y[2] = fxp_saturate16(c);
    y[3] = fxp_saturate16(d);
#endif
}

#endif
