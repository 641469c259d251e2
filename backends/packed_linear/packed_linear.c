/* Product of float activations with a matrix of packed integers, on a CPU.
 *
 *     y[t][r] = sum over groups g of  scale[r][g] * sum over columns c of g of  level[r][c] * x[t][c]
 *
 * Levels are signed integers of 2, 3, 4, 5, 6 or 8 bits, stored as code = level + 2^(bits - 1). `group` consecutive
 * columns share a scale; in the packed form each group is padded to a multiple of 16 columns.
 *
 * One packed form serves all instruction sets. Rows are in blocks of 16, columns in steps of 4: a line of 64 bytes has
 * the codes, or a part of their bits, of 16 rows x 4 columns, row after row. So a 32-bit lane belongs to one row, and
 * no sum crosses lanes. 16 columns take the planes
 *     whole bytes (8 bits)     4 lines: line j has columns 4j..4j+3
 *     nibbles (4, 5, 6 bits)   2 lines: line i has columns 8i..8i+3 in its low nibbles, 8i+4..8i+7 in its high ones
 *     crumbs (2, 3, 6 bits)    1 line:  bits 2j and 2j+1 of a byte belong to columns 4j..4j+3
 *     single bits (3, 5 bits)  4 x 8 bytes: bit b of group j belongs to byte b of the line of columns 4j..4j+3
 * in this order; the first plane has the low bits. Scales are stored [rows / 16][groups][16].
 *
 * With integer activations a token is rounded to 8 bits, q = rint(x * 127 / max|x|). Integer sums are exact, and the
 * sums over groups are fused multiply-adds in one order, so all instruction sets give the same bits as the definition
 * `packed_linear_reference`. With float activations the products are fused multiply-adds in one order too.
 */
#include "packed_linear.h"

#include <math.h>
#include <string.h>

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__ARM_FEATURE_DOTPROD)
#include <arm_neon.h>
#endif

#define INLINE static inline __attribute__((always_inline))

enum { ROWS = 16, LINE = 64, STEP = 16 };
enum scale_type { FLOAT32, FLOAT16, BFLOAT16 };

/* Tokens as the product reads them: group after group, each padded to whole steps. With integer activations `codes`,
 * `scale` and `starts`, with float ones `values` and `offsets`. */
struct tokens {
    int8_t *codes;   /* [tokens][groups][padded] */
    float *values;   /* the same */
    float *scale;    /* [tokens] */
    int32_t *starts; /* [tokens][groups]: -2^(bits-1) * sum of the group's codes, for the offset in the weight's codes */
    float *offsets;  /* the same with values */
    int32_t groups, padded;
};

/* ---- vectors of one instruction set: `PARTS` of them make a line ------------------------------------------------- */

#if defined(__AVX512VNNI__) && defined(__AVX512BW__) && !defined(PACKED_LINEAR_AVX2)
#define AVX512
#define INSTRUCTION_SET "avx512-vnni"
enum { WIDTH = 64, TILE = 8, TAKES_UNSIGNED_BYTES = 1 };
#elif defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#define AVX2
#define INSTRUCTION_SET "avx2"
enum { WIDTH = 32, TILE = 4, TAKES_UNSIGNED_BYTES = 0 };
#elif defined(__ARM_FEATURE_DOTPROD)
#define NEON
#define INSTRUCTION_SET "neon-dotprod"
enum { WIDTH = 16, TILE = 8, TAKES_UNSIGNED_BYTES = 0 };
#else
#define INSTRUCTION_SET "c"
enum { WIDTH = 16, TILE = 1, TAKES_UNSIGNED_BYTES = 1 };
#endif

enum { PARTS = LINE / WIDTH, LANES = WIDTH / 4 };
typedef uint8_t bytes __attribute__((vector_size(WIDTH)));
typedef uint16_t halves __attribute__((vector_size(WIDTH)));
typedef int32_t words __attribute__((vector_size(WIDTH)));
typedef uint32_t unsigned_words __attribute__((vector_size(WIDTH)));
typedef float floats __attribute__((vector_size(WIDTH)));

