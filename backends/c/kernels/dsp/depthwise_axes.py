"""The two spatial axes of the DSP depthwise convolution: taps of a row are paired along one of them.

A channel is stored in a plane of 16-bit cells, with rows along the axis of the pairs. A word of the plane has two
cells, a word of weights two taps: this module decides which halves are multiplied, for outputs that are computed
`BLOCK` at a time.
"""

from __future__ import annotations

from dataclasses import dataclass

from .depthwise_taps import Taps
from .epilogue import Epilogue

BLOCK = 4


@dataclass(frozen=True)
class Axis:
    """One spatial axis: outputs, inputs that are read, and the distance of a step along it in x and y."""

    outputs: int
    inputs: int
    kernel: int
    stride: int
    padding: int
    in_step: int
    out_step: int

    @property
    def inputs_read(self) -> int:
        """Inputs that are covered by some window."""
        return max(0, min(self.inputs, (self.outputs - 1) * self.stride + self.kernel - self.padding))


@dataclass(frozen=True)
class Axes:
    """`along` is the axis whose taps are paired, `across` the other one."""

    along: Axis
    across: Axis
    turned: bool
    head_words: int
    bits: int

    @property
    def tail(self) -> int:
        """Outputs of a row after the last whole block."""
        return self.along.outputs % BLOCK

    @property
    def pitch(self) -> int:
        """Cells of a row of the plane, even."""
        return _even(max(_reach(self.along), self.along.padding + self.along.inputs_read))

    @property
    def plane_cells(self) -> int:
        """Cells of the plane."""
        return self.pitch * max(_reach(self.across), self.across.padding + self.across.inputs_read)

    @property
    def pair_starts(self) -> list[int]:
        """The first tap of every weight word of a kernel row."""
        kernel = self.along.kernel
        if self.along.stride % 2 == 0 or self.along.outputs == 1 or kernel == 1:
            return list(range(0, kernel, 2))
        return [*range(0, kernel - 1, 2), *range(1, kernel - 1, 2)]

    @property
    def taps(self) -> Taps:
        """The weights of a channel."""
        return Taps(self.across.kernel, self.along.kernel, tuple(self.pair_starts), self.bits)

    @property
    def channel_words(self) -> int:
        """Words of constants of a channel as they are multiplied."""
        return self.head_words + self.taps.words

    def instructions(self, epilogue: Epilogue) -> float:
        """Instructions for one channel."""
        macs = sum(count * len(row_macs(self, outputs)) for count, outputs in self.blocks)
        products = 1.3 * self.across.outputs * self.across.kernel * macs
        return self.copy_instructions + products + self.block_instructions(epilogue)

    @property
    def copy_instructions(self) -> float:
        """Instructions that copy one channel to the plane."""
        return 20 + self.across.inputs_read * (6 + 2.5 * self.along.inputs_read)

    def block_instructions(self, epilogue: Epilogue) -> float:
        """Instructions that begin and end the blocks of one channel."""
        row = sum(count * (5 + outputs * (4 + epilogue.instructions)) for count, outputs in self.blocks)
        return self.across.outputs * (8 + row)

    @property
    def blocks(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """The numbers of whole blocks and of the last block in a row, and their outputs."""
        return (self.along.outputs // BLOCK, BLOCK), (int(self.tail > 0), self.tail)


def _reach(axis: Axis) -> int:
    return (axis.outputs - 1) * axis.stride + axis.kernel


def _even(cells: int) -> int:
    return cells + cells % 2


@dataclass(frozen=True)
class Mac:
    """One multiply-accumulate: sum = function(x word, weight word, sum)."""

    function: str
    x: int
    start: int
    output: int


def row_macs(axes: Axes, outputs: int) -> list[Mac]:
    """Multiply-accumulates of one kernel row for a block of `outputs`."""
    return [mac for output in range(outputs) for mac in _window_macs(axes, output)]


def _window_macs(axes: Axes, output: int) -> list[Mac]:
    macs, tap, cell = [], 0, output * axes.along.stride
    while tap < axes.along.kernel:
        if cell % 2 == 0 and tap in axes.pair_starts:
            macs.append(Mac("fxp_dot2", cell // 2, tap, output))
            taps = 2
        else:
            start = tap if tap in axes.pair_starts else tap - 1
            lanes = f"{'high' if cell % 2 else 'low'}_{'low' if start == tap else 'high'}"
            macs.append(Mac(f"fxp_{lanes}", cell // 2, start, output))
            taps = 1
        tap, cell = tap + taps, cell + taps
    return macs
