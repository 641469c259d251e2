/* Words of two 16-bit lanes on the DSP extension of Cortex-M4, M7 and M33; arithmetic.h comes first.
 *
 * Each function is one instruction with the extension, and plain C with the same result elsewhere.
 * An activation or weight word holds four int8 in memory order b0 b1 b2 b3; SXTB16 splits it into
 * the even word (b0, b2) and the odd word (b1, b3), low lane first.
 */
#ifndef FXP_DSP_H
#define FXP_DSP_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* Loads four bytes from any address, little-endian. */
FXP_INLINE uint32_t fxp_load4(const int8_t *p)
{
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    return (uint32_t)(uint8_t)p[0] | (uint32_t)(uint8_t)p[1] << 8 | (uint32_t)(uint8_t)p[2] << 16
           | (uint32_t)(uint8_t)p[3] << 24;
#else
    uint32_t word;
    memcpy(&word, p, 4);
    return word;
#endif
}

FXP_INLINE int32_t fxp_low(uint32_t pair)
{
    return (int16_t)(uint16_t)pair;
}

FXP_INLINE int32_t fxp_high(uint32_t pair)
{
    return (int16_t)(uint16_t)(pair >> 16);
}

/* Packs (low, high) to a word of two lanes. */
FXP_INLINE uint32_t fxp_pair(int32_t low, int32_t high)
{
    return ((uint32_t)low & 0xffffu) | (uint32_t)high << 16;
}

/* The even bytes of a word, sign extended to two lanes. */
FXP_INLINE uint32_t fxp_even(uint32_t word)
{
#if FXP_DSP
    uint32_t pair;
    __asm__("sxtb16 %0, %1" : "=r"(pair) : "r"(word));
    return pair;
#else
    return fxp_pair((int8_t)(uint8_t)word, (int8_t)(uint8_t)(word >> 16));
#endif
}

/* The odd bytes of a word, sign extended to two lanes. */
FXP_INLINE uint32_t fxp_odd(uint32_t word)
{
#if FXP_DSP
    uint32_t pair;
    __asm__("sxtb16 %0, %1, ror #8" : "=r"(pair) : "r"(word));
    return pair;
#else
    return fxp_pair((int8_t)(uint8_t)(word >> 8), (int8_t)(uint8_t)(word >> 24));
#endif
}

/* acc + a.low * b.low + a.high * b.high, modulo 2^32. */
FXP_INLINE int32_t fxp_dot2(uint32_t a, uint32_t b, int32_t acc)
{
#if FXP_DSP
    int32_t sum;
    __asm__("smlad %0, %1, %2, %3" : "=r"(sum) : "r"(a), "r"(b), "r"(acc));
    return sum;
#else
    return (int32_t)((uint32_t)acc + (uint32_t)(fxp_low(a) * fxp_low(b)) + (uint32_t)(fxp_high(a) * fxp_high(b)));
#endif
}

/* acc + a.low + a.high, modulo 2^32, in the order of accesses to memory: otherwise compilers move sums away from
 * the loads of their operands, which then fill registers or the stack. */
FXP_INLINE int32_t fxp_add_lanes(uint32_t a, int32_t acc)
{
#if FXP_DSP
    __asm__ volatile("smlad %0, %1, %2, %0" : "+r"(acc) : "r"(a), "r"(0x00010001u) : "memory");
    return acc;
#else
    return (int32_t)((uint32_t)acc + (uint32_t)(fxp_low(a) + fxp_high(a)));
#endif
}

/* The same as fxp_dot2 in 64 bits. */
FXP_INLINE int64_t fxp_long_dot2(uint32_t a, uint32_t b, int64_t acc)
{
#if FXP_DSP
    uint32_t low = (uint32_t)acc;
    int32_t high = (int32_t)(acc >> 32);
    __asm__("smlald %0, %1, %2, %3" : "+r"(low), "+r"(high) : "r"(a), "r"(b));
    return (int64_t)((uint64_t)(uint32_t)high << 32 | low);
#else
    return acc + fxp_low(a) * fxp_low(b) + (int64_t)(fxp_high(a) * fxp_high(b));
#endif
}