INLINE bytes load_bytes(const void *from) {
    bytes v;
    memcpy(&v, from, sizeof v);
    return v;
}

INLINE floats load_floats(const void *from) {
    floats v;
    memcpy(&v, from, sizeof v);
    return v;
}

INLINE words word(int32_t value) { return (words){0} + value; }
INLINE floats number(float value) { return (floats){0} + value; }
INLINE bytes byte(int value) { return (bytes){0} + (uint8_t)value; }

/* Bytes of a vector, moved right within 16-bit halves: the caller masks what comes in from the neighbour. */
INLINE bytes shifted(bytes v, int by) { return (bytes)((halves)v >> by); }

/* Four activations of one token in every lane. */
INLINE bytes four(const int8_t *from) {
    int32_t v;
    memcpy(&v, from, 4);
    return (bytes)word(v);
}

/* sums + products of four codes and four activations in each lane. Codes are unsigned; codes of 8 bits are signed levels
 * where the instruction set does not take unsigned bytes. */
INLINE words dot(int bits, words sums, bytes codes, bytes x) {
#if defined(AVX512)
    (void)bits;
    return (words)_mm512_dpbusd_epi32((__m512i)sums, (__m512i)codes, (__m512i)x);
#elif defined(AVX2)
    __m256i a = (__m256i)codes, b = (__m256i)x;
    if (bits == 8) { /* pairs of products stay within 16 bits: |level| <= 128, |x| <= 127 */
        b = _mm256_sign_epi8(b, a);
        a = _mm256_abs_epi8(a);
    }
    return sums + (words)_mm256_madd_epi16(_mm256_maddubs_epi16(a, b), _mm256_set1_epi16(1));
#elif defined(NEON)
    (void)bits;
    return (words)vdotq_s32((int32x4_t)sums, (int8x16_t)codes, (int8x16_t)x);
#else
    (void)bits;
    for (int lane = 0; lane < LANES; lane++)
        for (int i = 0; i < 4; i++) sums[lane] += codes[4 * lane + i] * (int8_t)x[4 * lane + i];
    return sums;
#endif
}

/* a * b + c, rounded once. */
INLINE floats fused(floats a, floats b, floats c) {
#if defined(AVX512)
    return (floats)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(AVX2)
    return (floats)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(NEON)
    return (floats)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
    for (int lane = 0; lane < LANES; lane++) c[lane] = fmaf(a[lane], b[lane], c[lane]);
    return c;
#endif
}

/* `set` in each byte whose bit is 1, in part `part` of a line; `bits` are the 64 bits of the line. */
INLINE bytes spread_bits(const uint8_t *bits, int part, int set) {
#if defined(AVX512)
    uint64_t mask;
    (void)part;
    memcpy(&mask, bits, 8);
    return (bytes)_mm512_maskz_set1_epi8((__mmask64)mask, (char)set);
#else
    bytes spread, one = (bytes)((uint64_t __attribute__((vector_size(WIDTH)))){0} + 0x8040201008040201u);
#if defined(AVX2)
    int32_t word;
    memcpy(&word, bits + 4 * part, 4);
    spread = (bytes)_mm256_shuffle_epi8(_mm256_set1_epi32(word), _mm256_set_epi64x(0x0303030303030303, 0x0202020202020202, 0x0101010101010101, 0));
#elif defined(NEON)
    spread = (bytes)vcombine_u8(vdup_n_u8(bits[2 * part]), vdup_n_u8(bits[2 * part + 1]));
#else
    for (int i = 0; i < WIDTH; i++) spread[i] = bits[(WIDTH * part + i) / 8];
#endif
    return (bytes)((spread & one) == one) & byte(set);
#endif
}

