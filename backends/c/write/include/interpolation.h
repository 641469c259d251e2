/* Functions of 16 bits between the entries of a table; arithmetic.h comes first. */
#ifndef FXP_INTERPOLATION_H
#define FXP_INTERPOLATION_H

#include <stdint.h>
#include <string.h>

/* The function of a table of 513 entries for operands from -2^15 in steps of 128, interpolated linearly. */
FXP_INLINE int32_t fxp_interpolate(const int16_t *table, int32_t v)
{
    const int16_t *at = table + 256 + (v >> 7);
    const int32_t part = v & 127;
#if FXP_DSP
    const int32_t weights = (part << 16) + 128 - part;
    uint32_t entries;
    int32_t sum;
    memcpy(&entries, at, 4);
    __asm__("smlad %0, %1, %2, %3" : "=r"(sum) : "r"(entries), "r"(weights), "r"(64));
    return sum >> 7;
#else
    return (at[0] * (128 - part) + at[1] * part + 64) >> 7;
#endif
}

#endif