/* Both lanes of a + b, each modulo 2^16. */
FXP_INLINE uint32_t fxp_add2(uint32_t a, uint32_t b)
{
#if FXP_DSP
    uint32_t sum;
    __asm__("sadd16 %0, %1, %2" : "=r"(sum) : "r"(a), "r"(b) : "cc");
    return sum;
#else
    return fxp_pair(fxp_low(a) + fxp_low(b), fxp_high(a) + fxp_high(b));
#endif
}

/* Both lanes of a - b, each modulo 2^16. */
FXP_INLINE uint32_t fxp_sub2(uint32_t a, uint32_t b)
{
#if FXP_DSP
    uint32_t difference;
    __asm__("ssub16 %0, %1, %2" : "=r"(difference) : "r"(a), "r"(b) : "cc");
    return difference;
#else
    return fxp_pair(fxp_low(a) - fxp_low(b), fxp_high(a) - fxp_high(b));
#endif
}

/* acc + one lane of a times one lane of b, modulo 2^32; the lanes are named in the order of the operands. */
#if FXP_DSP
#define FXP_DEFINE_LANES(name, instruction, lane_a, lane_b)                                        \
    FXP_INLINE int32_t name(uint32_t a, uint32_t b, int32_t acc)                                    \
    {                                                                                               \
        int32_t sum;                                                                                \
        __asm__(instruction " %0, %1, %2, %3" : "=r"(sum) : "r"(a), "r"(b), "r"(acc));              \
        return sum;                                                                                 \
    }
#else
#define FXP_DEFINE_LANES(name, instruction, lane_a, lane_b)                                        \
    FXP_INLINE int32_t name(uint32_t a, uint32_t b, int32_t acc)                                    \
    {                                                                                               \
        return (int32_t)((uint32_t)acc + (uint32_t)(lane_a(a) * lane_b(b)));                        \
    }
#endif

FXP_DEFINE_LANES(fxp_low_low, "smlabb", fxp_low, fxp_low)

FXP_DEFINE_LANES(fxp_low_high, "smlabt", fxp_low, fxp_high)

FXP_DEFINE_LANES(fxp_high_low, "smlatb", fxp_high, fxp_low)

FXP_DEFINE_LANES(fxp_high_high, "smlatt", fxp_high, fxp_high)

/* Loads two int16 as a word of two lanes, the first one low. */
FXP_INLINE uint32_t fxp_load2(const int16_t *p)
{
#if FXP_DSP
    uint32_t pair;
    memcpy(&pair, p, 4);
    return pair;
#else
    return fxp_pair(p[0], p[1]);
#endif
}

/* Both lanes of sum, plus the even bytes of a word; each lane modulo 2^16. */
FXP_INLINE uint32_t fxp_add_even(uint32_t sum, uint32_t word)
{
#if FXP_DSP
    uint32_t total;
    __asm__("sxtab16 %0, %1, %2" : "=r"(total) : "r"(sum), "r"(word));
    return total;
#else
    const uint32_t pair = fxp_even(word);
    return fxp_pair(fxp_low(sum) + fxp_low(pair), fxp_high(sum) + fxp_high(pair));
#endif
}

/* Both lanes of sum, plus the odd bytes of a word; each lane modulo 2^16. */
FXP_INLINE uint32_t fxp_add_odd(uint32_t sum, uint32_t word)
{
#if FXP_DSP
    uint32_t total;
    __asm__("sxtab16 %0, %1, %2, ror #8" : "=r"(total) : "r"(sum), "r"(word));
    return total;
#else
    return fxp_add_even(sum, word >> 8 | word << 24);
#endif
}

/* Maximum of each of four int8. */
FXP_INLINE uint32_t fxp_largest4(uint32_t a, uint32_t b)
{
    uint32_t largest;
#if FXP_DSP
    uint32_t difference;
    __asm__("ssub8 %0, %2, %3\n\tsel %1, %2, %3" : "=&r"(difference), "=r"(largest) : "r"(a), "r"(b) : "cc");
#else
    largest = 0;
    for (uint32_t shift = 0; shift < 32; shift += 8) {
        const uint32_t byte = (int8_t)(uint8_t)(a >> shift) < (int8_t)(uint8_t)(b >> shift) ? b : a;
        largest |= byte & (uint32_t)0xff << shift;
    }
#endif
    return largest;
}

