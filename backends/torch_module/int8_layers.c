/* Integer layers on a CPU, for images of bytes with the channels last.
 *
 *     y = saturate(requant(sum of w * (x - x_zero) + bias, multiplier, shift) + y_zero)
 *     requant(acc, multiplier, shift) = (int64(acc << shift) * multiplier + 2^31) >> 32
 *
 * With a residual, ((residual * m + offset) >> s) + 128 takes the place of y_zero. Bytes are unsigned: the graph's
 * integer plus 128. Weights are signed bytes with a multiplier and shift for each output channel. Integers are exact, so all
 * instruction sets give the same bytes, with any number of threads; only the order of the packed weights differs.
 *
 * A convolution is a product of pixels with a matrix of weights. The taps of a pixel are `segments` runs of `length`
 * consecutive bytes, each padded to whole steps of 4 by weights of 0; padded images are copied before. A vector of 32-bit
 * lanes sums the products of four bytes of one pixel with the weights of one channel in each lane. Q = 4, 2 or 1 vectors
 * make a block of channels: lane 4j + t of vector i is channel 4Q * j + 4i + t of the block, so that narrowing two
 * vectors within 128-bit lanes leaves channels in order. Depthwise convolutions zip four taps of many channels to the
 * same form, with Q = 4.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__ARM_FEATURE_DOTPROD)
#include <arm_neon.h>
#endif

#define INLINE static inline __attribute__((always_inline))
#define UNROLLED _Pragma("GCC unroll 24") /* so that vectors of an array are in registers */

/* ---- vectors of one instruction set ------------------------------------------------------------------------------- */

/* TILE: vectors of sums in registers. SIGNED: the product takes signed bytes, 128 less than those of the image. */
#if defined(__AVX512VNNI__) && defined(__AVX512BW__) && !defined(INT8_LAYERS_AVX2)
#define AVX512
#define INSTRUCTION_SET "avx512-vnni"
enum { WIDTH = 64, TILE = 24, SIGNED = 0 };
#elif defined(__AVX2__)
#define AVX2
#define INSTRUCTION_SET "avx2"
enum { WIDTH = 32, TILE = 8, SIGNED = 0 };
#elif defined(__ARM_FEATURE_DOTPROD)
#define NEON
#define INSTRUCTION_SET "neon-dotprod"
enum { WIDTH = 16, TILE = 20, SIGNED = 1 };
#else
#define INSTRUCTION_SET "c"
enum { WIDTH = 16, TILE = 8, SIGNED = 0 };
#endif

enum { LANES = WIDTH / 4, GROUPS = WIDTH / 16 };
typedef uint8_t bytes __attribute__((vector_size(WIDTH)));
typedef uint16_t halves __attribute__((vector_size(WIDTH)));
typedef uint32_t words __attribute__((vector_size(WIDTH)));
typedef int32_t signed_words __attribute__((vector_size(WIDTH)));
typedef float floats __attribute__((vector_size(WIDTH)));

INLINE bytes load_bytes(const void *from) {
    bytes v;
    memcpy(&v, from, sizeof v);
    return v;
}

INLINE words load_words(const void *from) {
    words v;
    memcpy(&v, from, sizeof v);
    return v;
}

INLINE words word(uint32_t value) { return (words){0} + value; }
INLINE bytes byte(int value) { return (bytes){0} + (uint8_t)value; }

/* Four consecutive bytes in every lane. */
INLINE bytes four(const uint8_t *from) {
    uint32_t v;
    memcpy(&v, from, 4);
    return (bytes)word(v);
}

/* sums + products of four bytes of an image and four weights in each lane. */
INLINE words dot(words sums, bytes x, bytes weights) {
#if defined(AVX512)
    return (words)_mm512_dpbusd_epi32((__m512i)sums, (__m512i)x, (__m512i)weights);
#elif defined(AVX2) && defined(__AVXVNNI__)
    return (words)_mm256_dpbusd_avx_epi32((__m256i)sums, (__m256i)x, (__m256i)weights);
#elif defined(AVX2) /* bytes 0 and 2, then 1 and 3 as 16 bits: products of bytes would saturate */
    __m256i a = (__m256i)x, w = (__m256i)weights;
    __m256i even = _mm256_madd_epi16(_mm256_and_si256(a, _mm256_set1_epi16(255)), _mm256_srai_epi16(_mm256_slli_epi16(w, 8), 8));
    return sums + (words)even + (words)_mm256_madd_epi16(_mm256_srli_epi16(a, 8), _mm256_srai_epi16(w, 8));
#elif defined(NEON)
    return (words)vdotq_s32((int32x4_t)sums, (int8x16_t)(x ^ byte(128)), (int8x16_t)weights);
#else
    for (int lane = 0; lane < LANES; lane++)
        for (int i = 0; i < 4; i++) sums[lane] += (uint32_t)(x[4 * lane + i] * (int8_t)weights[4 * lane + i]);
    return sums;
#endif
}

/* (int64(sums << shifts) * multipliers + rounding) >> 32. */
INLINE words scaled(words sums, words shifts, words multipliers, int64_t rounding) {
#if defined(AVX512)
    __m512i acc = _mm512_sllv_epi32((__m512i)sums, (__m512i)shifts), m = (__m512i)multipliers, r = _mm512_set1_epi64(rounding);
    __m512i even = _mm512_add_epi64(_mm512_mul_epi32(acc, m), r);
    __m512i odd = _mm512_add_epi64(_mm512_mul_epi32(_mm512_srli_epi64(acc, 32), _mm512_srli_epi64(m, 32)), r);
    return (words)_mm512_mask_shuffle_epi32(odd, 0x5555, even, _MM_PERM_DDBB);
#elif defined(AVX2)
    __m256i acc = _mm256_sllv_epi32((__m256i)sums, (__m256i)shifts), m = (__m256i)multipliers, r = _mm256_set1_epi64x(rounding);
    __m256i even = _mm256_add_epi64(_mm256_mul_epi32(acc, m), r);
    __m256i odd = _mm256_add_epi64(_mm256_mul_epi32(_mm256_srli_epi64(acc, 32), _mm256_srli_epi64(m, 32)), r);
    return (words)_mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xaa);
