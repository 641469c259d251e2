/* ring: a network compiled to C99 by fxpress.
 *
 * Every tensor is dense, the last dimension listed fastest. The function is re-entrant: all that it writes is the
 * outputs, the states and the arena, which the caller owns. None of these may overlap.
 * input x: int8_t [1, 1, 4], real = (integer + 3) * 0.125f
 * input past: int8_t [1, 2, 4], real = (integer + 3) * 0.125f; state: the output past_out of the call before, updated in place
 * output y: int8_t [1, 1, 4], real = (integer - 5) * 0.25f
 * output past_out: int8_t [1, 2, 4], real = (integer + 3) * 0.125f
 */
#ifndef RING_H
#define RING_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Size and alignment of the working memory that the caller provides. */
#define RING_ARENA_BYTES 12
#define RING_ARENA_ALIGNMENT 4
/* Size and alignment of the states, one block of memory that ring_step reads and updates; each sequence has one. */
#define RING_STATE_BYTES 64
#define RING_STATE_ALIGNMENT 64
/* Upper bound of the stack of ring_step on a 32-bit microcontroller, compiled with optimization. */
#define RING_STACK_BYTES 328

#define RING_X_SIZE 4
#define RING_X_SCALE 0.125f
#define RING_X_ZERO_POINT (-3)
#define RING_PAST_SIZE 8
#define RING_PAST_SCALE 0.125f
#define RING_PAST_ZERO_POINT (-3)
#define RING_PAST_OFFSET 0
#define RING_PAST_IN(state) ((int8_t *)(void *)((unsigned char *)(state) + RING_PAST_OFFSET))
#define RING_Y_SIZE 4
#define RING_Y_SCALE 0.25f
#define RING_Y_ZERO_POINT 5
#define RING_PAST_OUT_SIZE 8
#define RING_PAST_OUT_SCALE 0.125f
#define RING_PAST_OUT_ZERO_POINT (-3)

/* Sets the states to the start of a sequence. Returns 0; 1 when the pointer is null, 2 when it is not aligned. */
int ring_reset(void *state);

/* Returns 0; 1 when a pointer is null, 2 when the arena or state are not aligned. */
int ring_step(const int8_t *x, void *state, int8_t *y, void *arena);

/* An element of input x from a number that the model takes. */
static inline int8_t ring_quantize_x(float value)
{
    const float ratio = value / 0.125f;
    const float steps = ratio < 0.0f ? ratio - 0.5f : ratio + 0.5f;
    if (!(steps > -125.0f)) {
        return -128;
    }
    return steps >= 130.0f ? 127 : (int8_t)((int32_t)steps + (-3));
}

/* An element of input past from a number that the model takes. */
static inline int8_t ring_quantize_past(float value)
{
    const float ratio = value / 0.125f;
    const float steps = ratio < 0.0f ? ratio - 0.5f : ratio + 0.5f;
    if (!(steps > -125.0f)) {
        return -128;
    }
    return steps >= 130.0f ? 127 : (int8_t)((int32_t)steps + (-3));
}

/* The real number that an element of output y represents. */
static inline float ring_dequantize_y(int8_t value)
{
    return (float)((int32_t)value - (5)) * 0.25f;
}

/* The real number that an element of output past_out represents. */
static inline float ring_dequantize_past_out(int8_t value)
{
    return (float)((int32_t)value - (-3)) * 0.125f;
}

/* Runs the network on stored inputs; returns how many outputs differ from those expected. In ring_test.c. */
int ring_self_test(void);

#ifdef __cplusplus
}
#endif

#endif
