"""Interval analysis of an integer graph: bounds of each element, for every input.

Graph inputs are arbitrary, so values quantized from them have the full range of their bits. A layer's accumulator is
bounded channel by channel,

    sum_i max(w_i * low_i, w_i * high_i),   padding and absent taps counting as the zero point,

and its requantization, like every monotone function, is computed on the ends by the operator's own integer form.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...ir import Graph, Node, TensorType, Value
from ...ir.ops.accumulate import finish_accumulator
from ...ir.ops.activation import Elementwise
from ...ir.ops.base import IntegerCall
from ...ir.ops.binary import Mul, Sub
from ...ir.ops.layer import Layer
from ..weighted_layers import apply_to_channels, is_layer


@dataclass(frozen=True)
class Interval:
    """Smallest and largest integer of each element, as int64 tensors that broadcast to the value's shape."""

    low: Tensor
    high: Tensor

    @staticmethod
    def full(type: TensorType) -> Interval:
        """All integers of the type."""
        assert type.quantization is not None
        ones = torch.ones((1,) * type.rank, dtype=torch.int64)
        return Interval(ones * type.quantization.qmin, ones * type.quantization.qmax)

    @staticmethod
    def hull(*ends: Tensor) -> Interval:
        """The smallest interval that contains all these tensors, with each dimension as small as possible."""
        low, high = torch.stack(ends).amin(0), torch.stack(ends).amax(0)
        for axis in range(low.ndim):
            first = (low.narrow(axis, 0, 1), high.narrow(axis, 0, 1)) if low.shape[axis] else (low, high)
            if bool((low == first[0]).all() and (high == first[1]).all()):
                low, high = first
        return Interval(low, high)

    def along(self, axis: int, channels: int) -> Interval:
        """The hull for each index of dimension `axis`, as vectors."""
        others = [i for i in range(self.low.ndim) if i != axis]
        low, high = (self.low.amin(others), self.high.amax(others)) if others else (self.low, self.high)
        return Interval(low.expand(channels), high.expand(channels))

    def expanded(self, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Both ends in full size."""
        return self.low.expand(tuple(shape)), self.high.expand(tuple(shape))

    @property
    def is_constant(self) -> Tensor:
        """True if only one integer is possible."""
        return self.low == self.high


def propagate(graph: Graph) -> Mapping[str, Interval]:
    """The interval of each quantized value of the graph, by name."""
    known: dict[str, Interval] = {}
    for value in graph.constants:
        if value.type.is_quantized:
            tensor = graph.tensor(value).to(torch.int64)
            known[value.name] = Interval(tensor, tensor)
    for value in graph.inputs:
        if value.type.is_quantized:
            known[value.name] = Interval.full(value.type)
    for node in graph.nodes:
        known.update(_results(graph, node, known))
    return known


def _results(graph: Graph, node: Node, known: Mapping[str, Interval]) -> dict[str, Interval]:
    quantized = [v for v in node.outputs if v.type.is_quantized]
    if not quantized:
        return {}
    operands = [known.get(v.name) for v in node.operands if v.type.is_quantized]
    inexact = any(not v.type.is_quantized for v in node.operands) or None in operands
    if inexact or any(not v.type.numel for v in (*node.operands, *node.outputs)):
        return {v.name: Interval.full(v.type) for v in quantized}
    ends = [interval for interval in operands if interval is not None]
    if is_layer(node.op):
        found: tuple[Interval, ...] = (_layer(graph, node, node.op, known),)
    elif node.op.facts.is_monotone_in(node.operand_names):
        found = _monotone(node, ends)
    elif isinstance(node.op, Elementwise):
        found = (_table(node, node.op, ends[0]),)
    elif isinstance(node.op, Sub | Mul):
        found = (_corners(node, ends),)
    else:
        found = tuple(Interval.full(v.type) for v in quantized)
    return {v.name: interval for v, interval in zip(node.outputs, found, strict=True)}


def _monotone(node: Node, operands: Sequence[Interval]) -> tuple[Interval, ...]:
    shapes = [v.type.shape for v in node.operands]
    full = [interval.expanded(shape) for interval, shape in zip(operands, shapes, strict=True)]
    lows, highs = (_compute(node, [ends[side] for ends in full]) for side in (0, 1))
    return tuple(Interval.hull(low, high) for low, high in zip(lows, highs, strict=True))


def _corners(node: Node, operands: Sequence[Interval]) -> Interval:
    (a, b), shapes = operands, [v.type.shape for v in node.operands]
    corners = [
        _compute(node, [x.expand(shapes[0]), y.expand(shapes[1])])[0]
        for x in (a.low, a.high)
        for y in (b.low, b.high)
    ]
    return Interval.hull(*corners)


def _compute(node: Node, operands: Sequence[Tensor]) -> tuple[Tensor, ...]:
    results = node.op.integer(IntegerCall(node.op, tuple(operands), node.operand_types, node.output_types))
    return results if isinstance(results, tuple) else (results,)


def _table(node: Node, op: Elementwise, x: Interval) -> Interval:
    """Least and greatest entry of the function's table between the ends."""
    type = node.operand("x").type
    assert type.quantization is not None
    table = op.table(type, node.output.type)
    first, last = (end - type.quantization.qmin for end in (x.low, x.high))
    return Interval(_least(table, first, last), -_least(-table, first, last))


def _least(table: Tensor, first: Tensor, last: Tensor) -> Tensor:
    """The least entry of table[first..last], for each pair of indices.

    minima[k][i] is the least of the 2^k entries from i on; two such windows, which may overlap, cover a range.
    """
    minima = [table]
    for k in range(len(table).bit_length() - 1):
        shorter = minima[-1]
        minima.append(torch.minimum(shorter[: len(shorter) - (1 << k)], shorter[1 << k :]))
    found = torch.empty_like(first)
    sizes = last - first + 1
    for k, least in enumerate(minima):
        here = (sizes >= 1 << k) & (sizes < 2 << k)
        found[here] = torch.minimum(least[first[here]], least[last[here] - (1 << k) + 1])
    return found


def _layer(graph: Graph, node: Node, op: Layer, known: Mapping[str, Interval]) -> Interval:
    x, weight = node.operand("x"), node.operand("weight")
    bias, residual = node.optional("bias"), node.optional("residual")
    if not graph.is_constant(weight) or not (bias is None or graph.is_constant(bias)):
        return Interval.full(node.output.type)
    axis = op.channel_axis(node.output.type)
    low, high = _centred(op, x, known[x.name].along(axis, x.type.shape[axis]))
    taps = op.taps(graph.tensor(weight).to(torch.int64))
    positive, negative = taps.clamp(min=0).sum(-1), taps.clamp(max=0).sum(-1)
    accumulators = (
        apply_to_channels(positive, low) + apply_to_channels(negative, high),
        apply_to_channels(positive, high) + apply_to_channels(negative, low),
    )
    added = None if residual is None else known[residual.name]
    offset = None if bias is None else graph.tensor(bias).to(torch.int64)
    along = [-1 if i == axis else 1 for i in range(node.output.type.rank)]
    ends = []
    for acc, end in zip(
        accumulators, (None, None) if added is None else (added.low, added.high), strict=True
    ):
        call = IntegerCall(node.op, (None, None, offset, end), node.operand_types, node.output_types)
        ends.append(finish_accumulator(call, acc.view(along), op.clamp, channel_axis=axis))
    return Interval.hull(*ends)


def _centred(op: Layer, x: Value, interval: Interval) -> tuple[Tensor, Tensor]:
    """Ends of x - zero point for each channel; a tap on padding, or without an element, reads 0."""
    assert x.type.quantization is not None
    zero = x.type.quantization.zero_point[0]
    low, high = interval.low - zero, interval.high - zero
    if op.reads_zeros:
        low, high = low.clamp(max=0), high.clamp(min=0)
    return low, high