#elif defined(NEON)
    int32x4_t acc = vshlq_s32((int32x4_t)sums, (int32x4_t)shifts), m = (int32x4_t)multipliers;
    int64x2_t r = vdupq_n_s64(rounding);
    int32x4_t low = (int32x4_t)vmlal_s32(r, vget_low_s32(acc), vget_low_s32(m));
    return (words)vuzp2q_s32(low, (int32x4_t)vmlal_high_s32(r, acc, m));
#else
    for (int lane = 0; lane < LANES; lane++)
        sums[lane] = (uint32_t)(((int64_t)(int32_t)(sums[lane] << shifts[lane]) * (int32_t)multipliers[lane] + rounding) >> 32);
    return sums;
#endif
}

/* Signed words, saturated to unsigned bytes, in turns of four of each vector. */
INLINE bytes narrowed(words a, words b, words c, words d) {
#if defined(AVX512)
    return (bytes)_mm512_packus_epi16(_mm512_packs_epi32((__m512i)a, (__m512i)b), _mm512_packs_epi32((__m512i)c, (__m512i)d));
#elif defined(AVX2)
    return (bytes)_mm256_packus_epi16(_mm256_packs_epi32((__m256i)a, (__m256i)b), _mm256_packs_epi32((__m256i)c, (__m256i)d));
#elif defined(NEON)
    int16x8_t low = vcombine_s16(vqmovn_s32((int32x4_t)a), vqmovn_s32((int32x4_t)b));
    int16x8_t high = vcombine_s16(vqmovn_s32((int32x4_t)c), vqmovn_s32((int32x4_t)d));
    return (bytes)vcombine_u8(vqmovun_s16(low), vqmovun_s16(high));
#else
    words all[4] = {a, b, c, d};
    bytes v;
    for (int i = 0; i < WIDTH; i++) {
        int32_t value = (int32_t)all[i / 4][i % 4];
        v[i] = (uint8_t)(value < 0 ? 0 : value > 255 ? 255 : value);
    }
    return v;
#endif
}

INLINE bytes smaller(bytes a, bytes b) {
#if defined(AVX512)
    return (bytes)_mm512_min_epu8((__m512i)a, (__m512i)b);
#elif defined(AVX2)
    return (bytes)_mm256_min_epu8((__m256i)a, (__m256i)b);
#else
    bytes is_less = (bytes)(a < b);
    return (a & is_less) | (b & ~is_less);
#endif
}

INLINE bytes larger(bytes a, bytes b) {
#if defined(AVX512)
    return (bytes)_mm512_max_epu8((__m512i)a, (__m512i)b);
#elif defined(AVX2)
    return (bytes)_mm256_max_epu8((__m256i)a, (__m256i)b);
#else
    bytes is_less = (bytes)(a < b);
    return (b & is_less) | (a & ~is_less);
#endif
}

/* The first 4Q bytes of each 128 bits, one after the other. */
INLINE bytes joined(int Q, bytes v) {
#if defined(AVX512)
    if (Q == 2) return (bytes)_mm512_permutexvar_epi64(_mm512_setr_epi64(0, 2, 4, 6, 0, 2, 4, 6), (__m512i)v);
    if (Q == 1) return (bytes)_mm512_permutexvar_epi32(_mm512_setr_epi32(0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12, 0, 4, 8, 12), (__m512i)v);
#elif defined(AVX2)
    if (Q == 2) return (bytes)_mm256_permute4x64_epi64((__m256i)v, 0x88);
    if (Q == 1) return (bytes)_mm256_permutevar8x32_epi32((__m256i)v, _mm256_setr_epi32(0, 4, 0, 4, 0, 4, 0, 4));
#else
    (void)Q;
#endif
    return v;
}

/* Bytes narrowed from four vectors of consecutive words, in their order. */
INLINE bytes in_order(bytes v) {
#if defined(AVX512)
    return (bytes)_mm512_permutexvar_epi32(_mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), (__m512i)v);
#elif defined(AVX2)
    return (bytes)_mm256_permutevar8x32_epi32((__m256i)v, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
#else
    return v;
#endif
}

/* Bytes, then pairs of bytes, of a and b in turns, from the lower or upper half of each 128 bits. */
#if defined(AVX512)
#define ZIP(type, a, b) (is_high ? (bytes)_mm512_unpackhi_##type((__m512i)a, (__m512i)b) : (bytes)_mm512_unpacklo_##type((__m512i)a, (__m512i)b))
INLINE bytes zip_bytes(int is_high, bytes a, bytes b) { return ZIP(epi8, a, b); }
INLINE bytes zip_pairs(int is_high, bytes a, bytes b) { return ZIP(epi16, a, b); }
#elif defined(AVX2)
#define ZIP(type, a, b) (is_high ? (bytes)_mm256_unpackhi_##type((__m256i)a, (__m256i)b) : (bytes)_mm256_unpacklo_##type((__m256i)a, (__m256i)b))
INLINE bytes zip_bytes(int is_high, bytes a, bytes b) { return ZIP(epi8, a, b); }
INLINE bytes zip_pairs(int is_high, bytes a, bytes b) { return ZIP(epi16, a, b); }
#elif defined(NEON)
INLINE bytes zip_bytes(int is_high, bytes a, bytes b) { return (bytes)(is_high ? vzip2q_u8((uint8x16_t)a, (uint8x16_t)b) : vzip1q_u8((uint8x16_t)a, (uint8x16_t)b)); }
INLINE bytes zip_pairs(int is_high, bytes a, bytes b) { return (bytes)(is_high ? vzip2q_u16((uint16x8_t)a, (uint16x8_t)b) : vzip1q_u16((uint16x8_t)a, (uint16x8_t)b)); }
#else
INLINE bytes zip_bytes(int is_high, bytes a, bytes b) {
    bytes v;
    for (int i = 0; i < WIDTH; i++) v[i] = (i % 2 ? b : a)[i / 2 + is_high * WIDTH / 2];
    return v;
}
INLINE bytes zip_pairs(int is_high, bytes a, bytes b) {
    halves v;
    for (int i = 0; i < WIDTH / 2; i++) v[i] = ((halves)(i % 2 ? b : a))[i / 2 + is_high * WIDTH / 4];
    return (bytes)v;
}
#endif

