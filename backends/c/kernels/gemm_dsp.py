"""The integer matrix product under convolutions: three pixels x two output channels, 4 taps a step.

Constants of a pair of output channels, as 32-bit words: two biases, then for every step one word of four
weights of each channel, two multipliers, and, in a shifted epilogue, two left shifts. A word holds its bytes
lowest first, whatever the byte order of the machine: the C takes them apart by shifts or by SXTB16.
An odd number of channels is filled up with a channel of zeros that is computed and not stored.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .epilogue_dsp import Epilogue

Int8Array = npt.NDArray[np.int8]
Int32Array = npt.NDArray[np.int32]
IntArray = npt.NDArray[np.integer]

PIXELS, CHANNELS = 3, 2
_STEP_INSTRUCTIONS, _STEP_CYCLES, _STEP_BYTES = 19, 27, 76
_MAX_STRAIGHT = 8


@dataclass(frozen=True)
class Gemm:
    """`channels` output channels over 4 * `steps` taps."""

    channels: int
    steps: int
    shifted: bool

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
    def looped_steps(self) -> range:
        """The steps written out in the body of the loop; empty where all are written out."""
        return range(self._unroll)

    @property
    def single_steps(self) -> range:
        """The steps written out before the loop."""
        return range(self.steps % self._unroll if self._unroll else self.steps)

    @property
    def _unroll(self) -> int:
        if self.steps <= _MAX_STRAIGHT:
            return 0
        return min((4, 5, 6, 3), key=lambda unroll: (self.steps % unroll, 4 - unroll))

    def instructions(self, epilogue: Epilogue) -> float:
        """Instructions for all channels of three pixels."""
        loops = self.steps // self._unroll if self._unroll else 0
        pair = 40 + _STEP_INSTRUCTIONS * self.steps + 3 * loops + 2 * PIXELS * epilogue.instructions
        return pair * ((self.channels + 1) // 2)

    def cycles(self, epilogue: Epilogue) -> float:
        """Estimated cycles for all channels of three pixels."""
        loops = self.steps // self._unroll if self._unroll else 0
        pair = 58 + _STEP_CYCLES * self.steps + 6 * loops + 2 * PIXELS * 1.3 * epilogue.instructions
        return pair * ((self.channels + 1) // 2)

    def code_bytes(self, epilogue: Epilogue) -> int:
        """Bytes of code."""
        written = len(self.single_steps) + len(self.looped_steps)
        return round(200 + _STEP_BYTES * written + 6 * 3.5 * epilogue.instructions)


def pack_rows(
    taps: Int8Array, bias: IntArray, multiplier: IntArray, shift: IntArray | None, *, together: int
) -> Int32Array:
    """The constants of channels that are computed `together` at a time; `taps` is [channels, 4 * steps].

    Biases, for every step a word of each channel, multipliers, shifts; channels that are missing are zeros.
    """
    groups = -(-len(taps) // together)
    filled = np.zeros((groups * together, taps.shape[1]), np.int8)
    filled[: len(taps)] = taps
    words = filled.view(np.dtype("<i4")).astype(np.int32).reshape(groups, together, -1)

    def grouped(values: IntArray) -> Int32Array:
        everyone = np.zeros(groups * together, np.int32)
        everyone[: len(taps)] = values
        return everyone.reshape(groups, together)

    scales = [grouped(values) for values in (multiplier, shift) if values is not None]
    return np.concatenate(
        [grouped(bias), words.transpose(0, 2, 1).reshape(groups, -1), *scales], axis=1
    ).reshape(-1)