/* ---- scales ------------------------------------------------------------------------------------------------------- */

INLINE float half_to_float(uint16_t half) {
    uint32_t sign = (uint32_t)(half & 0x8000u) << 16, magnitude = half & 0x7fffu, word;
    float value;
    if (magnitude >= 0x7c00u) word = sign | 0x7f800000u | (magnitude & 0x3ffu) << 13;
    else if (magnitude >= 0x400u) word = sign | ((magnitude << 13) + (112u << 23));
    else { /* below the normal numbers: magnitude * 2^-24 */
        value = (float)magnitude * 0x1p-24f;
        return sign ? -value : value;
    }
    memcpy(&value, &word, 4);
    return value;
}

INLINE float scale_at(const void *scales, int type, int64_t index) {
    float value;
    uint32_t word;
    if (type == FLOAT32) return ((const float *)scales)[index];
    if (type == FLOAT16) return half_to_float(((const uint16_t *)scales)[index]);
    word = (uint32_t)((const uint16_t *)scales)[index] << 16;
    memcpy(&value, &word, 4);
    return value;
}

INLINE floats load_scales(const void *scales, int type, int64_t index) {
    if (type == FLOAT32) return load_floats((const float *)scales + index);
#if defined(AVX512)
    if (type == FLOAT16) return (floats)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)((const uint16_t *)scales + index)));
#elif defined(AVX2)
    if (type == FLOAT16) return (floats)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)((const uint16_t *)scales + index)));
#elif defined(NEON)
    if (type == FLOAT16) return (floats)vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16((const uint16_t *)scales + index)));
#endif
    floats v = number(0);
    for (int lane = 0; lane < LANES; lane++) v[lane] = scale_at(scales, type, index + lane);
    return v;
}

/* ---- activations -------------------------------------------------------------------------------------------------- */

/* The largest magnitude of a token as the bits of a float: NaN and infinity are larger than all numbers. */
static float largest_magnitude(const float *x, int32_t count) {
    uint32_t most = 0, bits;
    float value;
    for (int32_t i = 0; i < count; i++) {
        memcpy(&bits, x + i, 4);
        bits &= 0x7fffffffu;
        most = bits > most ? bits : most;
    }
    memcpy(&value, &most, 4);
    return value;
}

/* Codes of a token. One that is not finite gives NaN, one below 1e-30 gives 0. */
static void round_token(const struct packed_linear *w, const struct tokens *to, int64_t t, const float *x) {
    int8_t *codes = to->codes + t * to->groups * to->padded;
    float most = largest_magnitude(x, w->columns);
    float inverse = most >= 1e-30f && most <= 3.4028235e38f ? 127.0f / most : 0.0f;
    to->scale[t] = inverse > 0 ? most / 127.0f : most >= 1e-30f || most != most ? NAN : 0.0f;
    int32_t group = w->group, padded = to->padded; /* copies: codes are bytes, which may be part of anything */
    for (int32_t g = 0; g < to->groups; g++, x += group, codes += padded) {
        int32_t sum = 0;
        memset(codes, 0, (size_t)padded);
        if (inverse > 0)
            for (int32_t c = 0; c < group; c++) codes[c] = (int8_t)rintf(x[c] * inverse);
        for (int32_t c = 0; c < group; c++) sum += codes[c];
        to->starts[t * to->groups + g] = -(1 << (w->bits - 1)) * sum;
    }
}

static void copy_token(const struct packed_linear *w, const struct tokens *to, int64_t t, const float *x) {
    float *values = to->values + t * to->groups * to->padded;
    for (int32_t g = 0; g < to->groups; g++, x += w->group, values += to->padded) {
        float sum = 0;
        for (int32_t c = 0; c < w->group; c++) sum += x[c];
        memcpy(values, x, sizeof(float) * (size_t)w->group);
        memset(values + w->group, 0, sizeof(float) * (size_t)(to->padded - w->group));
        to->offsets[t * to->groups + g] = -(float)(1 << (w->bits - 1)) * sum;
    }
}

