"""Elements that each operator reads along an axis: a sliding window, a view, or all at once.

`read(op, call)` returns this for a node of which at least one operand has the axis. The axis is time for a streamed
network, whose elements the messages call frames, and the rows of an image for layers that run some rows at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import singledispatch
from math import prod

from .errors import IRError
from .graph import Graph, Node
from .ops.activation import Elementwise
from .ops.attention import Attention
from .ops.base import Op
from .ops.binary import Binary
from .ops.compare import ArgExtremum, Compare, Logic, Where
from .ops.conv import Conv, ConvTranspose
from .ops.convert import Cast
from .ops.embedding import Embedding, Take
from .ops.linear import Linear
from .ops.matmul import MatMul
from .ops.norm import BatchNorm, GroupNorm, InstanceNorm, RowNorm
from .ops.pad import Pad
from .ops.pool import AdaptiveAvgPool, AvgPool, MaxPool
from .ops.prelu import Prelu
from .ops.quantize import Dequantize, FakeQuantizePerToken, OffsetBinary, Quantize, Requantize
from .ops.recurrent import Recurrent
from .ops.reduce import Reduction
from .ops.reorder import Flip, Roll
from .ops.shape import Copy, Expand, Permute, Reshape
from .ops.slicing import Concat, Select, Slice, Split
from .ops.softmax import LogSoftmax, Softmax
from .ops.spatial import pairs
from .tensor_type import TensorType, Value

Resized = Callable[[int], Op]
"""The operator for another number of elements along time."""


@dataclass(frozen=True)
class Window:
    """Window of the elements that element i of the result reads: `span` elements from `start + i * stride` on."""

    start: int = 0
    stride: int = 1
    span: int = 1


_OWN_FRAME = Window()


@dataclass(frozen=True)
class Sliding:
    """Each element of the results reads a window of each operand; time is dimension `axis` of the results.

    `windows` has one entry for each operand: None for an operand that is the same for all elements.
    """

    axis: int
    windows: tuple[Window | None, ...]
    resized: Resized


@dataclass(frozen=True)
class Viewing:
    """Each result is a view of elements of the only operand with time: one window of one element for each result."""

    axis: int
    windows: tuple[Window, ...]


@dataclass(frozen=True)
class Gathering:
    """The results have no time axis: elements `start` to `stop` of each operand with time are read at once."""

    spans: tuple[tuple[int, int] | None, ...]
    op: Op


Reading = Sliding | Viewing | Gathering


class RefusedError(IRError):
    """A node whose reads no window describes, with the reason."""


@dataclass(frozen=True)
class Track:
    """Axis of a value, and number of elements along it."""

    axis: int
    count: int


@dataclass(frozen=True)
class AxisCall:
    """A node with the tracks of its operands; None for operands without the axis."""

    graph: Graph
    node: Node
    tracks: tuple[Track | None, ...]

    @property
    def track(self) -> Track:
        """Track of the first operand that has one."""
        return next(track for track in self.tracks if track is not None)

    @property
    def type(self) -> TensorType:
        """Type of the operand with that track."""
        pairs = zip(self.node.inputs, self.tracks, strict=True)
        return next(value.type for value, track in pairs if value is not None and track is not None)

    def named(self, name: str) -> Track | None:
        """Track of the operand with this name; None if the operand is absent or has no track."""
        return self.node.op.optional(self.tracks, name)

    def same(self, axis: int | None = None, resized: Resized | None = None) -> Sliding:
        """Sliding of elementwise operators: each element of the result reads the element at the same index of each
        operand with time.
        """
        windows = tuple(None if track is None else _OWN_FRAME for track in self.tracks)
        return Sliding(self.track.axis if axis is None else axis, windows, resized or self.unchanged)

    def unchanged(self, count: int) -> Op:
        """The operator unchanged."""
        return self.node.op

    def all_frames(self) -> Gathering:
        """Gathering of all elements, with the operator unchanged."""
        spans = tuple(None if track is None else (0, track.count) for track in self.tracks)
        return Gathering(spans, self.node.op)

    def aligned(self, axes: Sequence[int | None], axis: int) -> Sliding:
        """Like `same`, for operands with time on these dimensions, and a result with time on `axis`.

        A constant may have the time axis, too, if it is the same for all frames.
        """
        windows: list[Window | None] = []
        count = self.track.count
        for value, track, own in zip(self.node.inputs, self.tracks, axes, strict=True):
            if track is not None and (track.axis != own or track.count != count):
                raise RefusedError("joins values whose frames do not correspond")
            is_long = value is not None and own is not None and value.type.shape[own] != 1
            if track is None and is_long:
                assert value is not None and own is not None
                self._check_uniform(value, own)
            windows.append(_OWN_FRAME if track is not None or is_long else None)
        return Sliding(axis, tuple(windows), self.unchanged)

    def _check_uniform(self, value: Value, axis: int) -> None:
        if not self.graph.is_constant(value):
            raise RefusedError(
                f"joins frames with %{value.name}, which is computed from the whole window: all frames change at "
                "each call"
            )
        tensor = self.graph.tensor(value)
        if not bool((tensor == tensor.narrow(axis, 0, 1)).all()):
            raise RefusedError(
                f"reads the constant %{value.name}, which differs between frames of the window"
            )

    def check_layer(self) -> None:
        """Raises RefusedError unless the operand of a layer has a time axis and its weights have none."""
        if self.named("weight") is not None or self.named("bias") is not None:
            raise RefusedError("has weights that differ between frames")
        if self.named("x") is None:
            raise RefusedError("adds frames to a value without a time axis")


@singledispatch
def read(op: Op, call: AxisCall) -> Reading:
    """Reads of the operands of a node along time; RefusedError with the reason if the node cannot be streamed."""
    raise RefusedError(f"{op.name} has no rule to run frame by frame")


@read.register(Elementwise)
@read.register(Quantize)
@read.register(Dequantize)
@read.register(Requantize)
@read.register(OffsetBinary)
@read.register(Cast)
@read.register(Copy)
def _elementwise(op: Op, call: AxisCall) -> Reading:
    return call.same()


@read.register
def _per_token(op: FakeQuantizePerToken, call: AxisCall) -> Reading:
    if call.track.axis == call.type.rank - 1:
        raise RefusedError("computes the largest magnitude over time: it needs the whole window")
    return call.same()


@read.register
def _prelu(op: Prelu, call: AxisCall) -> Reading:
    _check_channels(call, parameters=call.node.operand("slope").type.numel)
    return call.same()


@read.register
def _batch_norm(op: BatchNorm, call: AxisCall) -> Reading:
    _check_channels(call, parameters=call.type.shape[1])
    return call.same()


def _check_channels(call: AxisCall, *, parameters: int) -> None:
    if call.track.axis == 1 and parameters > 1:
        raise RefusedError("has separate parameters for each frame: time is its channel dimension")


@read.register(Binary)
@read.register(Compare)
@read.register(Logic)
@read.register(Where)
def _broadcast(op: Op, call: AxisCall) -> Reading:
    rank = call.node.outputs[0].type.rank
    behind = rank - (call.track.axis + rank - call.type.rank)  # counted from the last dimension
    axes = [
        None if value is None or value.type.rank < behind else value.type.rank - behind
        for value in call.node.inputs
    ]
    return call.aligned(axes, rank - behind)


@read.register
def _conv(op: Conv, call: AxisCall) -> Reading:
    return _convolved(call, op.stride, op.padding, op.dilation, lambda axis: _without_padding(op, axis))


@read.register
def _conv_transpose(op: ConvTranspose, call: AxisCall) -> Reading:
    axis, weight = call.track.axis, call.node.operand("weight")
    if axis >= 2:
        along = (weight.type.shape[axis], op.stride[axis - 2], op.output_padding[axis - 2])
        if along != (1, 1, 0) or any(pairs(op.padding)[axis - 2]):
            raise RefusedError("is a transposed convolution along time, which inserts frames between frames")
    return _convolved(call, op.stride, op.padding, op.dilation, lambda axis: op)


def _convolved(
    call: AxisCall,
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    padded_elsewhere: Callable[[int], Op],
) -> Reading:
    residual, axis = call.named("residual"), call.track.axis
    weight = call.node.operand("weight")
    call.check_layer()
    if axis == 1:  # channels, of which each result reads all
        return call.all_frames()
    resized: Resized = call.unchanged
    if axis == 0:
        window = _OWN_FRAME
    else:
        spatial = axis - 2
        extent = dilation[spatial] * (weight.type.shape[axis] - 1) + 1
        window = Window(-pairs(padding)[spatial][0], stride[spatial], extent)
        resized = _constantly(padded_elsewhere(axis))
    if residual is not None and residual.axis != axis:
        raise RefusedError("joins values whose frames do not correspond")
    windows = {"x": window, "residual": _OWN_FRAME if residual is not None else None}
    names = [call.node.op.name_of(index) for index in range(len(call.node.inputs))]
    return Sliding(axis, tuple(windows.get(name) for name in names), resized)


def _constantly(op: Op) -> Resized:
    return lambda count: op


def _without_padding(op: Conv | MaxPool | AvgPool, axis: int) -> Op:
    padding = list(op.padding)
    padding[2 * (axis - 2) : 2 * (axis - 1)] = (0, 0)
    return replace(op, padding=tuple(padding))


@read.register
def _max_pool(op: MaxPool, call: AxisCall) -> Reading:
    return _pooled(op, call, op.dilation)


@read.register
def _avg_pool(op: AvgPool, call: AxisCall) -> Reading:
    return _pooled(op, call, (1,) * len(op.kernel))


def _pooled(op: MaxPool | AvgPool, call: AxisCall, dilation: tuple[int, ...]) -> Reading:
    axis = call.track.axis
    if axis < 2:
        return call.same()
    spatial = axis - 2
    extent = dilation[spatial] * (op.kernel[spatial] - 1) + 1
    window = Window(-pairs(op.padding)[spatial][0], op.stride[spatial], extent)
    return Sliding(axis, (window,), _constantly(_without_padding(op, axis)))


@read.register
def _adaptive_pool(op: AdaptiveAvgPool, call: AxisCall) -> Reading:
    axis, count = call.track.axis, call.track.count
    if axis < 2:
        return call.same()
    size = op.size[axis - 2]
    if size == 1:
        return call.all_frames()
    if count % size:
        raise RefusedError(f"pools {count} frames to {size} windows of unequal length")
    each = count // size

    def resized(fresh: int) -> Op:
        return replace(op, size=(*op.size[: axis - 2], fresh, *op.size[axis - 1 :]))

    return Sliding(axis, (Window(0, each, each),), resized)


@read.register
def _linear(op: Linear, call: AxisCall) -> Reading:
    axis = call.track.axis
    call.check_layer()
    if axis == call.type.rank - 1:
        return call.all_frames()
    return call.aligned([axis if track is not None else None for track in call.tracks], axis)


@read.register
def _matmul(op: MatMul, call: AxisCall) -> Reading:
    a, b = call.tracks
    if a is not None and b is not None:
        raise RefusedError(
            "multiplies frames by frames, as attention over time does: it needs the whole window"
        )
    changing = call.node.inputs[1 if a is not None else 0]
    assert changing is not None
    if not call.graph.is_constant(changing):
        raise RefusedError(
            f"multiplies frames by %{changing.name}, which is computed from the whole window: all frames change at "
            "each call"
        )
    axis, rank = call.track.axis, call.type.rank
    summed = rank - 1 if a is not None else max(rank - 2, 0)
    if axis == summed:
        return call.all_frames()
    other = changing.type
    if (
        rank < 2
        or other.rank < 2
        or (axis < rank - 2 and other.rank >= rank - axis and other.shape[axis - rank] != 1)
    ):
        raise RefusedError("multiplies each frame by a different matrix")
    return call.same(axis=axis + call.node.outputs[0].type.rank - rank)


@read.register
def _reduction(op: Reduction, call: AxisCall) -> Reading:
    gone = op.reduced(call.type)
    return _reduced(call, gone, keepdim=op.keepdim)


@read.register
def _arg_extremum(op: ArgExtremum, call: AxisCall) -> Reading:
    return _reduced(call, (op.axis,), keepdim=op.keepdim)


def _reduced(call: AxisCall, gone: Sequence[int], *, keepdim: bool) -> Reading:
    axis = call.track.axis
    if axis in gone:
        return call.all_frames()
    return call.same(axis=axis if keepdim else axis - sum(other < axis for other in gone))


@read.register(Softmax)
@read.register(LogSoftmax)
def _softmax(op: Softmax | LogSoftmax, call: AxisCall) -> Reading:
    if op.axis == call.track.axis:
        raise RefusedError("is a softmax over time: it needs the whole window")
    rank = call.type.rank
    axes = [
        None
        if value is None or value.type.rank < rank - call.track.axis
        else call.track.axis - rank + value.type.rank
        for value in call.node.inputs
    ]
    return call.aligned(axes, call.track.axis)


@read.register
def _row_norm(op: RowNorm, call: AxisCall) -> Reading:
    if call.track.axis in op.dimensions(call.type.rank):
        raise RefusedError("computes statistics over time: it needs the whole window")
    return call.same()


@read.register(GroupNorm)
@read.register(InstanceNorm)
def _group_norm(op: Op, call: AxisCall) -> Reading:
    if call.track.axis:
        raise RefusedError("computes statistics over time: it needs the whole window")
    return call.same()


@read.register
def _attention(op: Attention, call: AxisCall) -> Reading:
    raise RefusedError("is attention over time: it needs the whole window")


@read.register
def _recurrent(op: Recurrent, call: AxisCall) -> Reading:
    if op.bidirectional:
        raise RefusedError("also reads the frames in reversed direction: it needs the whole window")
    raise RefusedError(
        "starts again in each window, so that all its results change; give the model one step of it, with "
        "`model.state` for what it carries"
    )


@read.register
def _reshape(op: Reshape, call: AxisCall) -> Reading:
    before, after = call.type.shape, call.node.outputs[0].type.shape
    axis = call.track.axis
    places = [
        place
        for place, size in enumerate(after)
        if size == before[axis] and prod(after[:place]) == prod(before[:axis])
    ]
    if not places:
        return call.all_frames()
    at = places[0]
    return call.same(axis=at, resized=lambda count: Reshape((*after[:at], count, *after[at + 1 :])))


@read.register
def _permute(op: Permute, call: AxisCall) -> Reading:
    return call.same(axis=op.order.index(call.track.axis))


@read.register
def _expand(op: Expand, call: AxisCall) -> Reading:
    axis = call.track.axis + len(op.shape) - call.type.rank
    return call.same(axis=axis, resized=lambda count: Expand((*op.shape[:axis], -1, *op.shape[axis + 1 :])))


@read.register
def _slice(op: Slice, call: AxisCall) -> Reading:
    if op.axis != call.track.axis:
        return call.same()
    return Viewing(op.axis, (Window(op.start, op.step),))


@read.register
def _select(op: Select, call: AxisCall) -> Reading:
    axis = call.track.axis
    if op.axis == axis:
        return Gathering(((op.index, op.index + 1),), Select(axis, 0))
    return call.same(axis=axis - (op.axis < axis))


@read.register
def _split(op: Split, call: AxisCall) -> Reading:
    if op.axis != call.track.axis:
        return call.same()
    starts = [sum(op.sizes[:index]) for index in range(len(op.sizes))]
    return Viewing(op.axis, tuple(map(Window, starts)))


@read.register
def _concat(op: Concat, call: AxisCall) -> Reading:
    if op.axis != call.track.axis:
        return call.aligned([call.track.axis] * len(call.tracks), call.track.axis)
    with_time = [index for index, track in enumerate(call.tracks) if track is not None]
    if len(with_time) > 1:
        raise RefusedError("joins two values along time: their frames do not follow each other in a stream")
    before = sum(value.type.shape[op.axis] for value in call.node.operands[: with_time[0]])
    return Viewing(op.axis, (Window(-before),))


@read.register
def _pad(op: Pad, call: AxisCall) -> Reading:
    axis, unpadded = call.track.axis, call.type.rank - len(op.padding) // 2
    if axis < unpadded:
        return call.same()
    place = 2 * (axis - unpadded)
    window = Window(-op.padding[place])
    others = (*op.padding[:place], 0, 0, *op.padding[place + 2 :])
    if not any(others):
        return Viewing(axis, (window,))
    return Sliding(axis, (window,), _constantly(replace(op, padding=others)))


@read.register(Flip)
@read.register(Roll)
def _reordered(op: Flip | Roll, call: AxisCall) -> Reading:
    if call.track.axis in op.axes:
        raise RefusedError("reorders the frames, such as in reversed direction: it needs the whole window")
    return call.same()


@read.register
def _embedding(op: Embedding, call: AxisCall) -> Reading:
    if call.named("weight") is not None:
        raise RefusedError("looks up frames by index")
    return call.same()


@read.register
def _take(op: Take, call: AxisCall) -> Reading:
    x, indices = call.tracks
    if indices is not None or x is None or op.axis == x.axis:
        raise RefusedError("looks up frames by index")
    value = call.node.operand("indices")
    if not call.graph.is_constant(value):
        raise RefusedError(f"looks up by %{value.name}, which is computed from the whole window")
    return call.same(axis=x.axis + (value.type.rank - 1 if op.axis < x.axis else 0))
