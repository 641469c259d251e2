"""Live channels of an integer graph: the smallest sets that keep every output.

A channel is followed along one dimension of each value. Three kinds of facts decide:

    demand   what an output, or an operator that mixes channels, reads stays
    reader   a dense layer needs an input channel that some output channel weighs, unless it is constant and can be
             folded into the bias; with padding it can only if it is constant at the zero point, as the padding is
    link     elementwise operators, depthwise layers, pools, reshapes, concat: channels stay on both sides or on none

The sets grow from nothing until all facts hold.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..ir import Graph, Node, Source, TensorType, Value
from ..ir.ops.activation import Elementwise
from ..ir.ops.binary import Add, Mul, Sub
from ..ir.ops.layer import Layer
from ..ir.ops.pad import Pad
from ..ir.ops.pool import AdaptiveAvgPool, AvgPool, MaxPool
from ..ir.ops.quantize import Requantize
from ..ir.ops.reduce import Mean, ReduceMax, ReduceMin, Sum
from ..ir.ops.resize import ResizeLinear, ResizeNearest
from ..ir.ops.shape import Copy, Permute, Reshape
from ..ir.ops.slicing import Concat, Slice
from ..ir.ops.spatial import pairs
from .intervals import Interval
from .layers import is_layer


@dataclass(frozen=True)
class Channels:
    """The dimension of a value that is followed, and which of its indices stay."""

    axis: int
    stay: Tensor  # bool

    @property
    def index(self) -> Tensor:
        """The indices that stay."""
        return self.stay.nonzero().flatten()


@dataclass(frozen=True)
class _Link:
    """Channel `source[k]` of `operand` and channel `target[k]` of `result` stay or go together."""

    operand: str
    result: str
    source: Tensor
    target: Tensor


@dataclass(frozen=True)
class _Reader:
    """A dense layer: which input channel which output channel weighs, and which inputs fold into the bias."""

    operand: str
    result: str
    weighs: Tensor  # bool, [out, in]
    folds: Tensor  # bool, [in]


@dataclass
class _Facts:
    axes: dict[str, int] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    demanded: set[str] = field(default_factory=set)
    links: list[_Link] = field(default_factory=list)
    readers: list[_Reader] = field(default_factory=list)

    def follow(self, value: Value, axis: int) -> None:
        self.axes[value.name], self.sizes[value.name] = axis, value.type.shape[axis]

    def link(self, operand: Value, result: Value, *, source: Tensor | None = None, start: int = 0) -> None:
        """Tie the result's channels from `start` on to the operand's, in order or as `source` lists them."""
        if source is None:
            source = torch.arange(self.sizes[operand.name])
        target = torch.arange(start, start + len(source))
        self.links.append(_Link(operand.name, result.name, source, target))

    def demand(self, *values: Value | None) -> None:
        self.demanded.update(v.name for v in values if v is not None and v.name in self.axes)


def live_channels(
    graph: Graph, intervals: Mapping[str, Interval], *, is_kept: Callable[[Source], bool]
) -> Mapping[str, Channels]:
    """The channels that must stay of each value whose channels can be followed; layers that `is_kept` keep all."""
    facts = _Facts()
    for node in graph.nodes:
        _gather(graph, node, intervals, facts)
        if is_kept(node.source):
            facts.demand(*node.outputs)
    facts.demand(*graph.outputs)
    stay = {name: torch.full((size,), name in facts.demanded) for name, size in facts.sizes.items()}
    while _grow(facts, stay) or _fill_empty(stay):
        pass
    return {name: Channels(facts.axes[name], mask) for name, mask in stay.items()}


def _grow(facts: _Facts, stay: dict[str, Tensor]) -> bool:
    """One sweep over all facts, users before producers; False when nothing was added."""
    before = sum(int(mask.sum()) for mask in stay.values())
    for reader in reversed(facts.readers):
        weighed = reader.weighs[stay[reader.result]] if reader.result in stay else reader.weighs
        stay[reader.operand] |= weighed.any(0) & ~reader.folds
    for link in [*reversed(facts.links), *facts.links]:
        stay[link.operand][link.source[stay[link.result][link.target]]] = True
        stay[link.result][link.target[stay[link.operand][link.source]]] = True
    return sum(int(mask.sum()) for mask in stay.values()) > before


def _fill_empty(stay: dict[str, Tensor]) -> bool:
    """Keep one channel of each value that would lose all; False when there is none."""
    empty = [mask for mask in stay.values() if len(mask) and not bool(mask.any())]
    for mask in empty:
        mask[0] = True
    return bool(empty)


def _gather(graph: Graph, node: Node, intervals: Mapping[str, Interval], facts: _Facts) -> None:
    operands, results = node.operands, node.outputs
    followed = [v for v in operands if v.name in facts.axes]
    if not all(v.type.is_quantized for v in (*operands, *results)) or len(results) != 1:
        facts.demand(*followed)
    elif is_layer(node.op):
        _gather_layer(graph, node, node.op, intervals, facts)
    elif isinstance(node.op, Add | Sub | Mul):
        _gather_binary(graph, node, facts)
    elif isinstance(node.op, Concat):
        _gather_concat(node, node.op, facts)
    elif len(followed) == len(operands) == 1 and (found := _moved(node, facts.axes[operands[0].name])):
        axis, source = found
        facts.follow(results[0], axis)
        facts.link(operands[0], results[0], source=source)
    else:
        facts.demand(*followed)


def _gather_layer(
    graph: Graph, node: Node, op: Layer, intervals: Mapping[str, Interval], facts: _Facts
) -> None:
    x, weight, residual = node.operand("x"), node.operand("weight"), node.optional("residual")
    axis = op.channel_axis(node.output.type)
    follows_x = facts.axes.get(x.name) == axis
    is_plain = op.is_depthwise(weight.type.shape) and weight.type.shape[0] == x.type.shape[1]
    is_dense = op.channel_groups == 1
    if not (is_dense or (is_plain and follows_x)):
        facts.demand(x, residual)
        return
    facts.follow(node.output, axis)
    if is_plain and not is_dense:
        facts.link(x, node.output)
    elif follows_x:
        weighs = op.taps(graph.tensor(weight))[0].ne(0).any(-1)
        folds = _folds(op, x, intervals[x.name].along(axis, x.type.shape[axis]))
        facts.readers.append(_Reader(x.name, node.output.name, weighs, folds))
    else:
        facts.demand(x)
    if residual is not None and facts.axes.get(residual.name) == axis:
        facts.link(residual, node.output)
    elif residual is not None:
        facts.demand(residual, node.output)


def _folds(op: Layer, x: Value, interval: Interval) -> Tensor:
    """Input channels that are the same integer everywhere, where that is also what padding shows."""
    assert x.type.quantization is not None
    if op.reads_zeros:
        return interval.is_constant & (interval.low == x.type.quantization.zero_point[0])
    return interval.is_constant


def _gather_binary(graph: Graph, node: Node, facts: _Facts) -> None:
    rank = node.output.type.rank
    followed = [v for v in node.operands if v.name in facts.axes]
    axes = {facts.axes[v.name] + rank - v.type.rank for v in followed if _spans(v, node.output, facts)}
    others = [v for v in node.operands if v not in followed and not graph.is_constant(v)]
    spans = [v for v in others if len(axes) == 1 and aligned_size(v, next(iter(axes)), rank) > 1]
    if len(axes) != 1 or spans:
        facts.demand(*followed)
        return
    facts.follow(node.output, next(iter(axes)))
    for value in followed:
        if _spans(value, node.output, facts):
            facts.link(value, node.output)
        elif aligned_size(value, next(iter(axes)), rank) > 1:
            facts.demand(value, node.output)
        else:
            facts.demand(value)


def _spans(value: Value, result: Value, facts: _Facts) -> bool:
    axis = facts.axes[value.name]
    return value.type.shape[axis] == result.type.shape[axis + result.type.rank - value.type.rank]


def aligned_size(value: Value, axis: int, rank: int) -> int:
    """Size of the operand's dimension that meets dimension `axis` of a result of `rank`; 1 if it has none."""
    own = axis - (rank - value.type.rank)
    return value.type.shape[own] if own >= 0 else 1