/* ---- the product -------------------------------------------------------------------------------------------------- */

/* Bytes that 16 rows x 16 columns take. */
INLINE int step_bytes(int bits) { return 2 * STEP * bits; }

/* The codes of columns 4j..4j+3 of a step, in rows of part `part`. */
INLINE bytes codes_of(int bits, const uint8_t *step, int j, int part) {
    const uint8_t *line = step + WIDTH * part;
    if (bits == 8) return load_bytes(line + LINE * j) ^ byte(TAKES_UNSIGNED_BYTES ? 0 : 0x80);
    bytes low, high;
    if (bits >= 4) low = shifted(load_bytes(line + LINE * (j / 2)), 4 * (j % 2)) & byte(15);
    else low = shifted(load_bytes(line), 2 * j) & byte(3);
    if (bits == 6) high = (bytes)((halves)(shifted(load_bytes(line + 2 * LINE), 2 * j) & byte(3)) << 4);
    else if (bits == 5) high = spread_bits(step + 2 * LINE + 8 * j, part, 16);
    else if (bits == 3) high = spread_bits(step + LINE + 8 * j, part, 4);
    else return low;
    return low | high;
}

/* At most `count` outputs of a vector of rows. */
INLINE void store(float *y, floats v, int count) {
    if (count >= LANES) memcpy(y, &v, sizeof v);
    else if (count > 0) memcpy(y, &v, sizeof(float) * (size_t)count);
}

/* The outputs of a block of 16 rows for `T` tokens from token `t` on. */
INLINE void tile(int bits, int is_float, int T, const struct packed_linear *w, const struct tokens *x, int32_t block, int64_t t, float *y) {
    int32_t groups = x->groups, steps = x->padded / STEP, length = groups * x->padded;
    const uint8_t *at = w->codes + (int64_t)block * groups * steps * step_bytes(bits);
    floats sums[TILE][PARTS];
    for (int i = 0; i < T; i++)
        for (int h = 0; h < PARTS; h++) sums[i][h] = number(0);
    for (int32_t g = 0; g < groups; g++, at += steps * step_bytes(bits))
        for (int h = 0; h < PARTS; h++) {
            words whole[TILE][2];
            floats real[TILE];
            for (int i = 0; i < T; i++) {
                int64_t index = (t + i) * groups + g;
                whole[i][0] = word(is_float || (bits == 8 && !TAKES_UNSIGNED_BYTES) ? 0 : x->starts[index]);
                whole[i][1] = word(0);
                real[i] = number(is_float ? x->offsets[index] : 0);
            }
            const uint8_t *step = at;
            for (int32_t s = 0; s < steps; s++, step += step_bytes(bits)) {
                if (T == 1 && h == 0)
                    for (int line = 0; line < step_bytes(bits); line += LINE) __builtin_prefetch(step + 2048 + line);
                for (int j = 0; j < 4; j++) {
                    bytes codes = codes_of(bits, step, j, h);
                    int64_t from = t * length + g * x->padded + STEP * s + 4 * j;
                    if (!is_float)
                        for (int i = 0; i < T; i++) {
                            words *into = &whole[i][T == 1 ? j & 1 : 0];
                            *into = dot(bits, *into, codes, four(x->codes + from + (int64_t)i * length));
                        }
                    else
                        for (int b = 0; b < 4; b++) {
                            words one = (words)((unsigned_words)codes >> (8 * b)) & word(255);
                            if (bits == 8 && !TAKES_UNSIGNED_BYTES) one ^= word(0x80);
                            for (int i = 0; i < T; i++)
                                real[i] = fused(__builtin_convertvector(one, floats), number(x->values[from + (int64_t)i * length + b]), real[i]);
                        }
                }
            }
            floats scale = load_scales(w->scales, w->scale_type, ((int64_t)block * groups + g) * ROWS + LANES * h);
            for (int i = 0; i < T; i++) {
                if (!is_float) real[i] = __builtin_convertvector(whole[i][0] + whole[i][1], floats);
                sums[i][h] = fused(real[i], scale, sums[i][h]);
            }
        }
    for (int i = 0; i < T; i++)
        for (int h = 0; h < PARTS; h++) {
            int32_t row = block * ROWS + LANES * h;
            floats v = is_float ? sums[i][h] : sums[i][h] * number(x->scale[t + i]);
            store(y + (t + i) * w->rows + row, v, w->rows - row);
        }
}