/* The largest of `count` int8. */
FXP_INLINE int32_t fxp_largest_of(const int8_t *x, int32_t count)
{
    int32_t largest = INT8_MIN;
    if (count >= 4) {
        uint32_t word = fxp_load4(x);
        for (int32_t i = 4; i + 4 <= count; i += 4) {
            word = fxp_largest4(word, fxp_load4(x + i));
        }
        word = fxp_largest4(word, fxp_load4(x + count - 4));
        word = fxp_largest4(word, word >> 16 | word << 16);
        word = fxp_largest4(word, word >> 8 | word << 24);
        return (int8_t)(uint8_t)word;
    }
    for (int32_t i = 0; i < count; i++) {
        largest = x[i] > largest ? x[i] : largest;
    }
    return largest;
}

/* Stores four bytes to any address, little-endian. */
FXP_INLINE void fxp_store4(int8_t *p, uint32_t word)
{
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    for (int32_t i = 0; i < 4; ++i, word >>= 8) {
        p[i] = (int8_t)(uint8_t)word;
    }
#else
    memcpy(p, &word, 4);
#endif
}

/* value >> shift, saturated to int8; the shift is a constant from 1 to 31. */
#if FXP_DSP
#define FXP_SATURATE8_SHIFTED(target, value, shift) \
    __asm__("ssat %0, #8, %1, asr %2" : "=r"(target) : "r"(value), "I"(shift))
#else
#define FXP_SATURATE8_SHIFTED(target, value, shift) ((target) = fxp_saturate8((value) >> (shift)))
#endif

/* Word `index` of four weights as signed bytes. Words of 4-bit weights are stored two to a word, the first in the top
 * bits of each byte, and are returned times 16; words of 2-bit weights are stored four to a word and returned
 * times 64.
 */
FXP_INLINE uint32_t fxp_weights8(const int32_t *w, int32_t index)
{
    return (uint32_t)w[index];
}

FXP_INLINE uint32_t fxp_weights4(const int32_t *w, int32_t index)
{
    return ((uint32_t)w[index / 2] << (index % 2 * 4)) & 0xf0f0f0f0u;
}

FXP_INLINE uint32_t fxp_weights2(const int32_t *w, int32_t index)
{
    return ((uint32_t)w[index / 4] << (index % 4 * 2)) & 0xc0c0c0c0u;
}

/* Accumulators of four output channels for one row of inputs. */
struct fxp_sums4 {
    int32_t a, b, c, d;
};

/* Four inputs times four channels: 16 products in 18 instructions for weights of 8 bits, in 22 for fewer.
 *
 * r0: inputs, which FXP_INPUTS loads as an even and an odd word; r1: weights; r2 to r5: the sums; r11: the mask of packed
 * weights, see above.
 */
#define FXP_CHANNEL_1X4(weights, sum)          \
    "sxtb16 r12, " weights "\n\t"              \
    "smlad " sum ", r12, r6, " sum "\n\t"      \
    "sxtb16 " weights ", " weights ", ror #8\n\t" \
    "smlad " sum ", " weights ", r7, " sum "\n\t"

#define FXP_CHANNELS_1X4              \
    "ldm r1!, {r8, r9, r10, r11}\n\t" \
    FXP_CHANNEL_1X4("r8", "r2")       \
    FXP_CHANNEL_1X4("r9", "r3")       \
    FXP_CHANNEL_1X4("r10", "r4")      \
    FXP_CHANNEL_1X4("r11", "r5")

#define FXP_CHANNELS_1X4_INT4         \
    "ldm r1!, {r8, r9}\n\t"           \
    "and r10, r11, r8\n\t"            \
    FXP_CHANNEL_1X4("r10", "r2")      \
    "and r10, r11, r8, lsl #4\n\t"    \
    FXP_CHANNEL_1X4("r10", "r3")      \
    "and r10, r11, r9\n\t"            \
    FXP_CHANNEL_1X4("r10", "r4")      \
    "and r10, r11, r9, lsl #4\n\t"    \
    FXP_CHANNEL_1X4("r10", "r5")

