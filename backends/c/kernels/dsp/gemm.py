"""The integer matrix product under convolutions: two, three or four pixels x two output channels, 4 taps a step.

Constants of a pair of output channels, as 32-bit words: two biases, then for every step one word of four weights of
each channel, two multipliers, and, in a shifted epilogue, two left shifts. A word has its lowest byte first,
independent of the byte order of the machine: the C splits it by shifts or by SXTB16. Words of weights of fewer bits
share words, see `low_bits`; sums and biases are then 2^(8 - bits) times as large until the end. An odd number of
channels is padded with a channel of zeros that is computed but not stored. Weights that several calls read are a
separate array; biases, multipliers and shifts are another one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..low_bits import BYTE, share_words
from .epilogue import Epilogue

Int32Array = npt.NDArray[np.int32]
IntArray = npt.NDArray[np.integer]

CHANNELS = 2
_MAX_STRAIGHT = 8
_MOST_PIXELS = 4
_PIXELS = 3
"""Pixels at a time for weights of fewer than 8 bits, and if others save less than `_WORTH` of the steps."""
_WORTH = 0.03
_LANES = (0, 2, 1, 3)  # taps of a step in the order of the pixels' words, the even word first


@dataclass(frozen=True, slots=True)
class Tile:
    """Registers of the product of some pixels: of the sums of both channels, and others that a step uses.

    `end` has the end of the columns on entry and is free afterwards. A sum in r7, which cannot be an operand of
    assembly, is moved to the register `moved` at the end.
    """

    first: tuple[str, ...]
    second: tuple[str, ...]
    end: str
    used: tuple[str, ...]
    moved: str = ""

    @property
    def results(self) -> dict[str, str]:
        """The register of each sum at the end, by its name."""
        named = [(f"a{i}", r) for i, r in enumerate(self.first)] + [
            (f"b{i}", r) for i, r in enumerate(self.second)
        ]
        return {name: self.moved if register == "r7" else register for name, register in named}

    @property
    def copies(self) -> tuple[tuple[str, str], ...]:
        """Registers of sums that start as copies of another one, which has the bias."""
        return tuple((to, row[0]) for row in (self.first, self.second) for to in row[1:])


_TILES = {
    2: Tile(("r2", "r3"), ("r4", "r5"), "r8", ("r6", "r9", "r10", "r11", "r12", "lr")),
    3: Tile(("r2", "r3", "r4"), ("r5", "r6", "r12"), "r8", ("r9", "r10", "r11", "lr")),
    4: Tile(("r2", "r3", "r4", "r5"), ("r6", "r7", "r8", "r9"), "r11", ("r12", "lr"), moved="r10"),
}


@dataclass(frozen=True, slots=True)
class _Step:
    """A step of four taps: macros of the steps that share a word of weights, and instructions and bytes of code of
    one.
    """

    macros: tuple[str, ...]
    instructions: float
    code_bytes: int


_STEPS = {
    (3, 8): _Step(("FXP_STEP_3X2",), 19, 88),
    (3, 4): _Step(("FXP_STEP_3X2_INT4",), 22, 107),
    (3, 2): _Step(("FXP_STEP_3X2_INT2_FIRST", "FXP_STEP_3X2_INT2_SECOND"), 22.5, 107),
    (3, 16): _Step(("FXP_STEP_3X2_INT16",), 16, 66),
    (2, 8): _Step(("FXP_STEP_2X2",), 14, 60),
    (2, 16): _Step(("FXP_STEP_2X2_INT16",), 11, 46),
    (4, 8): _Step(("FXP_STEP_4X2",), 26, 110),
    (4, 16): _Step(("FXP_STEP_4X2_INT16",), 22, 90),
}


@dataclass(frozen=True, slots=True)
class Pixel:
    """One of the pixels of a group: its number, and the C expression of its distance from the first."""

    index: int
    offset: str

    @property
    def next(self) -> str:
        """The same for the next channel."""
        return f"{self.offset} + 1" if self.index else "1"

    @property
    def argument(self) -> str:
        """The distance as a parameter; the first pixel has none."""
        return f"ptrdiff_t {self.offset}"


_OFFSETS = ("0", "second", "third", "fourth")


def pixels_together(pixels: int, bits: int) -> int:
    """Number of pixels at a time with the fewest instructions; if there are few pixels, the number of a group."""
    if (2, bits) not in _STEPS:
        return _PIXELS

    def steps(together: int) -> float:
        return -(-pixels // together) * _STEPS[together, bits].instructions

    best = min(range(2, _MOST_PIXELS + 1), key=steps)
    return best if steps(best) < (1 - _WORTH) * steps(_PIXELS) else _PIXELS


def fewer_together(together: int, bits: int) -> range:
    """Numbers of pixels at a time below this one."""
    return range(2 if (2, bits) in _STEPS else _PIXELS, together)


@dataclass(frozen=True)
class Gemm:
    """`channels` output channels over 4 * `steps` taps, with weights of 16, 8, 4 or 2 bits, of `pixels` at a time."""

    channels: int
    steps: int
    shifted: bool
    bits: int = BYTE
    pixels: int = _PIXELS

    @property
    def tile(self) -> Tile:
        """The registers of the product."""
        return _TILES[self.pixels]

    @property
    def places(self) -> tuple[Pixel, ...]:
        """The pixels of a group."""
        return tuple(Pixel(i, offset) for i, offset in enumerate(_OFFSETS[: self.pixels]))

    @property
    def further(self) -> tuple[Pixel, ...]:
        """The pixels after the first."""
        return self.places[1:]

    @property
    def count_text(self) -> str:
        """The number of pixels of a group as text."""
        return {2: "two", 3: "three", 4: "four"}[self.pixels]

    @property
    def offset_arguments(self) -> str:
        """Distances of the pixels after the first, as arguments of a call in C."""
        return ", ".join(pixel.offset for pixel in self.further)

    @property
    def offset_parameters(self) -> str:
        """The same as parameters of a function."""
        return ", ".join(pixel.argument for pixel in self.further)

    @property
    def is_wide(self) -> bool:
        """True if weights have 16 bits."""
        return self.bits > BYTE

    @property
    def odd(self) -> bool:
        """True if the last pair has a channel of zeros."""
        return self.channels % 2 == 1

    @property
    def column_words(self) -> int:
        """Words of a group of expanded, interleaved pixels."""
        return self.column_stride * self.steps

    @property
    def column_stride(self) -> int:
        """Words of a group of pixels in a step."""
        return 2 * self.pixels

    @property
    def scale_words(self) -> int:
        """Words after the weights of a pair."""
        return 4 if self.shifted else 2

    @property
    def words(self) -> range:
        """The words of a pair in the order of the steps, in twos; the first ones may be missing."""
        missing = -2 * self.steps % max(BYTE // self.bits, 1)
        return range(missing, missing + 2 * self.steps)

    @property
    def weight_words(self) -> int:
        """Words of the weights of a pair in memory."""
        return self.words.stop * self.bits // BYTE

    @property
    def constant_words(self) -> tuple[int, int]:
        """Words of the weights of all channels, and of their biases and scales."""
        return self._pairs * self.weight_words, self._pairs * (CHANNELS + self.scale_words)

    @property
    def unscale(self) -> int:
        """Bits by which sums are shifted at the end."""
        return max(BYTE - self.bits, 0)

    @property
    def looped_steps(self) -> tuple[str, ...]:
        """The steps in the body of the loop; empty if all are unrolled."""
        return self._written(self.steps - self._unroll, self.steps)

    @property
    def single_steps(self) -> tuple[str, ...]:
        """The unrolled steps before the loop."""
        return self._written(0, self.steps % self._unroll if self._unroll else self.steps)

    def _written(self, start: int, stop: int) -> tuple[str, ...]:
        kinds, first = self._step.macros, self.words.start // 2
        return tuple(kinds[(first + step) % len(kinds)] for step in range(start, stop))

    @property
    def _unroll(self) -> int:
        if self.steps <= _MAX_STRAIGHT:
            return 0
        unrolls = [unroll for unroll in (4, 5, 6, 3) if unroll % len(self._step.macros) == 0]
        return min(unrolls, key=lambda unroll: (self.steps % unroll, 4 - unroll))

    @property
    def products(self) -> float:
        """Instructions of the steps for all channels of a group of pixels."""
        loops = self.steps // self._unroll if self._unroll else 0
        return (self._step.instructions * self.steps + 3 * loops) * self._pairs

    def around(self, epilogue: Epilogue) -> float:
        """Instructions before and after the steps."""
        ends = 10 + 8 * self.pixels + self._set_up + 2 * self.pixels * (self.unscale > 0)
        return (ends + 2 * self.pixels * epilogue.instructions) * self._pairs

    @property
    def _step(self) -> _Step:
        return _STEPS[self.pixels, self.bits]

    @property
    def _pairs(self) -> int:
        return (self.channels + 1) // 2

    @property
    def _set_up(self) -> int:
        """Instructions before the steps of a pair; with few steps GCC keeps their results in registers from pair to
        pair.
        """
        return min(self.steps, 6)

    @property
    def code_bytes(self) -> int:
        """Bytes of code; the size of the epilogue is within the variation of the compiler's other code."""
        written = len(self.single_steps) + len(self.looped_steps)
        return 132 + self._step.code_bytes * written


