"""The integer matrix product under convolutions: three pixels x two output channels, 4 taps a step.

Constants of a pair of output channels, as 32-bit words: two biases, then for every step one word of four
weights of each channel, two multipliers, and, in a shifted epilogue, two left shifts. A word holds its bytes
lowest first, whatever the byte order of the machine: the C takes them apart by shifts or by SXTB16. Words of
weights of fewer bits share words, see `low_bits`; sums and biases are then 2^(8 - bits) times as large until the end.
An odd number of channels is filled up with a channel of zeros that is computed and not stored. Weights that several
calls read have an array of their own, and biases, multipliers and shifts another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..low_bits import BYTE, share_words
from .epilogue import Epilogue

Int8Array = npt.NDArray[np.int8]
Int32Array = npt.NDArray[np.int32]
IntArray = npt.NDArray[np.integer]

PIXELS, CHANNELS = 3, 2
_MAX_STRAIGHT = 8
_STEPS = {
    8: ("FXP_STEP_3X2",),
    4: ("FXP_STEP_3X2_INT4",),
    2: ("FXP_STEP_3X2_INT2_FIRST", "FXP_STEP_3X2_INT2_SECOND"),
}


@dataclass(frozen=True, slots=True)
class _StepCost:
    """Cost of a step, averaged over the steps of a word."""

    instructions: float
    code_bytes: int


_STEP_COSTS = {8: _StepCost(19, 88), 4: _StepCost(22, 107), 2: _StepCost(22.5, 107)}


@dataclass(frozen=True)
class Gemm:
    """`channels` output channels over 4 * `steps` taps, with weights of 8, 4 or 2 bits."""

    channels: int
    steps: int
    shifted: bool
    bits: int = BYTE

    @property
    def odd(self) -> bool:
        """Whether the last pair holds a channel of zeros."""
        return self.channels % 2 == 1

    @property
    def column_words(self) -> int:
        """Words of three expanded, interleaved pixels."""
        return 2 * PIXELS * self.steps

    @property
    def scale_words(self) -> int:
        """Words behind the weights of a pair."""
        return 4 if self.shifted else 2

    @property
    def words(self) -> range:
        """The words of a pair as the steps take them, by two; the first ones may be missing in front."""
        missing = -2 * self.steps % (BYTE // self.bits)
        return range(missing, missing + 2 * self.steps)

    @property
    def weight_words(self) -> int:
        """Words of the weights of a pair as they lie in memory."""
        return self.words.stop * self.bits // BYTE

    @property
    def constant_words(self) -> tuple[int, int]:
        """Words of the weights of all channels, and of their biases and scales."""
        return self._pairs * self.weight_words, self._pairs * (CHANNELS + self.scale_words)

    @property
    def unscale(self) -> int:
        """Bits by which sums are shifted at the end."""
        return BYTE - self.bits

    @property
    def looped_steps(self) -> tuple[str, ...]:
        """The steps written out in the body of the loop; empty if all are written out."""
        return self._written(self.steps - self._unroll, self.steps)

    @property
    def single_steps(self) -> tuple[str, ...]:
        """The steps written out before the loop."""
        return self._written(0, self.steps % self._unroll if self._unroll else self.steps)

    def _written(self, start: int, stop: int) -> tuple[str, ...]:
        kinds, first = _STEPS[self.bits], self.words.start // 2
        return tuple(kinds[(first + step) % len(kinds)] for step in range(start, stop))

    @property
    def _unroll(self) -> int:
        if self.steps <= _MAX_STRAIGHT:
            return 0
        unrolls = [unroll for unroll in (4, 5, 6, 3) if unroll % len(_STEPS[self.bits]) == 0]
        return min(unrolls, key=lambda unroll: (self.steps % unroll, 4 - unroll))

    @property
    def products(self) -> float:
        """Instructions of the steps for all channels of three pixels."""
        loops = self.steps // self._unroll if self._unroll else 0
        return (_STEP_COSTS[self.bits].instructions * self.steps + 3 * loops) * self._pairs

    def around(self, epilogue: Epilogue) -> float:
        """Instructions before and after the steps."""
        ends = 34 + self._set_up + 2 * PIXELS * (self.unscale > 0)
        return (ends + 2 * PIXELS * epilogue.instructions) * self._pairs

    @property
    def _pairs(self) -> int:
        return (self.channels + 1) // 2

    @property
    def _set_up(self) -> int:
        """Instructions before the steps of a pair that GCC keeps in registers from pair to pair where steps are few."""
        return min(self.steps, 6)

    @property
    def code_bytes(self) -> int:
        """Bytes of code; what the epilogue takes is lost in what the compiler makes of the rest."""
        written = len(self.single_steps) + len(self.looped_steps)
        return 132 + _STEP_COSTS[self.bits].code_bytes * written


def pack_rows(
    epilogue: Epilogue,
    taps: Int8Array,
    bias: IntArray,
    multiplier: IntArray,
    shift: IntArray,
    *,
    together: int,
    bits: int = BYTE,
) -> tuple[Int32Array, ...]:
    """The constants of channels that are computed `together` at a time; `taps` is [channels, 4 * steps].

    Biases, for every step a word of each channel, multipliers, shifts; channels that are missing are zeros.
    """
    groups = -(-len(taps) // together)
    filled = np.zeros((groups * together, taps.shape[1]), np.int8)
    filled[: len(taps)] = taps
    words = filled.view(np.dtype("<i4")).astype(np.int32).reshape(groups, together, -1)
    ordered = words.transpose(0, 2, 1).reshape(groups, -1)

    def grouped(values: IntArray) -> Int32Array:
        everyone = np.zeros(groups * together, np.int32)
        everyone[: len(taps)] = values
        return everyone.reshape(groups, together)

    biases = grouped(np.asarray(bias) << (BYTE - bits))
    scales = [grouped(values) for values in (multiplier, shift)[: 1 + epilogue.shifted]]
    return pack_arrays(epilogue, biases, share_words(ordered, bits), scales)


def pack_arrays(
    epilogue: Epilogue, biases: Int32Array, weights: Int32Array, scales: Sequence[Int32Array]
) -> tuple[Int32Array, ...]:
    """The arrays of constants as kernels read them, of [groups of channels, words] each: biases, weights, scales."""
    if epilogue.apart:
        return weights.reshape(-1), np.concatenate([biases, *scales], axis=1).reshape(-1)
    return (np.concatenate([biases, weights, *scales], axis=1).reshape(-1),)