#define FXP_CHANNELS_1X4_INT2         \
    "ldr r8, [r1], #4\n\t"            \
    "and r10, r11, r8\n\t"            \
    FXP_CHANNEL_1X4("r10", "r2")      \
    "and r10, r11, r8, lsl #2\n\t"    \
    FXP_CHANNEL_1X4("r10", "r3")      \
    "and r10, r11, r8, lsl #4\n\t"    \
    FXP_CHANNEL_1X4("r10", "r4")      \
    "and r10, r11, r8, lsl #6\n\t"    \
    FXP_CHANNEL_1X4("r10", "r5")

/* Weights of 16 bits, as two words of each channel: 16 products in 11 instructions. */
#define FXP_CHANNELS_1X4_INT16        \
    "ldm r1!, {r8, r9, r10, r11}\n\t" \
    "smlad r2, r8, r6, r2\n\t"        \
    "smlad r3, r9, r6, r3\n\t"        \
    "smlad r4, r10, r6, r4\n\t"       \
    "smlad r5, r11, r6, r5\n\t"       \
    "ldm r1!, {r8, r9, r10, r11}\n\t" \
    "smlad r2, r8, r7, r2\n\t"        \
    "smlad r3, r9, r7, r3\n\t"        \
    "smlad r4, r10, r7, r4\n\t"       \
    "smlad r5, r11, r7, r5\n\t"

/* Four inputs in r6 and r7, from expanded words, int8 or int16. Inputs of int8 and int16 may be at any address, and
 * take 2 and 1 more instructions. */
#define FXP_INPUTS "ldm r0!, {r6, r7}\n\t"

#define FXP_INPUTS_INT8           \
    "ldr r6, [r0], #4\n\t"        \
    "sxtb16 r7, r6, ror #8\n\t"   \
    "sxtb16 r6, r6\n\t"

#define FXP_INPUTS_INT16          \
    "ldr r6, [r0], #4\n\t"        \
    "ldr r7, [r0], #4\n\t"

#define FXP_STEP_1X4 FXP_INPUTS FXP_CHANNELS_1X4

#define FXP_STEP_1X4_INT4 FXP_INPUTS FXP_CHANNELS_1X4_INT4

#define FXP_STEP_1X4_INT2 FXP_INPUTS FXP_CHANNELS_1X4_INT2

#define FXP_STEP_1X4_INT16 FXP_INPUTS FXP_CHANNELS_1X4_INT16

/* Two rows of weights of 8 bits in a word, which take 14 instructions for 16 products: of a lane, the high byte is a weight
 * of the second row, the low byte 128 more than one of the first. Lanes are multiplied without unpacking, with the
 * result 256 times the second sum plus the first one, plus 128 times the sum of the inputs, modulo 2^32.
 */
#define FXP_ROWS_1X2(weights, inputs, both, second) \
    "smlad " both ", " weights ", " inputs ", " both "\n\t" \
    "sxtb16 r12, " weights ", ror #8\n\t"           \
    "smlad " second ", r12, " inputs ", " second "\n\t"

#define FXP_STEP_1X4_PAIRED                \
    "ldm r0!, {r6, r7}\n\t"                \
    "ldm r1!, {r8, r9, r10, r11}\n\t"      \
    FXP_ROWS_1X2("r8", "r6", "r2", "r3")   \
    FXP_ROWS_1X2("r9", "r7", "r2", "r3")   \
    FXP_ROWS_1X2("r10", "r6", "r4", "r5")  \
    FXP_ROWS_1X2("r11", "r7", "r4", "r5")

/* The first sums, from both and the second; r0: 128 times the sum of the inputs. */
#define FXP_PART_1X4                 \
    "ldr r6, [r0]\n\t"               \
    "sub r2, r2, r3, lsl #8\n\t"     \
    "sub r4, r4, r5, lsl #8\n\t"     \
    "sub r2, r2, r6\n\t"             \
    "sub r4, r4, r6\n\t"

/* The same for one step and one pair of sums. */
FXP_INLINE void fxp_rows2(const uint32_t *x, const int32_t *weights, int32_t *both, int32_t *second)
{
    for (int32_t i = 0; i < 2; i++) {
        *both = fxp_dot2((uint32_t)weights[i], x[i], *both);
        *second = fxp_dot2(fxp_odd((uint32_t)weights[i]), x[i], *second);
    }
}

