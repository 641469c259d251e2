/* Normalization of rows by their root mean square:
 *
 *     y = x / sqrt(mean(x^2) + eps) * weight
 *
 * The squares are added in 16 lanes and the lanes in a tree, so that every compiler and processor gives the same bits
 * (without contraction of products and sums).
 */
#include <math.h>
#include <stdint.h>

enum { SUMS = 16 };

void rms_norm(const float *x, const float *weight, int64_t rows, int64_t width, float eps, float *y) {
    for (int64_t row = 0; row < rows; row++, x += width, y += width) {
        float sums[SUMS] = {0};
        int64_t i = 0;
        for (; i + SUMS <= width; i += SUMS)
            for (int lane = 0; lane < SUMS; lane++) sums[lane] += x[i + lane] * x[i + lane];
        for (int lane = 0; i + lane < width; lane++) sums[lane] += x[i + lane] * x[i + lane];
        for (int half = SUMS / 2; half > 0; half /= 2)
            for (int lane = 0; lane < half; lane++) sums[lane] += sums[lane + half];
        float inverse = 1.0f / sqrtf(sums[0] / (float)width + eps);
        for (i = 0; i < width; i++) y[i] = x[i] * inverse * weight[i];
    }
}
