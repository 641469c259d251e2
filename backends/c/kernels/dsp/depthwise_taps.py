"""Weights of the DSP depthwise kernel: two taps of a kernel row in a word, the operand of SMLAD.

int8 weights are stored in this form in flash. Weights of fewer bits are packed there, the taps of a channel one after
the other, the lowest bits first, and are unpacked to such words in working memory, channel by channel.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..low_bits import BYTE, share_bytes
from .gemm import Int32Array, IntArray

_WORD = 32


@dataclass(frozen=True)
class Taps:
    """The taps of `rows` kernel rows of `length`; a word holds those at `start` and `start` + 1, or zero beyond."""

    rows: int
    length: int
    starts: tuple[int, ...]
    bits: int

    @property
    def words(self) -> int:
        """Words of a channel as they are multiplied."""
        return self.rows * len(self.starts)

    @property
    def packed_words(self) -> int:
        """Words of a channel in flash."""
        return self.words if self.bits == BYTE else -(-self.rows * self.length * self.bits // _WORD)


@dataclass(frozen=True)
class Unpacked:
    """One word, at `offset`, of two lanes that are C expressions of `packed`."""

    offset: int
    low: str
    high: str


def pack_taps(taps: Taps, weights: IntArray) -> Int32Array:
    """The words of each channel in flash, [channels, words]; `weights` is [channels, rows, length]."""
    if taps.bits < BYTE:
        packed = share_bytes(weights.reshape(len(weights), -1), taps.bits)
        whole = np.pad(packed, ((0, 0), (0, 4 * taps.packed_words - packed.shape[1])))
        return whole.view(np.dtype("<i4")).astype(np.int32)
    padded = np.pad(weights.astype(np.int64), ((0, 0), (0, 0), (0, 2))) & 0xFFFF
    pairs = (padded[:, :, :-1] | padded[:, :, 1:] << 16).astype(np.uint32).view(np.int32)
    return pairs[:, :, list(taps.starts)].reshape(len(weights), -1)


def unpack_taps(taps: Taps, *, head_words: int) -> tuple[Unpacked, ...]:
    """Statements that unpack the words after `head_words` into operands; empty if they are not packed."""
    if taps.bits == BYTE:
        return ()

    def lane(row: int, tap: int) -> str:
        if tap >= taps.length:
            return "0"
        word, low = divmod((row * taps.length + tap) * taps.bits, _WORD)
        return f"fxp_bit_field(packed[{head_words + word}], {low}, {taps.bits})"

    places = [(row, start) for row in range(taps.rows) for start in taps.starts]
    return tuple(
        Unpacked(head_words + i, lane(row, start), lane(row, start + 1))
        for i, (row, start) in enumerate(places)
    )