/* The first `count` bytes; the vector has `full`. */
INLINE void store_bytes(uint8_t *y, bytes v, int32_t count, int full) {
    if (count >= full) {
        memcpy(y, &v, (size_t)full);
        return;
    }
#if defined(AVX512)
    _mm512_mask_storeu_epi8(y, ((__mmask64)1 << count) - 1, (__m512i)v);
#else
    uint8_t from[WIDTH];
    memcpy(from, &v, WIDTH);
    int at = 0;
    for (int size = WIDTH / 2; size; size /= 2)
        if (count & size) {
            for (int i = 0; i < size; i++) y[at + i] = from[at + i];
            at += size;
        }
#endif
}

/* ---- layers ------------------------------------------------------------------------------------------------------- */

enum { MOST_TAPS = 1024, MOST_PIXELS = 256 };

/* A convolution over two dimensions; a linear layer has tokens for pixels. `before` is the padding before each
 * dimension. `int8_layer_pack` sets the pointers. */
struct int8_layer {
    const int8_t *weights;
    const int32_t *starts, *multipliers, *shifts; /* of each lane, in the order of the vectors */
    int32_t inputs, outputs, groups;              /* channels */
    int32_t kernel[2], stride[2], dilation[2], before[2];
    int32_t x_zero, y_zero, low, high; /* bytes */
    int32_t residual_multiplier, residual_offset, residual_shift;
};

struct int8_sizes {
    int32_t images, height, width, out_height, out_width;
};

/* Runs of bytes that the taps of a pixel and group are. */
struct runs {
    int32_t count, length, steps; /* steps of 4 bytes in each */
    int is_row;                   /* a run is a row of the kernel */
};

static int is_depthwise(const struct int8_layer *l) { return l->groups > 1 && l->groups == l->inputs && l->groups == l->outputs; }

static struct runs runs_of(const struct int8_layer *l) {
    struct runs r = {.is_row = l->groups == 1 && (l->dilation[1] == 1 || l->kernel[1] == 1)};
    r.count = l->kernel[0] * (r.is_row ? 1 : l->kernel[1]);
    r.length = l->inputs / l->groups * (r.is_row ? l->kernel[1] : 1);
    r.steps = (r.length + 3) / 4;
    return r;
}

static int32_t taps_of(const struct int8_layer *l) { return l->kernel[0] * l->kernel[1]; }

/* Vectors of channels in a group, and in the block that starts at vector `line`. */
static int32_t lines_of(const struct int8_layer *l) { return (l->outputs / l->groups + LANES - 1) / LANES; }
static int block_size(int32_t lines, int32_t line) { return lines - line >= 4 ? 4 : lines - line >= 2 ? 2 : 1; }

/* The first channel of a depthwise block: the last block overlaps the one before. */
static int32_t depthwise_blocks(const struct int8_layer *l) { return (l->inputs + WIDTH - 1) / WIDTH; }
static int32_t depthwise_first(const struct int8_layer *l, int32_t block) {
    int32_t last = l->inputs > WIDTH ? l->inputs - WIDTH : 0;
    return block * WIDTH < last ? block * WIDTH : last;
}

/* Whether windows of a depthwise convolution overlap such that two rows and columns of results share zipped taps. */
static int has_pairs(const struct int8_layer *l) {
    int is_plain = l->stride[0] == 1 && l->stride[1] == 1 && l->dilation[0] == 1 && l->dilation[1] == 1;
    int is_dense = l->inputs >= WIDTH || WIDTH % l->inputs == 0;
    return TILE >= 16 && is_depthwise(l) && is_plain && is_dense && l->kernel[0] == 3 && l->kernel[1] == 3;
}

/* Bytes of depthwise weights: quads of taps, then the columns of pairs. */
static int64_t quad_bytes(const struct int8_layer *l) { return (int64_t)depthwise_blocks(l) * ((taps_of(l) + 3) / 4) * 4 * WIDTH; }
static int64_t pair_bytes(const struct int8_layer *l) { return has_pairs(l) ? (int64_t)depthwise_blocks(l) * 3 * 2 * 4 * WIDTH : 0; }

static int64_t slots_of(const struct int8_layer *l) {
    return is_depthwise(l) ? (int64_t)depthwise_blocks(l) * WIDTH : (int64_t)l->groups * lines_of(l) * LANES;
}

static int64_t weight_bytes(const struct int8_layer *l) {
    struct runs r = runs_of(l);
    if (is_depthwise(l)) return quad_bytes(l) + pair_bytes(l);
    return (int64_t)l->groups * lines_of(l) * r.count * r.steps * WIDTH;
}

/* Bytes of the packed layer; -1 for one that has no kernel here. */
int64_t int8_layer_bytes(const struct int8_layer *l) {
    if (is_depthwise(l) && taps_of(l) > MOST_TAPS) return -1;
    return weight_bytes(l) + 3 * 4 * slots_of(l);
}

/* What is packed of an output channel at a slot. */
static void pack_slot(const struct int8_layer *l, int64_t slot, int32_t channel, const int8_t *weight, const int32_t *bias, const int32_t *multipliers, const int32_t *shifts) {
    int32_t taps = taps_of(l) * (l->inputs / l->groups), sum = 0;
    for (int32_t i = 0; i < taps; i++) sum += weight[(int64_t)channel * taps + i];
    uint32_t zero = (uint32_t)(l->x_zero - (SIGNED ? 128 : 0));
    ((int32_t *)l->starts)[slot] = (int32_t)((bias ? (uint32_t)bias[channel] : 0) - zero * (uint32_t)sum);
    ((int32_t *)l->multipliers)[slot] = multipliers[channel];
    ((int32_t *)l->shifts)[slot] = shifts[channel];
}

