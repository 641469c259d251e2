"""Huffman images: coded form of constants in flash, in the format of `include/huffman.h`.

A constant is coded byte by byte, independent of its contents. A word of zeros has a code of its own, if that is
cheaper. A word that is cheaper uncoded (a bias or a multiplier between weights) follows a code that marks it as raw.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from ....ir.huffman import canonical_order, code_lengths, codes, encoded_bits, pack_bits

LONGEST_CODE = 12
TABLE_BYTES = 512
"""Working memory of the decoder, which is free after decoding."""

_TABLE_BITS = 8
_RAW, _ZEROS = 256, 512  # symbols of words; their low byte is zero
_SYMBOLS = _ZEROS + 1
_WORD, _WORD_BITS, _HALF_BITS = 4, 32, 16
_ROUNDS = 8
_NO_WORD = 0xFFFF
# Instructions on a Cortex-M4: of the table, and of each symbol in it; of a code, a halfword of codes, a code beyond
# the table, a raw word.
_TABLE_INSTRUCTIONS = (300.0, 12.5)
_CODE_INSTRUCTIONS = (9.95, 7.0, 32.0, 12.0)

Bytes = npt.NDArray[np.uint8]
Flags = npt.NDArray[np.bool_]
Halfwords = npt.NDArray[np.uint16]


@dataclass(frozen=True)
class Code:
    """Huffman code of the `symbols` that occur, with the number of occurrences and the code length of each.

    Symbols are bytes, 256 for a raw word, 512 for a word of zeros.
    """

    symbols: tuple[int, ...]
    counts: tuple[int, ...]
    lengths: tuple[int, ...]

    @staticmethod
    def of(counts: npt.NDArray[np.int64]) -> Code:
        """The shortest code for symbols that occur so often."""
        symbols = np.flatnonzero(counts)
        found = counts[symbols].tolist()
        return Code(tuple(symbols.tolist()), tuple(found), tuple(code_lengths(found, longest=LONGEST_CODE)))

    @cached_property
    def digits(self) -> dict[int, str]:
        """The code of each symbol, in digits 0 and 1."""
        return dict(zip(self.symbols, codes(self.lengths), strict=True))

    @property
    def bits(self) -> int:
        """Bits of all occurrences."""
        return encoded_bits(self.counts, self.lengths)

    @property
    def table(self) -> Halfwords:
        """Halfwords from which the decoder makes its table."""
        order = [self.symbols[index] for index in canonical_order(self.lengths)]
        per_length = [self.lengths.count(length) for length in range(1, LONGEST_CODE + 1)]
        words = [order.index(symbol) if symbol in order else _NO_WORD for symbol in (_RAW, _ZEROS)]
        values = bytes(symbol & 0xFF for symbol in order)
        parts = (
            np.array([*per_length, *words], np.uint16),
            np.frombuffer(values + bytes(len(values) % 2), "<u2"),
        )
        return np.concatenate(parts).astype(np.uint16)

    @property
    def table_halfwords(self) -> int:
        """Size of the table."""
        return LONGEST_CODE + 2 + -(-len(self.symbols) // 2)

    @property
    def table_instructions(self) -> float:
        """Instructions of the decoder's table on a Cortex-M4."""
        return sum(n * each for n, each in zip((1, len(self.symbols)), _TABLE_INSTRUCTIONS, strict=True))


def code_instructions(found: Iterable[Code], *, halfwords: int, raw: int = 0) -> float:
    """Instructions of decoding all occurrences, of `halfwords` of codes and `raw` words, on a Cortex-M4."""
    coded = long = 0
    for code in found:
        coded += sum(code.counts)
        long += sum(n for n, length in zip(code.counts, code.lengths, strict=True) if length > _TABLE_BITS)
    counts = (coded, halfwords, long, raw)
    return sum(n * each for n, each in zip(counts, _CODE_INSTRUCTIONS, strict=True))


