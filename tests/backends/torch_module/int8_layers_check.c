/* Random layers of int8_layers.c against sums in their plainest form, byte by byte.
 *
 * Prints the instruction set, the number of cases and of those that differ, and a checksum of all results.
 */
#include "int8_layers.c"

#include <stdio.h>
#include <stdlib.h>

static uint32_t state = 1;
static int32_t draw(int32_t low, int32_t high) { /* within low..high */
    state = state * 1664525u + 1013904223u;
    return low + (int32_t)((state >> 8) % (uint32_t)(high - low + 1));
}

static void fill(void *to, size_t count, int is_extreme) {
    uint8_t *bytes = to;
    static const uint8_t extremes[] = {0, 127, 128, 255};
    for (size_t i = 0; i < count; i++) bytes[i] = is_extreme ? extremes[draw(0, 3)] : (uint8_t)draw(0, 255);
}

static int32_t requantized(int64_t sum, int32_t multiplier, int32_t shift) {
    return (int32_t)((sum * ((int64_t)1 << shift) * multiplier + ((int64_t)1 << 31)) >> 32);
}

/* The result at one element. */
static uint8_t expected(const struct int8_layer *l, const struct int8_sizes *z, const uint8_t *x, const int8_t *w, int64_t bias, int32_t multiplier, int32_t shift, int n, int row, int column, int channel, const uint8_t *residual) {
    int inputs = l->inputs / l->groups, group = channel / (l->outputs / l->groups);
    for (int c = 0; c < inputs; c++)
        for (int ky = 0; ky < l->kernel[0]; ky++)
            for (int kx = 0; kx < l->kernel[1]; kx++) {
                int from_row = row * l->stride[0] - l->before[0] + ky * l->dilation[0];
                int from_column = column * l->stride[1] - l->before[1] + kx * l->dilation[1];
                if (from_row < 0 || from_row >= z->height || from_column < 0 || from_column >= z->width) continue;
                int64_t at = (((int64_t)n * z->height + from_row) * z->width + from_column) * l->inputs + group * inputs + c;
                bias += (x[at] - l->x_zero) * w[((channel * inputs + c) * l->kernel[0] + ky) * l->kernel[1] + kx];
            }
    int32_t y = requantized(bias, multiplier, shift);
    y += residual ? ((*residual * l->residual_multiplier + l->residual_offset) >> l->residual_shift) + 128 : l->y_zero;
    return (uint8_t)(y < l->low ? l->low : y > l->high ? l->high : y);
}

static uint32_t checksum = 0;

/* 1 where a layer differs. Buffers have the exact sizes, so that sanitizers see what is read beyond. */
static int differs(struct int8_layer *l, const struct int8_sizes *z, int is_extreme, int has_bias, int has_residual, int threads) {
    size_t taps = (size_t)(l->inputs / l->groups * l->kernel[0] * l->kernel[1]);
    size_t size = (size_t)z->images * (size_t)(z->height * z->width * l->inputs);
    size_t results = (size_t)z->images * (size_t)(z->out_height * z->out_width * l->outputs);
    uint8_t *x = malloc(size + 1), *y = malloc(results + 1), *residual = malloc(results + 1);
    uint8_t *memory = malloc((size_t)int8_layer_bytes(l)), *scratch = malloc((size_t)int8_layer_scratch(l, z) + 1);
    int8_t *w = malloc((size_t)l->outputs * taps);
    int32_t *bias = malloc(4 * (size_t)l->outputs), *multipliers = malloc(4 * (size_t)l->outputs), *shifts = malloc(4 * (size_t)l->outputs);
    fill(x, size, is_extreme), fill(residual, results, 0), fill(w, (size_t)l->outputs * taps, is_extreme);
    for (int i = 0; i < l->outputs; i++) {
        bias[i] = draw(-5000, 5000);
        shifts[i] = draw(0, 7) ? 0 : draw(1, 3);
        multipliers[i] = draw(1, 1 << 24);
        multipliers[i] *= draw(0, 9) ? 1 : 127;
    }
    int8_layer_pack(l, w, has_bias ? bias : 0, multipliers, shifts, memory);
    int8_layer(l, z, x, has_residual ? residual : 0, y, scratch, threads);
    int result = 0;
    size_t at = 0;
    for (int n = 0; n < z->images; n++)
        for (int row = 0; row < z->out_height; row++)
            for (int column = 0; column < z->out_width; column++)
                for (int c = 0; c < l->outputs; c++, at++) {
                    uint8_t value = expected(l, z, x, w, has_bias ? bias[c] : 0, multipliers[c], shifts[c], n, row, column, c, has_residual ? residual + at : 0);
                    result |= value != y[at];
                    checksum = checksum * 31 + y[at];
                }
    free(x), free(y), free(residual), free(memory), free(scratch), free(w), free(bias), free(multipliers), free(shifts);
    return result;
}

