"""Huffman images: coded form of constants in flash, in the format of `include/huffman.h`.

A constant is coded byte by byte, independent of its contents. A word that is cheaper uncoded (a bias or a multiplier
between weights) follows a code that marks it as raw.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ....ir.huffman import canonical_order, code_lengths, codes, encoded_bits, pack_bits

LONGEST_CODE = 12
TABLE_BYTES = 512
"""Working memory of the decoder, which is free after decoding."""

_TABLE_BITS = 8
_RAW = 256
_WORD, _WORD_BITS, _HALF_BITS = 4, 32, 16
_ROUNDS = 8
_NO_RAW = 0xFFFF
# Instructions on a Cortex-M4: of the table, and of each symbol in it; of a code, a halfword of codes, a code beyond
# the table, a raw word.
_TABLE_INSTRUCTIONS = (300.0, 12.5)
_CODE_INSTRUCTIONS = (9.95, 7.0, 32.0, 12.0)

Bytes = npt.NDArray[np.uint8]
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Image:
    """Words of four bytes: `raw` ones are stored unchanged, the bytes of the others as codes.

    `symbols` are the bytes with a code, and 256 at the end for a raw word if there is one; `counts` has the number of
    occurrences of each, `lengths` the bits of its code.
    """

    words: Bytes
    raw: Flags
    symbols: tuple[int, ...]
    counts: tuple[int, ...]
    lengths: tuple[int, ...]

    @property
    def decoded_bytes(self) -> int:
        """Bytes of the constant, whole words."""
        return self.words.size

    @property
    def codes_at(self) -> int:
        """Halfwords before the codes."""
        return LONGEST_CODE + 1 + -(-len(self.symbols) // 2)

    @property
    def bytes(self) -> int:
        """Bytes in flash, whole words."""
        return -(-2 * (self.codes_at + self._code_halfwords) // _WORD) * _WORD

    @property
    def table_instructions(self) -> float:
        """Instructions of the decoder's table on a Cortex-M4."""
        return sum(n * each for n, each in zip((1, len(self.symbols)), _TABLE_INSTRUCTIONS, strict=True))

    @property
    def code_instructions(self) -> float:
        """Instructions of decoding the codes on a Cortex-M4."""
        long = sum(n for n, length in zip(self.counts, self.lengths, strict=True) if length > _TABLE_BITS)
        counts = (sum(self.counts), self._code_halfwords, long, int(self.raw.sum()))
        return sum(n * each for n, each in zip(counts, _CODE_INSTRUCTIONS, strict=True))

    @property
    def halfwords(self) -> npt.NDArray[np.uint16]:
        """The compressed array in flash."""
        order = canonical_order(self.lengths)
        per_length = [self.lengths.count(length) for length in range(1, LONGEST_CODE + 1)]
        raw = order.index(self.symbols.index(_RAW)) if _RAW in self.symbols else _NO_RAW
        values = bytes(self.symbols[symbol] & 0xFF for symbol in order)
        parts = [
            np.array([*per_length, raw], np.uint16),
            np.frombuffer(values + bytes(len(values) % 2), "<u2"),
            np.frombuffer(pack_bits(self._digits, unit=_HALF_BITS), ">u2"),
        ]
        found = np.concatenate(parts).astype(np.uint16)
        return np.pad(found, (0, self.bytes // 2 - len(found)))

    @property
    def _digits(self) -> str:
        code = dict(zip(self.symbols, codes(self.lengths), strict=True))
        return "".join(
            code[_RAW] + f"{int.from_bytes(bytes(word), 'big'):0{_WORD_BITS}b}"
            if raw
            else "".join(code[byte] for byte in word)
            for word, raw in zip(self.words.tolist(), self.raw.tolist(), strict=True)
        )

    @property
    def _code_halfwords(self) -> int:
        """Halfwords of the codes, and of the decoder's read-ahead of 16 bits."""
        bits = encoded_bits(self.counts, self.lengths) + _WORD_BITS * int(self.raw.sum())
        return max(2, 1 + -(-bits // _HALF_BITS))


def image_of(data: npt.NDArray[np.generic]) -> Image:
    """The smallest image that is found for the bytes of `data`, little-endian, by a search for the words to store
    raw.
    """
    flat = np.frombuffer(data.tobytes(), np.uint8)
    words = np.pad(flat, (0, -flat.size % _WORD), mode="edge").reshape(-1, _WORD)
    raw = _raw_words(words)
    counts = np.append(np.bincount(words[~raw].reshape(-1), minlength=_RAW), raw.sum())
    symbols = np.flatnonzero(counts)
    found = counts[symbols].tolist()
    lengths = code_lengths(found, longest=LONGEST_CODE)
    return Image(words, raw, tuple(symbols.tolist()), tuple(found), tuple(lengths))


def _raw_words(words: Bytes) -> Flags:
    """Words with more bits as codes than raw, if a code has the length of its symbol's information."""
    raw = np.zeros(len(words), np.bool_)
    for _ in range(_ROUNDS):
        counts = np.append(np.bincount(words[~raw].reshape(-1), minlength=_RAW), max(1, raw.sum()))
        bits = np.log2(counts.sum() / np.maximum(counts, 0.5))
        dearer = bits[words].sum(axis=1) > bits[_RAW] + _WORD_BITS
        if np.array_equal(dearer, raw):
            break
        raw = dearer
    return raw
