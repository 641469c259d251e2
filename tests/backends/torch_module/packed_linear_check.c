/* Products of random codes, scales and activations against packed_linear_reference, bit by bit, and norms.
 *
 * Prints the instruction set, the number of cases and of those that differ, and a checksum of all results.
 */
#include "packed_linear.c"
#include "rms_norm.c"

#include <stdio.h>
#include <stdlib.h>

enum { OUTPUTS = 37, BLOCKS = 3 };

static uint32_t state = 1;
static uint32_t next(void) { return (state = state * 1664525u + 1013904223u) >> 8; }

static uint32_t checksum(uint32_t sum, const float *y, int count) {
    for (int i = 0; i < count; i++) {
        uint32_t bits;
        memcpy(&bits, y + i, 4);
        sum = sum * 31 + bits;
    }
    return sum;
}

int main(void) {
    static const int bits[] = {2, 3, 4, 5, 6, 8}, shapes[][2] = {{64, 32}, {86, 43}, {96, 96}, {72, 12}, {5, 5}};
    int cases = 0, differing = 0;
    uint32_t sum = 0;
    for (int b = 0; b < 6; b++)
        for (int s = 0; s < 5; s++)
            for (int type = FLOAT32; type <= BFLOAT16; type++)
                for (int tokens = 1; tokens < 12; tokens += 5)
                    for (int is_float = 0; is_float < 2; is_float++) {
                        struct packed_linear w = {
                            .rows = OUTPUTS, .columns = shapes[s][0], .group = shapes[s][1], .bits = bits[b], .scale_type = type};
                        int groups = w.columns / w.group, padded = (w.group + STEP - 1) / STEP * STEP;
                        size_t size = (size_t)(BLOCKS * groups * padded) * 2 * (size_t)w.bits;
                        size_t scale_count = (size_t)(BLOCKS * groups * ROWS), inputs = (size_t)(tokens * w.columns);
                        uint8_t *codes = malloc(size);
                        uint32_t *scales = malloc(4 * scale_count);
                        float *x = malloc(4 * inputs), *y = calloc(4, (size_t)tokens * OUTPUTS), *z = calloc(4, (size_t)tokens * OUTPUTS);
                        for (size_t i = 0; i < size; i++) codes[i] = (uint8_t)next();
                        for (size_t i = 0; i < scale_count; i++) {
                            float scale = (float)((int)next() - (1 << 23)) / 1e9f;
                            uint16_t half = (uint16_t)((type == FLOAT16 ? 0x1c00u : 0x3c00u) + (next() & 0x83ffu));
                            if (type == FLOAT32) memcpy(scales + i, &scale, 4);
                            else ((uint16_t *)scales)[i] = i % 7 ? half : (uint16_t)(next() & 0x80ffu);
                        }
                        for (size_t i = 0; i < inputs; i++) x[i] = (float)((int)(next() & 0xffff) - 32768) / 999.0f;
                        if (tokens > 5) memset(x, 0, 4 * (size_t)w.columns), x[w.columns] = INFINITY, x[2 * w.columns] = NAN;
                        w.codes = codes, w.scales = scales;
                        uint8_t *scratch = malloc((size_t)packed_linear_scratch(&w, tokens, is_float));
                        packed_linear(&w, x, tokens, is_float, y, scratch, 1);
                        packed_linear_reference(&w, x, tokens, is_float, z, scratch);
                        int skipped = tokens > 5 ? 3 * OUTPUTS : 0; /* NaN has many bits */
                        cases++;
                        differing += memcmp(y + skipped, z + skipped, 4 * ((size_t)tokens * OUTPUTS - (size_t)skipped)) != 0;
                        for (int i = 0; i < skipped; i++)
                            differing += i < OUTPUTS ? y[i] != 0 : !is_float && y[i] == y[i];
                        sum = checksum(sum, y + skipped, tokens * OUTPUTS - skipped);
                        free(codes), free(scales), free(x), free(y), free(z), free(scratch);
                    }
    for (int width = 1; width < 100; width += 7) {
        float x[3 * 100], weight[100], y[3 * 100];
        for (int i = 0; i < 3 * width; i++) x[i] = (float)((int)(next() & 0xffff) - 32768) / 999.0f;
        for (int i = 0; i < width; i++) weight[i] = (float)(next() & 0xffff) / 9999.0f;
        rms_norm(x, weight, 3, width, 1e-5f, y);
        sum = checksum(sum, y, 3 * width);
    }
    printf("%s cases %d differing %d checksum %08x\n", packed_linear_instruction_set(), cases, differing, sum);
    return differing != 0;
}