static void pack_depthwise(const struct int8_layer *l, const int8_t *weight, const int32_t *bias, const int32_t *multipliers, const int32_t *shifts) {
    int32_t taps = taps_of(l), quads = (taps + 3) / 4;
    int8_t *to = (int8_t *)l->weights;
    for (int32_t block = 0; block < depthwise_blocks(l); block++)
        for (int32_t i = 0; i < WIDTH; i++) { /* vector i / LANES, lane i % LANES */
            int32_t lane = i % LANES, channel = depthwise_first(l, block) + lane / 4 * 16 + i / LANES * 4 + lane % 4;
            channel %= l->inputs; /* few channels: a vector has those of several pixels */
            pack_slot(l, (int64_t)block * WIDTH + i, channel, weight, bias, multipliers, shifts);
            for (int32_t tap = 0; tap < taps; tap++) {
                int64_t vector = ((int64_t)block * quads + tap / 4) * 4 + i / LANES;
                to[vector * WIDTH + 4 * lane + tap % 4] = weight[(int64_t)channel * taps + tap];
            }
            if (!has_pairs(l)) continue;
            for (int32_t tap = 0; tap < taps; tap++)
                for (int row = 0; row < 2; row++) {
                    int64_t vector = (((int64_t)block * 3 + tap % 3) * 2 + row) * 4 + i / LANES;
                    to[quad_bytes(l) + vector * WIDTH + 4 * lane + tap / 3 + row] = weight[(int64_t)channel * taps + tap];
                }
        }
}

static void pack_product(const struct int8_layer *l, const int8_t *weight, const int32_t *bias, const int32_t *multipliers, const int32_t *shifts) {
    struct runs r = runs_of(l);
    int32_t lines = lines_of(l), outputs = l->outputs / l->groups, inputs = l->inputs / l->groups, taps = taps_of(l);
    int32_t steps = r.count * r.steps;
    for (int32_t g = 0; g < l->groups; g++)
        for (int32_t line = 0, Q; line < lines; line += Q) {
            Q = block_size(lines, line);
            int8_t *block = (int8_t *)l->weights + ((int64_t)g * lines + line) * steps * WIDTH;
            for (int32_t i = 0; i < Q * LANES; i++) {
                int32_t lane = i % LANES, within = line * LANES + lane / 4 * 4 * Q + i / LANES * 4 + lane % 4;
                if (within >= outputs) continue;
                int32_t channel = g * outputs + within;
                pack_slot(l, ((int64_t)g * lines + line) * LANES + i, channel, weight, bias, multipliers, shifts);
                for (int32_t tap = 0; tap < taps; tap++)
                    for (int32_t c = 0; c < inputs; c++) {
                        int32_t run = r.is_row ? tap / l->kernel[1] : tap, at = r.is_row ? tap % l->kernel[1] * inputs + c : c;
                        int64_t vector = ((int64_t)run * r.steps + at / 4) * Q + i / LANES;
                        block[vector * WIDTH + 4 * lane + at % 4] = weight[((int64_t)channel * inputs + c) * taps + tap];
                    }
            }
        }
}

/* Packs a layer into `memory`: weight [outputs, inputs / groups, kernel], bias [outputs] or null. */
void int8_layer_pack(struct int8_layer *l, const int8_t *weight, const int32_t *bias, const int32_t *multipliers, const int32_t *shifts, uint8_t *memory) {
    memset(memory, 0, (size_t)int8_layer_bytes(l));
    l->weights = (int8_t *)memory;
    l->starts = (int32_t *)(memory + weight_bytes(l));
    l->multipliers = l->starts + slots_of(l);
    l->shifts = l->multipliers + slots_of(l);
    (is_depthwise(l) ? pack_depthwise : pack_product)(l, weight, bias, multipliers, shifts);
}

/* Adds the rescaled residual of a pixel and block, of which `count` bytes exist. */
INLINE void add_residual(int Q, const struct int8_layer *l, words *sums, const uint8_t *residual, int32_t count) {
    int full = 4 * GROUPS * Q;
    uint8_t copied[WIDTH] = {0};
    if (count < full) residual = memcpy(copied, residual, (size_t)count);
    bytes r, none = byte(0);
    if (Q == 4) r = load_bytes(residual);
    else
        for (int j = 0; j < GROUPS; j++) memcpy((uint8_t *)&r + 16 * j, residual + 4 * Q * j, (size_t)(4 * Q));
    UNROLLED for (int q = 0; q < Q; q++) {
        words product = (words)zip_pairs(q % 2, zip_bytes(q / 2, r, none), none) * word((uint32_t)l->residual_multiplier);
        sums[q] += (words)((signed_words)(product + word((uint32_t)l->residual_offset)) >> l->residual_shift);
    }
}

/* Results of P pixels and a block from their sums [P][Q]; `stored` pixels and `count` bytes of the block exist. */
INLINE void finish(int P, int Q, const struct int8_layer *l, int64_t slot, words *sums, const uint8_t *residual, uint8_t *y, int32_t stored, int32_t count) {
    enum { FULL = 4 * GROUPS };
    int64_t zero = residual ? 128 : l->y_zero, rounding = (int64_t)((uint64_t)zero << 32) + ((int64_t)1 << 31);
    bytes low = byte(l->low), high = byte(l->high);
    UNROLLED for (int q = 0; q < Q; q++) {
        words shifts = load_words(l->shifts + slot + q * LANES), multipliers = load_words(l->multipliers + slot + q * LANES);
        UNROLLED for (int p = 0; p < P; p++) sums[p * Q + q] = scaled(sums[p * Q + q], shifts, multipliers, rounding);
    }
    UNROLLED for (int p = 0; p < P; p++) {
        int64_t offset = (int64_t)p * l->outputs;
        if (p >= stored) return;
        words *of_pixel = sums + p * Q;
        if (residual) add_residual(Q, l, of_pixel, residual + offset, count);
        bytes v = narrowed(of_pixel[0], of_pixel[1 % Q], of_pixel[2 % Q], of_pixel[3 % Q]);
        store_bytes(y + offset, joined(Q, smaller(larger(v, low), high)), count, Q * FULL);
    }
}

