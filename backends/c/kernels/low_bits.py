"""Weights of 4 and 2 bits in the form of the kernels: packed so that unpacking needs only masks and shifts.

DSP kernels multiply bytes. int8 weights are words of four bytes; of weights with fewer bits, 8 / bits such words share
one: the first has the top bits of every byte, the next the bits below. A left shift and a mask give 2^(8 - bits) times
the weights, as signed bytes; so accumulators are that many times too large, which a right shift corrects exactly.

Portable kernels read single weights, as sign-extended fields of bytes, the lowest bits first.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .base import AnyArray

BYTE = 8


def weights_text(bits: int) -> str:
    """Text for comments on the bit width of weights."""
    return "" if bits == BYTE else f", weights of {bits} bits"


def share_words(words: npt.NDArray[np.int32], bits: int) -> npt.NDArray[np.int32]:
    """Words of four int8 along the last axis, 8 / bits of them in one word; missing ones are zeros, at the front."""
    fields = BYTE // bits
    missing = -words.shape[-1] % fields
    front = [(0, 0)] * (words.ndim - 1) + [(missing, 0)]
    padded = np.pad(words.view(np.uint32), front).reshape(*words.shape[:-1], -1, fields)
    mask = np.uint32(0x01010101 * ((1 << bits) - 1))
    shifts = np.arange(BYTE - bits, -1, -bits, dtype=np.uint32)
    shared: npt.NDArray[np.uint32] = np.bitwise_or.reduce((padded & mask) << shifts, axis=-1)
    return shared.view(np.int32)


def share_bytes(values: AnyArray, bits: int) -> npt.NDArray[np.int8]:
    """[rows, count] integers of `bits` bits: 8 / bits of them in a byte, the first in the lowest bits."""
    fields = BYTE // bits
    rows, count = values.shape
    behind = ((0, 0), (0, -count % fields))
    padded = np.pad(values.astype(np.int8).view(np.uint8), behind).reshape(rows, -(-count // fields), fields)
    mask = np.uint8((1 << bits) - 1)
    shifts = np.arange(0, BYTE, bits, dtype=np.uint8)
    shared: npt.NDArray[np.uint8] = np.bitwise_or.reduce((padded & mask) << shifts, axis=-1)
    return shared.view(np.int8)


@dataclass(frozen=True)
class Fields:
    """Weights of `bits` bits in bytes at the C pointer `w`, with the taps of `together` channels interleaved."""

    bits: int
    together: int = 1

    @property
    def in_byte(self) -> int:
        """Taps in a byte, each for all channels."""
        return BYTE // (self.bits * self.together)

    def pack(self, weights: AnyArray) -> npt.NDArray[np.int8]:
        """Bytes of [channels, taps], a row for each group of channels."""
        channels, taps = weights.shape
        groups = weights.reshape(channels // self.together, self.together, taps).transpose(0, 2, 1)
        return share_bytes(groups.reshape(len(groups), taps * self.together), self.bits)

    def row_bytes(self, taps: int) -> int:
        """Bytes of a row of `taps` taps."""
        return -(-taps * self.together * self.bits // BYTE)

    def tap(self, index: str, offset: int, *, channel: int = 0, aligned: bool = False) -> str:
        """C expression of the weight at tap `index` + `offset`; `index` is a variable or empty.

        `aligned` guarantees that it is a multiple of the taps in a byte.
        """
        low, shift = channel * self.bits, self.in_byte.bit_length() - 1
        if self.in_byte == 1:
            return f"fxp_bit_field(w[{_sum(index, offset)}], {low}, {self.bits})"
        if aligned or not index:
            byte = _sum(f"({index} >> {shift})" if index else "", offset // self.in_byte)
            low += offset % self.in_byte * self.together * self.bits
            return f"fxp_bit_field(w[{byte}], {low}, {self.bits})"
        place = _sum(index, offset)
        turn = f"(({place}) & {self.in_byte - 1}) * {self.together * self.bits}"
        return f"fxp_bit_field(w[({place}) >> {shift}], {_sum(turn, low)}, {self.bits})"


def _sum(index: str, offset: int) -> str:
    return f"{index} + {offset}" if index and offset else index or str(offset)