def pack_rows(
    epilogue: Epilogue,
    taps: IntArray,
    bias: IntArray,
    multiplier: IntArray,
    shift: IntArray,
    *,
    together: int,
    bits: int = BYTE,
) -> tuple[Int32Array, ...]:
    """The constants of channels that are computed `together` at a time; `taps` is [channels, 4 * steps].

    Biases, for every step a word of each channel, multipliers, shifts; missing channels are zeros.
    """
    groups, ordered = -(-len(taps) // together), tap_words(taps, together=together, bits=bits)

    def grouped(values: IntArray) -> Int32Array:
        everyone = np.zeros(groups * together, np.int32)
        everyone[: len(taps)] = values
        return everyone.reshape(groups, together)

    biases = grouped(np.asarray(bias) << max(BYTE - bits, 0))
    scales = [grouped(values) for values in (multiplier, shift)[: 1 + epilogue.shifted]]
    return pack_arrays(epilogue, biases, ordered if bits > BYTE else share_words(ordered, bits), scales)


def tap_words(taps: IntArray, *, together: int, bits: int) -> Int32Array:
    """Weights [channels, 4 * steps] as words, [groups, words]: for every step those of each of `together` channels.

    A word has four weights of at most 8 bits, or two of 16 in the lanes of the words of the operand.
    """
    groups = -(-len(taps) // together)
    filled = np.zeros((groups * together, taps.shape[1]), "<i2" if bits > BYTE else "i1")
    filled[: len(taps)] = taps
    if bits > BYTE:
        filled = np.ascontiguousarray(filled.reshape(len(filled), -1, 4)[:, :, _LANES])
    words = filled.view("<i4").astype(np.int32).reshape(groups, together, -1, max(bits // BYTE, 1))
    return words.transpose(0, 2, 3, 1).reshape(groups, -1)


def pack_arrays(
    epilogue: Epilogue, biases: Int32Array, weights: Int32Array, scales: Sequence[Int32Array]
) -> tuple[Int32Array, ...]:
    """The arrays of constants in the form of the kernels, each of [groups of channels, words]: biases, weights,
    scales.
    """
    if epilogue.apart:
        return weights.reshape(-1), np.concatenate([biases, *scales], axis=1).reshape(-1)
    return (np.concatenate([biases, weights, *scales], axis=1).reshape(-1),)