def _gather_concat(node: Node, op: Concat, facts: _Facts) -> None:
    axes = {facts.axes.get(v.name) for v in node.operands}
    axis = axes.pop()
    if axes or axis is None:
        facts.demand(*node.operands)
        return
    facts.follow(node.output, axis)
    start = 0
    for value in node.operands:
        facts.link(value, node.output, start=start)
        start += value.type.shape[axis] if op.axis == axis else 0


def _moved(node: Node, axis: int) -> tuple[int, Tensor | None] | None:
    """Result dimension to which a unary operator moves `axis`, and the source index of each result index."""
    op, x = node.op, node.operands[0].type
    match op:
        case Elementwise() | Requantize() | Copy():
            return axis, None
        case MaxPool() | AvgPool() | AdaptiveAvgPool() | ResizeNearest() | ResizeLinear() if axis == 1:
            return axis, None
        case Pad() if not any(pairs((0,) * 2 * x.rank + op.padding)[-x.rank :][axis]):
            return axis, None
        case Slice() if op.axis != axis:
            return axis, None
        case Permute():
            return op.order.index(axis), None
        case Mean() | Sum() | ReduceMax() | ReduceMin() if axis not in op.reduced(x):
            gone = 0 if op.keepdim else sum(other < axis for other in op.reduced(x))
            return axis - gone, None
        case Reshape():
            return _reshaped(op, x, axis)
    return None


def _reshaped(op: Reshape, x: TensorType, axis: int) -> tuple[int, Tensor] | None:
    """The new dimension of which each index holds elements of one old index only, if the old ones keep their order."""
    along = [-1 if i == axis else 1 for i in range(x.rank)]
    labels = op.reference(torch.arange(x.shape[axis]).view(along).expand(x.shape))
    for new_axis in range(labels.ndim):
        rows = labels.movedim(new_axis, 0).reshape(labels.shape[new_axis], -1)
        is_whole = bool((rows == rows[:, :1]).all()) and rows.numel() > 0
        if is_whole and bool((rows[1:, 0] >= rows[:-1, 0]).all()):
            return new_axis, rows[:, 0]
    return None