/* ---- products ----------------------------------------------------------------------------------------------------- */

/* Offsets in bytes between the rows and pixels of an image that is read. */
struct strides {
    int64_t image, row, pixel;
};

/* Offset of the run that follows run `run`, from the start of a pixel's taps. */
static int64_t run_offset(const struct int8_layer *l, const struct runs *r, const struct strides *s, int32_t run) {
    int32_t row = r->is_row ? run : run / l->kernel[1], column = r->is_row ? 0 : run % l->kernel[1];
    return row * l->dilation[0] * s->row + column * l->dilation[1] * s->pixel;
}

struct block {
    const int8_t *weights;
    int64_t slot;
    int32_t channel, count;
};

/* The results of a block for P pixels, of which `stored` are stored. */
INLINE void tile(int P, int Q, const struct int8_layer *l, const struct runs *r, const struct strides *s, const struct block *b, const uint8_t *const *at, int32_t stored, const uint8_t *residual, uint8_t *y) {
    words sums[TILE];
    const int8_t *w = b->weights;
    UNROLLED for (int q = 0; q < Q; q++) {
        words start = load_words(l->starts + b->slot + q * LANES);
        UNROLLED for (int p = 0; p < P; p++) sums[p * Q + q] = start;
    }
    int32_t run = 0;
    do {
        int64_t k = run_offset(l, r, s, run);
        int32_t step = r->steps;
        do {
            bytes weights[4];
            UNROLLED for (int q = 0; q < Q; q++) weights[q] = load_bytes(w + q * WIDTH);
            UNROLLED for (int p = 0; p < P; p++) {
                bytes x = four(at[p] + k);
                UNROLLED for (int q = 0; q < Q; q++) sums[p * Q + q] = dot(sums[p * Q + q], x, weights[q]);
            }
            k += 4, w += Q * WIDTH;
        } while (--step);
    } while (++run < r->count);
    finish(P, Q, l, b->slot, sums, residual, y, stored, b->count);
}

typedef void tile_function(const struct int8_layer *, const struct runs *, const struct strides *, const struct block *, const uint8_t *const *, int32_t, const uint8_t *, uint8_t *);

#define FORM(P, Q, name) \
    static void name(const struct int8_layer *l, const struct runs *r, const struct strides *s, const struct block *b, const uint8_t *const *at, int32_t stored, const uint8_t *residual, uint8_t *y) { \
        tile(P, Q, l, r, s, b, at, stored, residual, y); \
    }
FORM(TILE / 4, 4, tile_4) FORM(TILE / 8, 4, half_4) FORM(1, 4, single_4)
FORM(TILE / 2, 2, tile_2) FORM(TILE / 4, 2, half_2) FORM(1, 2, single_2)
FORM(TILE, 1, tile_1) FORM(TILE / 2, 1, half_1) FORM(1, 1, single_1)

static tile_function *const tile_functions[3][5] = {
    {0, tile_1, tile_2, 0, tile_4}, {0, half_1, half_2, 0, half_4}, {0, single_1, single_2, 0, single_4}};

/* A block for `count` pixels. */
static void block_of_pixels(const struct int8_layer *l, const struct runs *r, const struct strides *s, const struct block *b, int Q, const uint8_t *const *at, int32_t count, const uint8_t *residual, uint8_t *y) {
    int32_t full = TILE / Q, half = full / 2;
    for (int32_t p = 0, taken; p < count; p += taken) {
        int32_t left = count - p, kind = left > half ? 0 : left > 1 ? 1 : 2;
        taken = kind == 0 ? full : kind == 1 ? half : 1;
        int64_t offset = (int64_t)p * l->outputs + b->channel;
        tile_functions[kind][Q](l, r, s, b, at + p, left, residual ? residual + offset : residual, y + offset);
    }
}

/* All channels of `count` pixels from pixel `first` on. */
static void pixels(const struct int8_layer *l, const struct int8_sizes *z, const struct strides *s, const uint8_t *x, int64_t first, int32_t count, const uint8_t *residual, uint8_t *y) {
    const uint8_t *base[MOST_PIXELS + TILE], *at[MOST_PIXELS + TILE];
    struct runs r = runs_of(l);
    int32_t lines = lines_of(l), outputs = l->outputs / l->groups, inputs = l->inputs / l->groups;
    int64_t row = first / z->out_width, column = first % z->out_width;
    for (int32_t p = 0; p < count + TILE; p++) {
        base[p] = x + row / z->out_height * s->image + row % z->out_height * l->stride[0] * s->row + column * l->stride[1] * s->pixel;
        if (p < count - 1 && ++column == z->out_width) row++, column = 0;
    }
    for (int32_t g = 0; g < l->groups; g++) {
        for (int32_t p = 0; p < count + TILE; p++) at[p] = base[p] + g * inputs;
        for (int32_t line = 0, Q; line < lines; line += Q) {
            Q = block_size(lines, line);
            struct block b = {.slot = ((int64_t)g * lines + line) * LANES, .channel = g * outputs + line * LANES, .count = outputs - line * LANES};
            b.weights = l->weights + ((int64_t)g * lines + line) * r.count * r.steps * WIDTH;
            block_of_pixels(l, &r, s, &b, Q, at, count, residual ? residual + first * l->outputs : residual, y + first * l->outputs);
        }
    }
}

static int64_t extent(const struct int8_layer *l, int axis, int32_t results) {
    return (int64_t)(results - 1) * l->stride[axis] + (int64_t)l->dilation[axis] * (l->kernel[axis] - 1) + 1;
}

/* Whether the image is copied with its padding, and with bytes to spare behind it. */
static int is_copied(const struct int8_layer *l, const struct int8_sizes *z) {
    return l->before[0] || l->before[1] || extent(l, 0, z->out_height) > z->height || extent(l, 1, z->out_width) > z->width || runs_of(l).length % 4;
}

static struct strides strides_of(const struct int8_layer *l, int64_t height, int64_t width) {
    return (struct strides){height * width * l->inputs, width * l->inputs, l->inputs};
}