FXP_INLINE int32_t fxp_first_of(int32_t both, int32_t second, uint32_t inputs)
{
    return (int32_t)((uint32_t)both - ((uint32_t)second << 8) - inputs);
}

/* One step of four inputs for one channel. */
FXP_INLINE int32_t fxp_step1(const uint32_t *x, uint32_t weights, int32_t acc)
{
    return fxp_dot2(fxp_odd(weights), x[1], fxp_dot2(fxp_even(weights), x[0], acc));
}

/* Accumulators of two output channels, a and b, for up to four pixels. */
struct fxp_sums {
    int32_t a0, a1, a2, a3, b0, b1, b2, b3;
};

/* Four taps of three pixels, times two channels: 24 products in 19 instructions for weights of 8 bits, 22 for 4 bits,
 * 22 or 23 for 2 bits, 16 for 16 bits, which are not unpacked.
 *
 * r0: activations, even words of three pixels, then odd ones; r1: weights, which a step unpacks to r10 and r11;
 * r2, r3, r4 and r5, r6, r12: the sums. r7 is the frame pointer of Thumb code: code with these steps saves it
 * on the stack; it cannot be declared as clobbered, because compilers reject that if there is a frame pointer.
 */
#define FXP_STEP_3X2_OF(unpack)   \
    "ldm r0!, {r7, r8, r9}\n\t"   \
    unpack                        \
    "sxtb16 lr, r10\n\t"          \
    "smlad r2, lr, r7, r2\n\t"    \
    "smlad r3, lr, r8, r3\n\t"    \
    "smlad r4, lr, r9, r4\n\t"    \
    "sxtb16 lr, r11\n\t"          \
    "smlad r5, lr, r7, r5\n\t"    \
    "smlad r6, lr, r8, r6\n\t"    \
    "smlad r12, lr, r9, r12\n\t"  \
    "ldm r0!, {r7, r8, r9}\n\t"   \
    "sxtb16 r10, r10, ror #8\n\t" \
    "smlad r2, r10, r7, r2\n\t"   \
    "smlad r3, r10, r8, r3\n\t"   \
    "smlad r4, r10, r9, r4\n\t"   \
    "sxtb16 r11, r11, ror #8\n\t" \
    "smlad r5, r11, r7, r5\n\t"   \
    "smlad r6, r11, r8, r6\n\t"   \
    "smlad r12, r11, r9, r12\n\t"

#define FXP_STEP_3X2 FXP_STEP_3X2_OF("ldm r1!, {r10, r11}\n\t")

#define FXP_STEP_3X2_INT4 FXP_STEP_3X2_OF( \
    "ldr r11, [r1], #4\n\t"               \
    "and r10, r11, #0xf0f0f0f0\n\t"       \
    "lsl r11, r11, #4\n\t"                \
    "and r11, r11, #0xf0f0f0f0\n\t")

/* A word holds the weights of two steps: the second one advances the pointer. */
#define FXP_STEP_3X2_INT2_FIRST FXP_STEP_3X2_OF( \
    "ldr r11, [r1]\n\t"                         \
    "and r10, r11, #0xc0c0c0c0\n\t"             \
    "lsl r11, r11, #2\n\t"                      \
    "and r11, r11, #0xc0c0c0c0\n\t")

#define FXP_STEP_3X2_INT2_SECOND FXP_STEP_3X2_OF( \
    "ldr r11, [r1], #4\n\t"                      \
    "lsl r10, r11, #4\n\t"                       \
    "and r10, r10, #0xc0c0c0c0\n\t"              \
    "lsl r11, r11, #6\n\t"                       \
    "and r11, r11, #0xc0c0c0c0\n\t")

/* The same for four pixels: 32 products in 26 instructions, in 22 for weights of 16 bits.
 *
 * r2 to r5 and r6 to r9: the sums; r10, r11: activations of two pixels; r12, lr: weights, which are loaded again for the
 * odd words.
 */
#define FXP_PAIRS_4X2             \
    "ldm r0!, {r10, r11}\n\t"     \
    "smlad r2, r12, r10, r2\n\t"  \
    "smlad r3, r12, r11, r3\n\t"  \
    "smlad r6, lr, r10, r6\n\t"   \
    "smlad r7, lr, r11, r7\n\t"   \
    "ldm r0!, {r10, r11}\n\t"     \
    "smlad r4, r12, r10, r4\n\t"  \
    "smlad r5, r12, r11, r5\n\t"  \
    "smlad r8, lr, r10, r8\n\t"   \
    "smlad r9, lr, r11, r9\n\t"