def stream_halfwords(bits: int) -> int:
    """Halfwords of a stream of codes, and of the decoder's read-ahead of 16 bits."""
    return max(2, 1 + -(-bits // _HALF_BITS))


def stream(tables: Iterable[Halfwords], digits: str) -> Halfwords:
    """The compressed array in flash, whole words: tables, then codes in digits 0 and 1."""
    filled = digits + "0" * (_HALF_BITS * stream_halfwords(len(digits)) - len(digits))
    found = np.concatenate(
        [*tables, np.frombuffer(pack_bits(filled, unit=_HALF_BITS), ">u2").astype(np.uint16)]
    )
    return np.pad(found, (0, len(found) % 2))


@dataclass(frozen=True, eq=False)
class Image:
    """Words of four bytes: `raw` ones are stored unchanged, those in `zeros` as one code, the others byte by byte."""

    words: Bytes
    raw: Flags
    zeros: Flags
    code: Code

    @property
    def decoded_bytes(self) -> int:
        """Bytes of the constant, whole words."""
        return self.words.size

    @property
    def codes_at(self) -> int:
        """Halfwords before the codes."""
        return self.code.table_halfwords

    @property
    def bytes(self) -> int:
        """Bytes in flash, whole words."""
        return -(-2 * (self.codes_at + self._code_halfwords) // _WORD) * _WORD

    @property
    def table_instructions(self) -> float:
        """Instructions of the decoder's table on a Cortex-M4."""
        return self.code.table_instructions

    @property
    def code_instructions(self) -> float:
        """Instructions of decoding the codes on a Cortex-M4."""
        return code_instructions([self.code], halfwords=self._code_halfwords, raw=int(self.raw.sum()))

    @property
    def halfwords(self) -> Halfwords:
        """The compressed array in flash."""
        code, digits = self.code.digits, list[str]()
        for word, raw, zeros in zip(self.words.tolist(), self.raw.tolist(), self.zeros.tolist(), strict=True):
            if raw:
                digits.append(code[_RAW] + f"{int.from_bytes(bytes(word), 'big'):0{_WORD_BITS}b}")
            else:
                digits.extend([code[_ZEROS]] if zeros else [code[byte] for byte in word])
        return stream([self.code.table], "".join(digits))

    @property
    def _code_halfwords(self) -> int:
        return stream_halfwords(self.code.bits + _WORD_BITS * int(self.raw.sum()))


def image_of(data: npt.NDArray[np.generic]) -> Image:
    """The smallest image that is found for the bytes of `data`, little-endian, by a search for the words to store
    raw.
    """
    flat = np.frombuffer(data.tobytes(), np.uint8)
    words = np.pad(flat, (0, -flat.size % _WORD), mode="edge").reshape(-1, _WORD)
    zeros = words.view(np.uint32)[:, 0] == 0
    return min(
        (_image(words, joined) for joined in (zeros, np.zeros_like(zeros))), key=lambda image: image.bytes
    )


def _image(words: Bytes, zeros: Flags) -> Image:
    """The image in which these words of zeros have one code."""
    raw = _raw_words(words, zeros)
    counts = np.bincount(words[~(raw | zeros)].reshape(-1), minlength=_SYMBOLS)
    counts[_RAW], counts[_ZEROS] = raw.sum(), zeros.sum()
    return Image(words, raw, zeros, Code.of(counts))


def _raw_words(words: Bytes, zeros: Flags) -> Flags:
    """Words with more bits as codes than raw, if a code has the length of its symbol's information."""
    raw = np.zeros(len(words), np.bool_)
    for _ in range(_ROUNDS):
        counts = np.bincount(words[~(raw | zeros)].reshape(-1), minlength=_SYMBOLS)
        counts[_RAW], counts[_ZEROS] = max(1, raw.sum()), zeros.sum()
        bits = np.log2(counts.sum() / np.maximum(counts, 0.5))
        dearer = (bits[words].sum(axis=1) > bits[_RAW] + _WORD_BITS) & ~zeros
        if np.array_equal(dearer, raw):
            break
        raw = dearer
    return raw
