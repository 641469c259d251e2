/* Constants that are stored in flash as a canonical Huffman code; the step that reads them decodes them into working
 * memory.
 *
 * An image consists of halfwords: number of codes of 1, 2, ... 12 bits; index of the code for a raw word, which follows
 * it; index of the code for a word of zeros; byte of each code, shortest code first, two to a halfword; the codes, from
 * the highest bit of each halfword down, padded with zeros for the look-ahead of the decoder. Words are little-endian.
 */
#ifndef FXP_HUFFMAN_H
#define FXP_HUFFMAN_H

#include <stdint.h>

#define FXP_LONGEST_CODE 12
#define FXP_RAW_AT FXP_LONGEST_CODE
#define FXP_ZEROS_AT (FXP_LONGEST_CODE + 1)
#define FXP_BYTES_AT (FXP_LONGEST_CODE + 2)
#define FXP_TABLE_BITS 8
#define FXP_TABLE_SIZE (1 << FXP_TABLE_BITS)
/* Symbol of a code: its byte, from bit 8 the length of the code, above that flags for a whole word. */
#define FXP_RAW 0x1000u
#define FXP_ZEROS 0x2000u
#define FXP_LONGER 0x4000u /* a code of more than 8 bits */

/* Not cloned for the constant arguments of its calls. */
#if defined(__GNUC__) && !defined(__clang__)
#define FXP_ONCE static __attribute__((noinline, noclone))
#else
#define FXP_ONCE static __attribute__((noinline))
#endif

typedef struct {
    const uint16_t *image;
    uint16_t *table; /* symbols of codes of at most 8 bits, indexed by the next 8 bits */
    uint32_t index;  /* index of the first longer code */
    uint32_t code;   /* the first longer code, as 9 bits */
} fxp_codes;

typedef struct {
    const uint16_t *next;
    uint32_t window; /* next bits, left-aligned */
    int32_t spare;   /* their number minus 16 */
} fxp_bits;

FXP_INLINE fxp_bits fxp_first_bits(const uint16_t *codes)
{
    const fxp_bits bits = {codes + 2, (uint32_t)codes[0] << 16 | codes[1], 16};
    return bits;
}

FXP_INLINE void fxp_skip(fxp_bits *bits, uint32_t count)
{
    bits->window <<= count;
    bits->spare -= (int32_t)count;
    if (bits->spare < 0) {
        bits->window |= (uint32_t)*bits->next++ << -bits->spare;
        bits->spare += 16;
    }
}

FXP_INLINE uint32_t fxp_meaning(const uint16_t *image, uint32_t index, uint32_t length)
{
    const uint32_t byte = ((uint32_t)image[FXP_BYTES_AT + (index >> 1)] >> ((index & 1u) * 8u)) & 0xffu;
    const uint32_t word = index == image[FXP_RAW_AT] ? FXP_RAW : index == image[FXP_ZEROS_AT] ? FXP_ZEROS : 0u;
    return byte | length << 8 | word;
}

FXP_ONCE void fxp_tabulate(fxp_codes *codes)
{
    uint32_t index = 0, at = 0;
    for (uint32_t length = 1; length <= FXP_TABLE_BITS; length++) {
        for (uint32_t end = index + codes->image[length - 1]; index < end; index++) {
            const uint32_t meaning = fxp_meaning(codes->image, index, length);
            for (uint32_t count = 1u << (FXP_TABLE_BITS - length); count > 0; count--) {
                codes->table[at++] = (uint16_t)meaning;
            }
        }
    }
    codes->index = index;
    codes->code = at << 1;
    while (at < 1u << FXP_TABLE_BITS) {
        codes->table[at++] = FXP_LONGER;
    }
}

/* Symbol of a code of more than 8 bits. */
FXP_ONCE uint32_t fxp_long_code(const fxp_codes *codes, uint32_t window)
{
    const uint16_t *count = codes->image + FXP_TABLE_BITS;
    uint32_t index = codes->index, first = codes->code, length = FXP_TABLE_BITS + 1;
    while ((window >> (32u - length)) - first >= *count) {
        index += *count;
        first = (first + *count++) << 1;
        length++;
    }
    return fxp_meaning(codes->image, index + (window >> (32u - length)) - first, length);
}

FXP_INLINE uint32_t fxp_code(const fxp_codes *codes, fxp_bits *bits)
{
    uint32_t meaning = codes->table[bits->window >> (32 - FXP_TABLE_BITS)];
    if (meaning == FXP_LONGER) {
        meaning = fxp_long_code(codes, bits->window);
    }
    fxp_skip(bits, (meaning >> 8) & 15u);
    return meaning;
}

/* Decodes `words` words of four bytes. The codes begin at halfword `start`; `table` is working memory, 256 halfwords. */
FXP_ONCE void fxp_decode(const uint16_t *image, int32_t start, uint8_t *to, int32_t words, uint16_t *table)
{
    fxp_codes codes = {image, table, 0, 0};
    fxp_bits bits = fxp_first_bits(image + start);
    fxp_tabulate(&codes);
    for (; words > 0; words--, to += 4) {
        const uint32_t meaning = fxp_code(&codes, &bits);
        if ((meaning & FXP_RAW) != 0u) {
            for (int32_t i = 0; i < 4; i += 2) {
                to[i] = (uint8_t)(bits.window >> 24);
                to[i + 1] = (uint8_t)(bits.window >> 16);
                fxp_skip(&bits, 16);
            }
            continue;
        }
        if ((meaning & FXP_ZEROS) != 0u) {
            to[0] = to[1] = to[2] = to[3] = 0;
            continue;
        }
        to[0] = (uint8_t)meaning;
        for (int32_t i = 1; i < 4; i++) {
            to[i] = (uint8_t)fxp_code(&codes, &bits);
        }
    }
}

#endif