#define FXP_STEP_4X2              \
    "ldm r1, {r12, lr}\n\t"       \
    "sxtb16 r12, r12\n\t"         \
    "sxtb16 lr, lr\n\t"           \
    FXP_PAIRS_4X2                 \
    "ldm r1!, {r12, lr}\n\t"      \
    "sxtb16 r12, r12, ror #8\n\t" \
    "sxtb16 lr, lr, ror #8\n\t"   \
    FXP_PAIRS_4X2

#define FXP_STEP_4X2_INT16        \
    "ldm r1!, {r12, lr}\n\t"      \
    FXP_PAIRS_4X2                 \
    "ldm r1!, {r12, lr}\n\t"      \
    FXP_PAIRS_4X2

/* The same for two pixels: 16 products in 14 instructions, in 11 for weights of 16 bits.
 *
 * r2, r3 and r4, r5: the sums; r6, r8 and r9, r10: activations, even words, then odd ones; r11, r12: weights.
 */
#define FXP_STEP_2X2                    \
    "ldm r0!, {r6, r8, r9, r10}\n\t"    \
    "ldm r1!, {r11, r12}\n\t"           \
    "sxtb16 lr, r11\n\t"                \
    "smlad r2, lr, r6, r2\n\t"          \
    "smlad r3, lr, r8, r3\n\t"          \
    "sxtb16 lr, r12\n\t"                \
    "smlad r4, lr, r6, r4\n\t"          \
    "smlad r5, lr, r8, r5\n\t"          \
    "sxtb16 r11, r11, ror #8\n\t"       \
    "smlad r2, r11, r9, r2\n\t"         \
    "smlad r3, r11, r10, r3\n\t"        \
    "sxtb16 r12, r12, ror #8\n\t"       \
    "smlad r4, r12, r9, r4\n\t"         \
    "smlad r5, r12, r10, r5\n\t"

#define FXP_STEP_2X2_INT16              \
    "ldm r0!, {r6, r8, r9, r10}\n\t"    \
    "ldm r1!, {r11, r12}\n\t"           \
    "smlad r2, r11, r6, r2\n\t"         \
    "smlad r3, r11, r8, r3\n\t"         \
    "smlad r4, r12, r6, r4\n\t"         \
    "smlad r5, r12, r8, r5\n\t"         \
    "ldm r1!, {r11, r12}\n\t"           \
    "smlad r2, r11, r9, r2\n\t"         \
    "smlad r3, r11, r10, r3\n\t"        \
    "smlad r4, r12, r9, r4\n\t"         \
    "smlad r5, r12, r10, r5\n\t"

/* Column sums of a Winograd tile, two lanes each. */
struct fxp_column {
    uint32_t s0, s1, s2, s3;
};

/* Two 16-bit inputs of three tiles, times two channels: 12 products in 8 instructions, registers as above.
 * The first step initializes the accumulators.
 */
#define FXP_FIRST_PAIR_3X2      \
    "ldm r0!, {r7, r8, r9}\n\t" \
    "ldm r1!, {r10, r11}\n\t"   \
    "smuad r2, r10, r7\n\t"     \
    "smuad r3, r10, r8\n\t"     \
    "smuad r4, r10, r9\n\t"     \
    "smuad r5, r11, r7\n\t"     \
    "smuad r6, r11, r8\n\t"     \
    "smuad r12, r11, r9\n\t"

#define FXP_PAIR_3X2              \
    "ldm r0!, {r7, r8, r9}\n\t"   \
    "ldm r1!, {r10, r11}\n\t"     \
    "smlad r2, r10, r7, r2\n\t"   \
    "smlad r3, r10, r8, r3\n\t"   \
    "smlad r4, r10, r9, r4\n\t"   \
    "smlad r5, r11, r7, r5\n\t"   \
    "smlad r6, r11, r8, r6\n\t"   \
    "smlad r12, r11, r9, r12\n\t"

#define FXP_STEP_3X2_INT16 FXP_PAIR_3X2 FXP_PAIR_3X2

#endif