INLINE void rows_of_block(int bits, int is_float, const struct packed_linear *w, const struct tokens *x, int32_t block, int64_t tokens, float *y) {
    int64_t t = 0;
    for (; t + TILE <= tokens; t += TILE) tile(bits, is_float, TILE, w, x, block, t, y);
    for (; TILE > 2 && t + 2 <= tokens; t += 2) tile(bits, is_float, 2, w, x, block, t, y);
    for (; t < tokens; t++) tile(bits, is_float, 1, w, x, block, t, y);
}

#define FORM(bits, is_float, name) \
    static void name(const struct packed_linear *w, const struct tokens *x, int32_t block, int64_t tokens, float *y) { \
        rows_of_block(bits, is_float, w, x, block, tokens, y); \
    }
FORM(2, 0, block_2) FORM(3, 0, block_3) FORM(4, 0, block_4) FORM(5, 0, block_5) FORM(6, 0, block_6) FORM(8, 0, block_8)
FORM(2, 1, float_block_2) FORM(3, 1, float_block_3) FORM(4, 1, float_block_4) FORM(5, 1, float_block_5)
FORM(6, 1, float_block_6) FORM(8, 1, float_block_8)

typedef void block_function(const struct packed_linear *, const struct tokens *, int32_t, int64_t, float *);
static block_function *const block_functions[2][9] = {
    {0, 0, block_2, block_3, block_4, block_5, block_6, 0, block_8},
    {0, 0, float_block_2, float_block_3, float_block_4, float_block_5, float_block_6, 0, float_block_8},
};

/* The scratch memory as the arrays of `struct tokens`. */
static struct tokens lay_out(const struct packed_linear *w, int64_t tokens, uint8_t *scratch) {
    struct tokens x = {.groups = w->columns / w->group, .padded = (w->group + STEP - 1) / STEP * STEP};
    x.scale = (float *)scratch;
    x.starts = (int32_t *)(x.scale + tokens);
    x.offsets = (float *)x.starts;
    x.codes = (int8_t *)(x.starts + tokens * x.groups);
    x.values = (float *)x.codes;
    return x;
}

static int32_t blocks_of(const struct packed_linear *w) { return (w->rows + ROWS - 1) / ROWS; }

int64_t packed_linear_scratch(const struct packed_linear *w, int64_t tokens, int is_float) {
    int64_t groups = w->columns / w->group, padded = (w->group + STEP - 1) / STEP * STEP;
    return tokens * (4 + 4 * groups + groups * padded * (is_float ? 4 : 1));
}

void packed_linear(const struct packed_linear *w, const float *x, int64_t tokens, int is_float, float *y, uint8_t *scratch, int threads) {
    packed_linear_joined(w, 1, x, tokens, is_float, &y, scratch, threads);
}

void packed_linear_joined(const struct packed_linear *w, int count, const float *x, int64_t tokens, int is_float, float *const *y, uint8_t *scratch, int threads) {
    struct tokens laid = lay_out(w, tokens, scratch);
    block_function *of_block = block_functions[is_float != 0][w->bits];
    int32_t blocks = 0;
    for (int i = 0; i < count; i++) blocks += blocks_of(w + i);
    for (int64_t t = 0; t < tokens; t++) (is_float ? copy_token : round_token)(w, &laid, t, x + t * w->columns);
    (void)threads;
#ifdef _OPENMP
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
#endif
    for (int32_t index = 0; index < blocks; index++) {
        int32_t block = index;
        int i = 0;
        for (; block >= blocks_of(w + i); i++) block -= blocks_of(w + i);
        of_block(w + i, &laid, block, tokens, y[i]);
    }
}

