/* net: a network compiled to C99 by fxpress.
 *
 * Every tensor is dense, the last dimension listed fastest. The function is re-entrant: all that it writes is the
 * outputs and the arena, which the caller owns. None of these may overlap.
 * input image: int8_t [1, 1, 4, 4], real = (integer - 0) * 0.0078125f
 * output logits: int8_t [1, 3], real = (integer - 3) * 0.02f
 */
#ifndef NET_H
#define NET_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Size and alignment of the working memory that the caller provides. */
#define NET_ARENA_BYTES 36
#define NET_ARENA_ALIGNMENT 4
/* Upper bound of the stack of net_run on a 32-bit microcontroller, compiled with optimization. */
#define NET_STACK_BYTES 312

#define NET_IMAGE_SIZE 16
#define NET_IMAGE_SCALE 0.0078125f
#define NET_IMAGE_ZERO_POINT 0
#define NET_LOGITS_SIZE 3
#define NET_LOGITS_SCALE 0.02f
#define NET_LOGITS_ZERO_POINT 3

/* Returns 0; 1 when a pointer is null, 2 when the arena is not aligned. */
int net_run(const int8_t *image, int8_t *logits, void *arena);

/* An element of input image from a number that the model takes. */
static inline int8_t net_quantize_image(float value)
{
    const float ratio = value / 0.0078125f;
    const float steps = ratio < 0.0f ? ratio - 0.5f : ratio + 0.5f;
    if (!(steps > -128.0f)) {
        return -128;
    }
    return steps >= 127.0f ? 127 : (int8_t)((int32_t)steps + (0));
}

/* The real number that an element of output logits represents. */
static inline float net_dequantize_logits(int8_t value)
{
    return (float)((int32_t)value - (3)) * 0.02f;
}

/* Runs the network on stored inputs; returns how many outputs differ from those expected. In net_test.c. */
int net_self_test(void);

#ifdef __cplusplus
}
#endif

#endif