static void copy_padded(const struct int8_layer *l, const struct int8_sizes *z, const uint8_t *x, uint8_t *to) {
    int64_t height = extent(l, 0, z->out_height), width = extent(l, 1, z->out_width), c = l->inputs;
    int64_t left = l->before[1], columns = width - left < z->width ? width - left : z->width;
    for (int32_t n = 0; n < z->images; n++)
        for (int64_t row = 0; row < height; row++, to += width * c) {
            int64_t from = row - l->before[0];
            if (from < 0 || from >= z->height || columns < 0) {
                memset(to, l->x_zero, (size_t)(width * c));
                continue;
            }
            memset(to, l->x_zero, (size_t)(left * c));
            memcpy(to + left * c, x + ((int64_t)n * z->height + from) * z->width * c, (size_t)(columns * c));
            memset(to + (left + columns) * c, l->x_zero, (size_t)((width - left - columns) * c));
        }
    memset(to, 0, 4);
}

static void product(const struct int8_layer *l, const struct int8_sizes *z, const uint8_t *x, const uint8_t *residual, uint8_t *y, uint8_t *scratch, int threads) {
    struct strides s = strides_of(l, z->height, z->width);
    if (is_copied(l, z)) {
        copy_padded(l, z, x, scratch);
        x = scratch;
        s = strides_of(l, extent(l, 0, z->out_height), extent(l, 1, z->out_width));
    }
    int64_t all = (int64_t)z->images * z->out_height * z->out_width, chunks = (all + MOST_PIXELS - 1) / MOST_PIXELS;
    if (chunks < threads) chunks = threads;
    int64_t size = ((all + chunks - 1) / chunks + TILE - 1) / TILE * TILE;
    size = size < MOST_PIXELS ? size : MOST_PIXELS;
#ifdef _OPENMP
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
#endif
    for (int64_t first = 0; first < all; first += size) pixels(l, z, &s, x, first, (int32_t)(all - first < size ? all - first : size), residual, y);
}

/* ---- depthwise convolutions --------------------------------------------------------------------------------------- */

/* The taps of the pixels of one row of results. */
struct taps {
    const uint8_t *at[MOST_TAPS + 4]; /* of the current pixel */
    int64_t step[MOST_TAPS + 4];      /* to the next pixel, where all columns exist */
    uint8_t copies[MOST_TAPS][WIDTH];
};

/* All channels of P pixels, whose taps are `at[tap]` and `step[tap]` behind it. */
INLINE void depthwise_pixels(int P, const struct int8_layer *l, const struct taps *t, const uint8_t *residual, uint8_t *y) {
    int32_t taps = taps_of(l), channels = l->inputs;
    const int8_t *w = l->weights;
    for (int32_t block = 0; block < depthwise_blocks(l); block++) {
        int64_t first = depthwise_first(l, block), slot = (int64_t)block * WIDTH;
        words sums[8];
        UNROLLED for (int i = 0; i < 4; i++) {
            words start = load_words(l->starts + slot + i * LANES);
            UNROLLED for (int p = 0; p < P; p++) sums[4 * p + i] = start;
        }
        int32_t tap = 0;
        do {
            UNROLLED for (int p = 0; p < P; p++) {
                bytes x[4];
                UNROLLED for (int k = 0; k < 4; k++) x[k] = load_bytes(t->at[tap + k] + first + (p ? t->step[tap + k] : 0));
                UNROLLED for (int i = 0; i < 4; i++) {
                    bytes low = zip_bytes(i / 2, x[0], x[1]), high = zip_bytes(i / 2, x[2], x[3]);
                    sums[4 * p + i] = dot(sums[4 * p + i], zip_pairs(i % 2, low, high), load_bytes(w + i * WIDTH));
                }
            }
            tap += 4, w += 4 * WIDTH;
        } while (tap < taps);
        finish(P, 4, l, slot, sums, residual ? residual + first : residual, y + first, P, channels);
    }
}

/* Sets the taps of the pixel in column `column`; `rows` are the rows of the kernel, null outside of the image. */
static void set_taps(const struct int8_layer *l, const struct int8_sizes *z, struct taps *t, const uint8_t *const *rows, int32_t column, const uint8_t *padding, const uint8_t *end) {
    int32_t tap = 0;
    for (int32_t ky = 0; ky < l->kernel[0]; ky++)
        for (int32_t kx = 0; kx < l->kernel[1]; kx++, tap++) {
            int32_t from = column * l->stride[1] - l->before[1] + kx * l->dilation[1];
            int is_inside = rows[ky] && from >= 0 && from < z->width;
            t->at[tap] = is_inside ? rows[ky] + (int64_t)from * l->inputs : padding;
            t->step[tap] = is_inside ? (int64_t)l->stride[1] * l->inputs : 0;
            if (is_inside && end - t->at[tap] < WIDTH) t->at[tap] = memcpy(t->copies[tap], t->at[tap], (size_t)l->inputs);
        }
    for (; tap % 4; tap++) t->at[tap] = padding, t->step[tap] = 0;
}

/* The results of columns `column` to `stop` of a row. */
static void depthwise_row(const struct int8_layer *l, const struct int8_sizes *z, const uint8_t *x, int64_t row, int32_t column, int32_t stop, const uint8_t *residual, uint8_t *y, const uint8_t *padding) {
    struct taps t;
    const uint8_t *rows[MOST_TAPS], *image = x + row / z->out_height * z->height * z->width * l->inputs;
    const uint8_t *end = x + (int64_t)z->images * z->height * z->width * l->inputs;
    int64_t width = (int64_t)z->width * l->inputs, first = row * z->out_width;
    int32_t reach = (l->kernel[1] - 1) * l->dilation[1], is_last = 0, is_set = 0;
    for (int32_t ky = 0; ky < l->kernel[0]; ky++) {
        int64_t from = row % z->out_height * l->stride[0] - l->before[0] + ky * l->dilation[0];
        rows[ky] = from >= 0 && from < z->height ? image + from * width : 0;
        if (rows[ky] && end - (rows[ky] + width) < WIDTH) is_last = l->inputs < WIDTH;
    }
    for (int32_t taken; column < stop; column += taken) {
        int64_t left = (int64_t)column * l->stride[1] - l->before[1], offset = (first + column) * l->inputs;
        int is_inner = left >= 0 && left + reach < z->width && !is_last;
        taken = is_inner && column + 1 < stop && left + l->stride[1] + reach < z->width ? 2 : 1;
        if (!is_set) set_taps(l, z, &t, rows, column, padding, end);
        if (taken == 2) depthwise_pixels(2, l, &t, residual ? residual + offset : residual, y + offset);
        else depthwise_pixels(1, l, &t, residual ? residual + offset : residual, y + offset);
        int64_t next = left + (int64_t)taken * l->stride[1];
        is_set = is_inner && next + reach < z->width;
        if (is_set)
            for (int32_t tap = 0; tap < (taps_of(l) + 3) / 4 * 4; tap++) t.at[tap] += taken * t.step[tap];
    }
}