/* ---- the definition ----------------------------------------------------------------------------------------------- */

/* The code of a row and column inside a step. */
static int code_at(int bits, const uint8_t *step, int row, int column) {
    int j = column / 4, byte = 4 * row + column % 4, code = 0, at = 0;
    if (bits == 8) return step[LINE * j + byte];
    if (bits >= 4) {
        code = step[LINE * (j / 2) + byte] >> 4 * (j % 2) & 15;
        at = 4, step += 2 * LINE;
    }
    if (bits == 2 || bits == 3 || bits == 6) {
        code |= (step[byte] >> 2 * j & 3) << at;
        at += 2, step += LINE;
    }
    if (bits == 3 || bits == 5) code |= (step[8 * j + byte / 8] >> byte % 8 & 1) << at;
    return code;
}

void packed_linear_row(const struct packed_linear *w, int64_t row, float *y) {
    int32_t groups = w->columns / w->group, steps = (w->group + STEP - 1) / STEP, offset = 1 << (w->bits - 1);
    int64_t first = row / ROWS * groups;
    for (int64_t g = first; g < first + groups; g++, y += w->group) {
        const uint8_t *codes = w->codes + g * steps * step_bytes(w->bits);
        float scale = scale_at(w->scales, w->scale_type, g * ROWS + row % ROWS);
        for (int32_t c = 0; c < w->group; c++)
            y[c] = (float)(code_at(w->bits, codes + c / STEP * step_bytes(w->bits), (int)(row % ROWS), c % STEP) - offset) * scale;
    }
}

int packed_linear_rows(const struct packed_linear *w, const int64_t *rows, int64_t count, float *y) {
    for (int64_t i = 0; i < count; i++)
        if (rows[i] < 0 || rows[i] >= w->rows) return -1;
    for (int64_t i = 0; i < count; i++) packed_linear_row(w, rows[i], y + i * w->columns);
    return 0;
}

void packed_linear_reference(const struct packed_linear *w, const float *x, int64_t tokens, int is_float, float *y, uint8_t *scratch) {
    struct tokens laid = lay_out(w, tokens, scratch);
    int32_t steps = laid.padded / STEP;
    for (int64_t t = 0; t < tokens; t++) (is_float ? copy_token : round_token)(w, &laid, t, x + t * w->columns);
    for (int64_t t = 0; t < tokens; t++)
        for (int32_t row = 0; row < w->rows; row++) {
            float sum = 0;
            for (int32_t g = 0; g < laid.groups; g++) {
                int64_t group = (int64_t)(row / ROWS) * laid.groups + g, from = (t * laid.groups + g) * laid.padded;
                const uint8_t *codes = w->codes + group * steps * step_bytes(w->bits);
                int32_t whole = laid.starts[t * laid.groups + g];
                float real = laid.offsets[t * laid.groups + g];
                for (int32_t c = 0; c < laid.padded; c++) {
                    int code = code_at(w->bits, codes + c / STEP * step_bytes(w->bits), row % ROWS, c % STEP);
                    if (is_float) real = fmaf((float)code, laid.values[from + c], real);
                    else whole += code * laid.codes[from + c];
                }
                sum = fmaf(is_float ? real : (float)whole, scale_at(w->scales, w->scale_type, group * ROWS + row % ROWS), sum);
            }
            if (!is_float) sum *= laid.scale[t];
            y[t * w->rows + row] = sum;
        }
}

const char *packed_linear_instruction_set(void) { return INSTRUCTION_SET; }