/* Elementwise functions against one element at a time: 1 where they differ. */
static int elements_differ(int count) {
    uint8_t *a = malloc((size_t)count), *b = malloc((size_t)count), *y = malloc((size_t)count), table[256];
    float *reals = malloc(4 * (size_t)count);
    int32_t factors[2], zeros[3];
    for (int i = 0; i < 2; i++) factors[i] = draw(-20000, 20000);
    for (int i = 0; i < 3; i++) zeros[i] = draw(0, 255);
    int result = 0, channels = count % 3 == 0 ? 3 : 1, shift = draw(8, 20);
    int multiplier = draw(1, 1 << 26);
    fill(a, (size_t)count, 0), fill(b, (size_t)count, 0), fill(table, 256, 0);
    int8_lookup(table, a, y, count);
    for (int i = 0; i < count; i++) result |= y[i] != table[a[i]];
    int8_add(a, b, y, count, factors, 77, shift, 3, 250);
    for (int i = 0; i < count; i++) {
        int32_t sum = ((a[i] * factors[0] + b[i] * factors[1] + 77) >> shift) + 128;
        result |= y[i] != (sum < 3 ? 3 : sum > 250 ? 250 : sum);
    }
    int8_multiply(a, b, y, count, zeros, multiplier, 1, 0, 255);
    for (int i = 0; i < count; i++) {
        int32_t product = requantized((a[i] - zeros[0]) * (b[i] - zeros[1]), multiplier, 1) + zeros[2];
        result |= y[i] != (product < 0 ? 0 : product > 255 ? 255 : product);
    }
    int8_dequantize(a, reals, count, 0.3f, zeros[0]);
    for (int i = 0; i < count; i++) result |= reals[i] != (float)(a[i] - zeros[0]) * 0.3f;
    for (int i = 0; i < count; i++) reals[i] = i % 7 == 6 ? NAN : i % 11 == 10 ? -INFINITY : (float)draw(-1000, 1000) * 0.125f;
    int8_quantize(reals, y, 1, channels, count / channels, 0.25f, zeros[0], 2, 253);
    for (int i = 0; i < count; i++) {
        float real = reals[i] / 0.25f;
        float value = real != real ? (float)zeros[0] : truncf(real + copysignf(0.5f, real)) + (float)zeros[0];
        int to = i % (count / channels) * channels + i / (count / channels);
        result |= y[to] != (value < 2 ? 2 : value > 253 ? 253 : (int)value);
        checksum = checksum * 31 + y[to];
    }
    free(a), free(b), free(y), free(reals);
    return result;
}

int main(void) {
    static const int channels[] = {1, 2, 3, 5, 7, 16, 19, 24, 32, 40, 64, 67, 96, 130};
    int cases = 0, differing = 0;
    for (int i = 0; i < CASES; i++) {
        struct int8_layer l;
        struct int8_sizes z;
        l.x_zero = draw(0, 255), l.y_zero = draw(-20, 255), l.low = draw(0, 30), l.high = draw(200, 255);
        z.images = draw(1, 2), z.height = draw(1, 11), z.width = draw(1, 14);
        int form = draw(0, 3);
        int is_common = draw(0, 1);
        int count = channels[draw(0, 13)];
        l.residual_multiplier = draw(-32767, 32767), l.residual_offset = draw(-1000000, 1000000), l.residual_shift = draw(0, 16);
        l.groups = form == 0 ? count : form == 1 ? draw(2, 3) : 1;
        l.inputs = form == 0 ? count : l.groups * (count < 24 ? count : 24 + count % 5);
        l.outputs = form == 0 ? count : l.groups * channels[draw(0, 13)];
        for (int axis = 0; axis < 2; axis++) {
            int size = axis ? z.width : z.height, after;
            l.kernel[axis] = is_common && form == 0 ? 3 : is_common ? 1 : draw(1, 4), l.stride[axis] = is_common ? 1 : draw(1, 3);
            l.dilation[axis] = is_common ? 1 : draw(1, 2), l.before[axis] = l.kernel[axis] > 1 ? draw(0, 2) : 0;
            after = l.kernel[axis] > 1 ? draw(0, 2) : 0;
            int left = size + l.before[axis] + after - l.dilation[axis] * (l.kernel[axis] - 1) - 1;
            *(axis ? &z.out_width : &z.out_height) = left < 0 ? 0 : left / l.stride[axis] + 1;
        }
        if (!z.out_width || !z.out_height) continue;
        int is_extreme = draw(0, 3) == 0;
        int has_bias = draw(0, 1);
        int has_residual = draw(0, 1);
        cases++;
        differing += differs(&l, &z, is_extreme, has_bias, has_residual, draw(1, 2));
    }
    for (int count = 1; count < 200; count++) cases++, differing += elements_differ(count);
    printf("%s: %d cases, %d differ, %08x\n", int8_layers_instruction_set(), cases, differing, checksum);
    return 0;
}