/* All channels of two rows and P columns of a 3x3 convolution, of vectors whose taps are `at[row][column]`. */
INLINE void pair_pixels(int P, const struct int8_layer *l, const uint8_t *at[4][4], int64_t row, const uint8_t *residual, uint8_t *y) {
    const int8_t *w = l->weights + quad_bytes(l);
    for (int32_t block = 0; block < depthwise_blocks(l); block++, w += 3 * 2 * 4 * WIDTH) {
        int64_t first = depthwise_first(l, block), slot = (int64_t)block * WIDTH;
        words sums[2][8];
        UNROLLED for (int i = 0; i < 4; i++) {
            words start = load_words(l->starts + slot + i * LANES);
            UNROLLED for (int p = 0; p < P; p++) sums[0][4 * p + i] = sums[1][4 * p + i] = start;
        }
        UNROLLED for (int c = 0; c < P + 2; c++) {
            bytes x[4];
            UNROLLED for (int k = 0; k < 4; k++) x[k] = load_bytes(at[k][c] + first);
            UNROLLED for (int i = 0; i < 4; i++) {
                bytes zipped = zip_pairs(i % 2, zip_bytes(i / 2, x[0], x[1]), zip_bytes(i / 2, x[2], x[3]));
                UNROLLED for (int p = 0; p < P; p++)
                    if (c >= p && c < p + 3)
                        UNROLLED for (int r = 0; r < 2; r++) sums[r][4 * p + i] = dot(sums[r][4 * p + i], zipped, load_bytes(w + (((c - p) * 2 + r) * 4 + i) * WIDTH));
            }
        }
        const uint8_t *added = residual ? residual + first : residual;
        finish(P, 4, l, slot, sums[0], added, y + first, P, WIDTH);
        finish(P, 4, l, slot, sums[1], added ? added + row : added, y + row + first, P, WIDTH);
    }
}

/* Two rows of results from row `row` of an image on. */
static void depthwise_pair(const struct int8_layer *l, const struct int8_sizes *z, const uint8_t *x, int64_t image, int32_t row, const uint8_t *residual, uint8_t *y, const uint8_t *padding) {
    int64_t c = l->inputs, width = z->width * c, first = image * z->out_height + row;
    int32_t pixels = c < WIDTH ? WIDTH / (int32_t)c : 1, columns = c < WIDTH ? pixels : 2, column = 0, stop = z->out_width;
    const uint8_t *rows[4], *at[4][4], *end = x + z->images * z->height * width;
    for (int k = 0; k < 4; k++) {
        int32_t from = row - l->before[0] + k;
        rows[k] = from >= 0 && from < z->height ? x + (image * z->height + from) * width : 0;
        if (pixels > 1 && rows[k] && end - rows[k] < width + WIDTH) stop = 0; /* vectors would reach beyond the image */
    }
    if (pixels > 1 && stop) { /* vectors have several pixels, none of which may be padding */
        int32_t inner = l->before[1], most = z->width + l->before[1] - 2;
        stop = stop < most ? stop : most;
        for (int r = 0; r < 2; r++) depthwise_row(l, z, x, first + r, 0, inner < stop ? inner : 0, residual, y, padding);
        column = inner < stop ? inner : 0;
        if (column < inner) stop = 0;
    }
    for (; column + columns <= stop; column += columns) {
        for (int k = 0; k < 4; k++)
            for (int i = 0; i < 4; i++) {
                int32_t from = column - l->before[1] + i;
                at[k][i] = rows[k] && from >= 0 && from < z->width ? rows[k] + from * c : padding;
            }
        int64_t offset = (first * z->out_width + column) * c;
        if (pixels > 1) pair_pixels(1, l, at, z->out_width * c, residual ? residual + offset : residual, y + offset);
        else pair_pixels(2, l, at, z->out_width * c, residual ? residual + offset : residual, y + offset);
    }
    for (int r = 0; r < 2; r++) depthwise_row(l, z, x, first + r, column, z->out_width, residual, y, padding);
}

static void depthwise(const struct int8_layer *l, const struct int8_sizes *z, const uint8_t *x, const uint8_t *residual, uint8_t *y, uint8_t *scratch, int threads) {
    int is_paired = has_pairs(l) && z->out_height > 1;
    int64_t steps = is_paired ? z->out_height / 2 : z->out_height, all = z->images * steps;
    memset(scratch, l->x_zero, (size_t)(l->inputs + WIDTH));
    (void)threads;
#ifdef _OPENMP
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
#endif
    for (int64_t step = 0; step < all; step++) {
        int32_t row = (int32_t)(step % steps) * 2;
        if (!is_paired) {
            depthwise_row(l, z, x, step, 0, z->out_width, residual, y, scratch);
            continue;
        }
        depthwise_pair(l, z, x, step / steps, row, residual, y, scratch);
        if (row + 3 == z->out_height) depthwise_pair(l, z, x, step / steps, row + 1, residual, y, scratch);
    }
}

/* ---- calls -------------------------------------------------------------------------------------------------------- */

