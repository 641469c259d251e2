/* Product of float activations with a matrix of packed integers, on a CPU: see packed_linear.c. */
#ifndef PACKED_LINEAR_H
#define PACKED_LINEAR_H

#include <stdint.h>

/* `rows` x `columns` integers of `bits` bits, with a scale for each `group` consecutive columns of a row. Scales are
 * float32 (`scale_type` 0), float16 (1) or bfloat16 (2). */
struct packed_linear {
    const uint8_t *codes;
    const void *scales;
    int32_t rows, columns, group, bits, scale_type;
};

/* Bytes of scratch memory, aligned to 4, for `tokens` tokens. */
int64_t packed_linear_scratch(const struct packed_linear *w, int64_t tokens, int is_float);

/* y [tokens][rows] of x [tokens][columns], both contiguous. Activations are rounded to 8 bits per token, or not at all
 * (`is_float`). With OpenMP at most `threads` threads. */
void packed_linear(const struct packed_linear *w, const float *x, int64_t tokens, int is_float, float *y, uint8_t *scratch, int threads);

/* The products of one x with `count` weights that differ in codes, scales and rows only, each to its own y. Activations
 * are rounded once, and the bits are those of a call for each weight. */
void packed_linear_joined(const struct packed_linear *w, int count, const float *x, int64_t tokens, int is_float, float *const *y, uint8_t *scratch, int threads);

/* The reals of a row: y [columns]. */
void packed_linear_row(const struct packed_linear *w, int64_t row, float *y);

/* The reals of `count` rows: y [count][columns]. Returns 0, or -1 for a row that is not there. */
int packed_linear_rows(const struct packed_linear *w, const int64_t *rows, int64_t count, float *y);

/* The definition of `packed_linear`, one product after the other. */
void packed_linear_reference(const struct packed_linear *w, const float *x, int64_t tokens, int is_float, float *y, uint8_t *scratch);

const char *packed_linear_instruction_set(void);

#endif
