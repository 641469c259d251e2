"""The float matrix product under convolutions: two pixels x four output channels.

Constants of four output channels: four biases, then four weights for every tap; missing channels are zeros.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .....ir.ops.accumulate import Clamp
from ..rounding import clamped

FloatArray = npt.NDArray[np.float32]

HEADERS = ("real.h", "blocked.h")
PIXELS, CHANNELS = 2, 4
_UNROLL = 4


@dataclass(frozen=True)
class Tap:
    """One tap of a window, and the weights of four channels for it."""

    x: int
    w0: int
    w1: int
    w2: int
    w3: int


@dataclass(frozen=True)
class Output:
    """One of the channels computed together; `ends` if the last group does not have it."""

    index: int
    ends: bool


@dataclass(frozen=True)
class FloatGemm:
    """`channels` output channels over `taps`, with the residual and the bounds of the sums."""

    channels: int
    taps: int
    clamp: Clamp
    residual: bool

    @property
    def value(self) -> str:
        """The C expression of a result from `value`."""
        return clamped("value", self.clamp)

    @property
    def residual_parameter(self) -> str:
        """Declaration of the residual parameter."""
        return "const float *r, " if self.residual else ""

    @property
    def residual_argument(self) -> str:
        """Argument that passes the residual on."""
        return "r, " if self.residual else ""

    @property
    def loops(self) -> int:
        """Iterations of the loop over taps."""
        return self.taps // _UNROLL if self.taps >= 2 * _UNROLL else 0

    @property
    def looped(self) -> tuple[Tap, ...]:
        """The taps of one iteration."""
        return _taps(_UNROLL if self.loops else 0)

    @property
    def single(self) -> tuple[Tap, ...]:
        """The taps after the loop."""
        return _taps(self.taps - self.loops * len(self.looped))

    @property
    def loop_weights(self) -> int:
        """Weights of one iteration."""
        return CHANNELS * len(self.looped)

    @property
    def single_weights(self) -> int:
        """Weights after the loop."""
        return CHANNELS * len(self.single)

    @property
    def outputs(self) -> tuple[Output, ...]:
        """The four channels."""
        return outputs(self.channels, CHANNELS)

    @property
    def products(self) -> float:
        """Instructions of the taps for all channels of two pixels, with a multiply-add in one instruction."""
        return (14.3 * self.taps + 3 * self.loops) * -(-self.channels // CHANNELS)

    @property
    def around(self) -> float:
        """Instructions before and after the taps."""
        return (40 + 16 * (self.clamp is not None) + 16 * self.residual) * -(-self.channels // CHANNELS)


def outputs(channels: int, together: int) -> tuple[Output, ...]:
    """The channels computed together, with the end of the last group."""
    last = channels % together
    return tuple(Output(i, 0 < i == last) for i in range(together))


def group_floats(channels: int, taps: int, *, together: int) -> int:
    """Number of constants of channels computed `together` at a time."""
    return -(-channels // together) * together * (1 + taps)


def pack_groups(weights: FloatArray, bias: FloatArray | None, *, together: int) -> FloatArray:
    """Constants of channels computed `together` at a time; `weights` is [channels, taps]."""
    channels, taps = weights.shape
    groups = -(-channels // together)
    filled = np.zeros((groups * together, 1 + taps), np.float32)
    filled[:channels, 1:] = weights
    if bias is not None:
        filled[:channels, 0] = bias
    return np.ascontiguousarray(filled.reshape(groups, together, -1).transpose(0, 2, 1)).reshape(-1)


def _taps(count: int) -> tuple[Tap, ...]:
    return tuple(Tap(i, *(CHANNELS * i + channel for channel in range(CHANNELS))) for i in range(count))
