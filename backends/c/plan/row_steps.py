"""Steps that can compute some rows of their result at a time, and the rows of their operands that each call reads.

A run of layers over an image or a signal needs no whole values between the layers: as soon as the rows under its
windows are available, a layer computes its next rows. A call is the node itself on an image with fewer rows, so its
kernel and cost are found like those of any node. A line buffer has rows of padding before and after its value, and
calls that read it have no padding above and below. A value that is stored whole has no such rows: the first and the
last call that read it have padding on that side, the calls in between have none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import singledispatch
from itertools import groupby

from ....ir import DType, Node, TensorType, Value
from ....ir.along_axis import AxisCall, RefusedError, Sliding, Track, Window, read
from ....ir.ops.base import Op
from ....ir.ops.conv import Conv
from ....ir.ops.pool import MaxPool
from .layout import Layout, arranged, channels_last
from .program import Program, Step, Stored

_BYTE = 256
_INSIDE = (0, 0)

Overhang = tuple[tuple[int, int], ...]
"""By operand, the numbers of rows before its first and after its last one that are under the windows of a call."""


@dataclass(frozen=True)
class Reading:
    """Rows of an operand that a step reads: the first call `span` rows from `start` on, each further call `advance`
    rows later.
    """

    stored: Stored
    start: int
    advance: int
    span: int

    def stop(self, calls: int) -> int:
        """The row after the last one that this many calls read."""
        return self.start + (calls - 1) * self.advance + self.span


@dataclass(frozen=True)
class RowStep:
    """A step that can run some rows at a time; row i of its result reads a window of each operand that has rows.

    `windows` has None for an operand without rows, `paddings` the byte of the rows before and after an operand, None
    if the windows stay inside. `lower` is the node for another number of rows, with padding in place of the rows that
    overhang. `whole` are the operands that are stored whole, without rows of padding.
    """

    step: Step
    height: int
    windows: tuple[Window | None, ...]
    paddings: tuple[int | None, ...]
    lower: Callable[[int, Overhang], Node]
    whole: frozenset[int] = frozenset()

    @property
    def result(self) -> Stored:
        """The result."""
        return self.step.results[0]

    def readings(self, rows: int) -> tuple[Reading | None, ...]:
        """Rows of each operand that each call reads, if a call computes `rows` rows."""
        return tuple(
            None
            if stored is None or window is None
            else Reading(stored, window.start, rows * window.stride, (rows - 1) * window.stride + window.span)
            for stored, window in zip(self.step.operands, self.windows, strict=True)
        )

    def overhangs(self, rows: int) -> tuple[tuple[int, Overhang], ...]:
        """The calls in order, if a call computes `rows` rows: the number of consecutive calls with the same overhang,
        and the overhang.
        """
        readings = self.readings(rows)
        calls = (
            tuple(self._overhang(index, reading, call) for index, reading in enumerate(readings))
            for call in range(self.height // rows)
        )
        return tuple((len(list(alike)), overhang) for overhang, alike in groupby(calls))

    def _overhang(self, index: int, reading: Reading | None, call: int) -> tuple[int, int]:
        if reading is None or index not in self.whole:
            return _INSIDE
        start = reading.start + call * reading.advance
        return max(0, -start), max(0, start + reading.span - height(reading.stored))

    @property
    def least_rows(self) -> int:
        """Rows of a call for which only the first and the last call overhang."""
        least = 1
        for index, reading in enumerate(self.readings(1)):
            if reading is not None and index in self.whole:
                over = max(-reading.start, reading.stop(self.height) - height(reading.stored))
                least = max(least, -(-over // reading.advance))
        return min(least, self.height)


def row_axis(stored: Stored) -> int | None:
    """The dimension of a value that is its rows, consecutive in memory; None if it has no rows."""
    shape, layout = stored.value.type.shape, stored.layout
    if len(shape) < 3 or layout.border or shape[0] != 1:
        return None
    long = [dim for dim in layout.order if shape[dim] > 1]
    is_channels = long[:1] == [1] and layout == channels_last(shape)
    return None if not long or is_channels else long[0]


def row_elements(stored: Stored) -> int:
    """Elements of a row of a value that has rows."""
    axis = row_axis(stored)
    assert axis is not None
    return stored.elements // stored.value.type.shape[axis]


def height(stored: Stored) -> int:
    """Rows of a value that has rows."""
    axis = row_axis(stored)
    assert axis is not None
    return stored.value.type.shape[axis]


def row_step(program: Program, number: int) -> RowStep | str:
    """A step of a program as one that runs by rows, or the reason why that is impossible."""
    step = program.steps[number]
    node = step.node
    if node is None:
        return f"the layout of %{step.results[0].value.name} is converted"
    if step.offer.views is not None:
        return f"{node.op.name} is a view of its whole operand"
    if len(node.outputs) != 1:
        return f"{node.op.name} has several results"
    axes = [
        None if stored is None or stored.value.name in program.graph.params else row_axis(stored)
        for stored in step.operands
    ]
    tracks = tuple(
        None if stored is None or axis is None else Track(axis, stored.value.type.shape[axis])
        for stored, axis in zip(step.operands, axes, strict=True)
    )
    result = step.results[0]
    if not any(tracks):
        return f"no operand of {node.op.name} has rows one behind the other in memory"
    try:
        found = read(node.op, AxisCall(program.graph, node, tracks))
    except RefusedError:
        return f"{node.op.name} reads its operands by no window of rows"
    if not isinstance(found, Sliding):
        return f"{node.op.name} needs all rows at once"
    if row_axis(result) != found.axis:
        return f"the result of {node.op.name} has no rows one behind the other in memory"
    if any((track is None) != (seen is None) for track, seen in zip(tracks, found.windows, strict=True)):
        return f"{node.op.name} reads the same rows of an operand for each row of the result"
    made = RowStep(
        step,
        height(result),
        found.windows,
        (None,) * len(tracks),
        lambda rows, overhang: _lower(node, found, axes, rows, overhang),
    )
    paddings = [_padding(node.op, reading) for reading in made.readings(made.height)]
    if any(padding is not None and not 0 <= padding < _BYTE for padding in paddings):
        return f"rows of padding of {node.op.name} do not consist of one byte"
    return replace(made, paddings=tuple(paddings))


def lower_layout(stored: Stored, rows: int) -> Layout:
    """The layout of this many rows of a value."""
    axis = row_axis(stored)
    assert axis is not None
    return arranged(_resized(stored.value.type.shape, axis, rows), stored.layout.order)


def _lower(node: Node, found: Sliding, axes: list[int | None], rows: int, overhang: Overhang) -> Node:
    """The node for this many rows; rows of its windows before the first row of its operands are padding."""
    inputs: list[Value | None] = []
    op = found.resized(rows)
    for value, window, axis, outside in zip(node.inputs, found.windows, axes, overhang, strict=True):
        if value is None or window is None or axis is None:
            inputs.append(value)
        else:
            span = (rows - 1) * window.stride + window.span
            inputs.append(_of_rows(value, axis, span - sum(outside)))
            op = op if outside == _INSIDE else _padded(op, axis, outside)
    return Node(op, tuple(inputs), (_of_rows(node.output, found.axis, rows),), node.source)


def _padded(op: Op, axis: int, rows: tuple[int, int]) -> Op:
    """The operator with this many rows of padding before and after its operand."""
    assert isinstance(op, Conv | MaxPool)
    return replace(op, padding=(*op.padding[: 2 * (axis - 2)], *rows, *op.padding[2 * (axis - 1) :]))


def _of_rows(value: Value, axis: int, rows: int) -> Value:
    return Value(value.name, value.type.with_shape(_resized(value.type.shape, axis, rows)))


def _resized(shape: tuple[int, ...], axis: int, size: int) -> tuple[int, ...]:
    return (*shape[:axis], size, *shape[axis + 1 :])


def _padding(op: Op, reading: Reading | None) -> int | None:
    """The byte of padding of a step before or after an operand; None without padding, -1 if it is not a single byte."""
    if reading is None or (reading.start >= 0 and reading.start + reading.span <= height(reading.stored)):
        return None
    return padding_byte(op, reading.stored.value.type)


@singledispatch
def padding_byte(op: Op, type: TensorType) -> int:
    """The byte of an operator's padding; -1 if it is not one repeated byte."""
    return -1


@padding_byte.register
def _of_conv(op: Conv, type: TensorType) -> int:
    zero = type.quantization.zero_point[0] if type.quantization else 0
    return zero % _BYTE if type.dtype.bytes == 1 or zero == 0 else -1


@padding_byte.register
def _of_max_pool(op: MaxPool, type: TensorType) -> int:
    least: Mapping[DType, int] = {DType.I8: -128, DType.U8: 0}
    return least[type.dtype] % _BYTE if type.dtype in least else -1