/* Bytes of scratch memory that a call takes. */
int64_t int8_layer_scratch(const struct int8_layer *l, const struct int8_sizes *z) {
    if (is_depthwise(l)) return l->inputs + WIDTH;
    return is_copied(l, z) ? z->images * strides_of(l, extent(l, 0, z->out_height), extent(l, 1, z->out_width)).image + 4 : 0;
}

/* y [images, out_height, out_width, outputs] of x [images, height, width, inputs]; a residual shaped like y, or null. */
void int8_layer(const struct int8_layer *l, const struct int8_sizes *z, const uint8_t *x, const uint8_t *residual, uint8_t *y, uint8_t *scratch, int threads) {
    (is_depthwise(l) ? depthwise : product)(l, z, x, residual, y, scratch, threads);
}

/* ---- elementwise functions ---------------------------------------------------------------------------------------- */

/* Reals to bytes: x / scale, halves away from zero, plus `zero`, within `low` and `high`; NaN gives `zero`. */
INLINE words rounded(const float *x, float scale, int32_t zero) {
    floats ratio, half, limit = (floats){0} + 1e9f;
    memcpy(&ratio, x, sizeof ratio);
    ratio /= scale;
    words is_number = (words)(ratio == ratio), is_below, is_above;
    ratio = (floats)((words)ratio & is_number);
    half = (floats)(((words)ratio & word(1u << 31)) | (words)((floats){0} + 0.5f));
    ratio += half;
    is_below = (words)(ratio < -limit), is_above = (words)(ratio > limit);
    ratio = (floats)(((words)ratio & ~is_below & ~is_above) | ((words)limit & is_above) | ((words)-limit & is_below));
    return (words)__builtin_convertvector(ratio, signed_words) + word((uint32_t)zero);
}

static void quantize_run(const float *x, uint8_t *y, int64_t count, float scale, int32_t zero, int32_t low, int32_t high) {
    for (int64_t i = 0; i < count; i += WIDTH) {
        float copied[WIDTH] = {0};
        int64_t left = count - i;
        if (left < WIDTH) memcpy(copied, x + i, sizeof(float) * (size_t)left);
        const float *from = left < WIDTH ? copied : x + i;
        words v[4];
        for (int k = 0; k < 4; k++) v[k] = rounded(from + k * LANES, scale, zero);
        bytes b = in_order(narrowed(v[0], v[1], v[2], v[3]));
        store_bytes(y + i, smaller(larger(b, byte(low)), byte(high)), (int32_t)(left < WIDTH ? left : WIDTH), WIDTH);
    }
}

/* y [images, pixels, channels] of x [images, channels, pixels]. */
void int8_quantize(const float *x, uint8_t *y, int64_t images, int64_t channels, int64_t pixels, float scale, int32_t zero, int32_t low, int32_t high) {
    enum { RUN = 256 };
    uint8_t run[RUN];
    if (channels == 1) {
        quantize_run(x, y, images * pixels, scale, zero, low, high);
        return;
    }
    for (int64_t n = 0; n < images; n++, x += channels * pixels, y += channels * pixels)
        for (int64_t c = 0; c < channels; c++)
            for (int64_t first = 0; first < pixels; first += RUN) {
                int64_t count = pixels - first < RUN ? pixels - first : RUN;
                quantize_run(x + c * pixels + first, run, count, scale, zero, low, high);
                for (int64_t i = 0; i < count; i++) y[(first + i) * channels + c] = run[i];
            }
}

/* (x - zero) * scale. */
void int8_dequantize(const uint8_t *x, float *y, int64_t count, float scale, int32_t zero) {
    for (int64_t i = 0; i < count; i++) y[i] = (float)(x[i] - zero) * scale;
}

/* table[x]. */
void int8_lookup(const uint8_t *table, const uint8_t *x, uint8_t *y, int64_t count) {
    int64_t i = 0;
#if defined(AVX512) && defined(__AVX512VBMI__)
    __m512i t[4];
    for (int k = 0; k < 4; k++) t[k] = (__m512i)load_bytes(table + 64 * k);
    for (; i + WIDTH <= count; i += WIDTH) {
        __m512i index = (__m512i)load_bytes(x + i);
        __m512i low = _mm512_permutex2var_epi8(t[0], index, t[1]), high = _mm512_permutex2var_epi8(t[2], index, t[3]);
        store_bytes(y + i, (bytes)_mm512_mask_blend_epi8(_mm512_movepi8_mask(index), low, high), WIDTH, WIDTH);
    }
#endif
    for (; i < count; i++) y[i] = table[x[i]];
}

INLINE uint8_t within(int32_t value, int32_t low, int32_t high) { return (uint8_t)(value < low ? low : value > high ? high : value); }

/* ((a * multipliers[0] + b * multipliers[1] + offset) >> shift) + 128, within `low` and `high`. */
void int8_add(const uint8_t *a, const uint8_t *b, uint8_t *y, int64_t count, const int32_t *multipliers, int32_t offset, int32_t shift, int32_t low, int32_t high) {
    uint32_t of_a = (uint32_t)multipliers[0], of_b = (uint32_t)multipliers[1];
    for (int64_t i = 0; i < count; i++) y[i] = within(((int32_t)(a[i] * of_a + b[i] * of_b + (uint32_t)offset) >> shift) + 128, low, high);
}

/* requant((a - zeros[0]) * (b - zeros[1]), multiplier, shift) + zeros[2], within `low` and `high`. */
void int8_multiply(const uint8_t *a, const uint8_t *b, uint8_t *y, int64_t count, const int32_t *zeros, int32_t multiplier, int32_t shift, int32_t low, int32_t high) {
    int32_t of_a = zeros[0], of_b = zeros[1], of_y = zeros[2];
    for (int64_t i = 0; i < count; i++) {
        int64_t product = (int64_t)((a[i] - of_a) * (b[i] - of_b)) * ((int64_t)1 << shift) * multiplier;
        y[i] = within((int32_t)((product + ((int64_t)1 << 31)) >> 32) + of_y, low, high);
    }
}

const char *int8_layers_instruction_set(void) { return INSTRUCTION_SET; }
