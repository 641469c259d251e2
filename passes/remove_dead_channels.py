"""The pass `remove_dead_channels`: channels that are constant for every input, or that nothing reads, go.

Intervals prove which channels are constant (`intervals`), the graph's structure which may go (`live_channels`). A
constant input channel of a layer becomes part of its bias:

    bias[o] += sum_i (c_i - zero point) * sum(weight[o, i])

Removing channels can make others constant or unread, so this repeats until nothing changes. At the end both graphs
are run on random and extreme inputs, a large one on a random one only; the outputs are equal, byte for byte.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from ..ir import Builder, DType, Encoding, Graph, Node, Source, Value, rewrite, run_integer
from ..ir.ops.accumulate import bias_quantization
from ..ir.ops.binary import Binary
from ..ir.ops.conv import Conv
from ..ir.ops.layer import Layer
from ..ir.ops.quantize import Quantize
from ..ir.ops.shape import Reshape
from ..specs.options import RemoveDeadChannelsOptions
from .base import Context, PassResult, register
from .intervals import Interval, propagate
from .layers import apply_to_channels, bias_name, is_layer
from .live_channels import Channels, aligned_size, live_channels
from .report import Decision, PassReport, Table

_CHECKS = ("lowest", "highest", "random", "random", "random")
_CHECKS_OF_LARGE = ("random",)
_LARGE_MACS = 200_000_000  # from here on the integer interpreter takes seconds for each input


@register(RemoveDeadChannelsOptions)
def remove_dead_channels(graph: Graph, options: RemoveDeadChannelsOptions, context: Context) -> PassResult:
    """The same integers from fewer channels."""

    def is_kept(source: Source) -> bool:
        return context.selects_any(options.keep, source)

    smaller = graph
    while (cut := _cut_once(smaller, is_kept)) is not None:
        smaller = cut
    if smaller is not graph:
        _check_equal(graph, smaller)
    return PassResult(smaller, _report(graph, smaller))


def _cut_once(graph: Graph, is_kept: Callable[[Source], bool]) -> Graph | None:
    """The graph without the channels that one analysis finds dead; None when it finds none."""
    intervals = propagate(graph)
    channels = live_channels(graph, intervals, is_kept=is_kept)
    if all(bool(c.stay.all()) for c in channels.values()):
        return None
    slicer = _Slicer(graph, channels, intervals)
    return rewrite(graph, slicer.visit)


class _Slicer:
    """Rebuilds nodes on the channels that stay."""

    def __init__(
        self, graph: Graph, channels: Mapping[str, Channels], intervals: Mapping[str, Interval]
    ) -> None:
        self._graph, self._channels, self._intervals = graph, channels, intervals

    def visit(self, builder: Builder, node: Node, operands: tuple[Value | None, ...]) -> Value | None:
        """The sliced node, or None if it is unchanged on its new operands."""
        if node.outputs[0].name not in self._channels:
            return None
        channels = self._channels[node.outputs[0].name]
        if is_layer(node.op):
            return self._layer(builder, node, node.op, operands)
        if isinstance(node.op, Binary):
            sliced = [self._aligned(builder, node, v, channels) for v in operands]
            return builder.keep(node, sliced)[0]
        if isinstance(node.op, Reshape):
            return self._reshape(builder, node, node.op, operands, channels)
        return None

    def _layer(
        self, builder: Builder, node: Node, op: Layer, operands: tuple[Value | None, ...]
    ) -> Value | None:
        x, weight, bias = node.operand("x"), node.operand("weight"), node.optional("bias")
        axis = op.channel_axis(node.output.type)
        outputs = self._channels[node.output.name].index
        depthwise = op.is_depthwise(weight.type.shape)
        followed = self._channels.get(x.name)
        inputs = torch.arange(x.type.shape[axis])
        if not depthwise and followed is not None and followed.axis == axis:
            inputs = followed.index
        if len(outputs) == node.output.type.shape[axis] and len(inputs) == x.type.shape[axis]:
            return None
        tensor = self._graph.tensor(weight)
        folded = torch.zeros(len(outputs), dtype=torch.int64)
        if not depthwise:
            folded = self._folded_bias(op, x, tensor.to(torch.int64), inputs)[outputs]
        sliced = tensor.index_select(op.out_axis, outputs)
        if not depthwise:
            sliced = sliced.index_select(1 - op.out_axis, inputs)
        grid_x, grid_w = x.type.quantization, weight.type.quantization
        assert grid_x is not None and grid_w is not None
        grid_w = grid_w.of_channels(outputs)
        new_weight = self._replace(builder, weight, sliced, grid_w)
        new_bias = None
        if bias is not None:
            integers = self._graph.tensor(bias)[outputs].to(torch.int64) + folded
            new_bias = self._replace(builder, bias, integers, bias_quantization(grid_x, grid_w))
        elif bool(folded.any()):
            grid = bias_quantization(grid_x, grid_w)
            new_bias = builder.derived_constant(bias_name(weight.name), folded, quantization=grid)
        if depthwise and isinstance(op, Conv):
            op = replace(op, groups=len(outputs))
        return builder.add(
            op,
            op.operand(operands, "x"),
            new_weight,
            new_bias,
            op.optional(operands, "residual"),
            name=node.output.name,
            quantization=node.output.type.quantization,
            source=node.source,
        )

    def _folded_bias(self, op: Layer, x: Value, weight: Tensor, stay: Tensor) -> Tensor:
        """Contribution of removed input channels to each output channel's accumulator."""
        axis = op.channel_axis(x.type)
        interval = self._intervals[x.name].along(axis, x.type.shape[axis])
        assert x.type.quantization is not None
        constant = interval.low - x.type.quantization.zero_point[0]
        goes = interval.is_constant.clone()
        goes[stay] = False
        return apply_to_channels(op.taps(weight).sum(-1), torch.where(goes, constant, 0))

    def _aligned(self, builder: Builder, node: Node, value: Value | None, channels: Channels) -> Value | None:
        """An operand of an elementwise operator; a constant loses the channels that go."""
        rank = node.output.type.rank
        if value is None or not self._graph.is_constant(value):
            return value
        if aligned_size(value, channels.axis, rank) == 1:
            return value
        own = channels.axis - (rank - value.type.rank)
        tensor = self._graph.tensor(value).index_select(own, channels.index)
        assert value.type.quantization is not None
        return self._replace(builder, value, tensor, value.type.quantization)

    def _reshape(
        self,
        builder: Builder,
        node: Node,
        op: Reshape,
        operands: tuple[Value | None, ...],
        channels: Channels,
    ) -> Value:
        sizes = list(node.output.type.shape)
        sizes[channels.axis] = int(channels.stay.sum())
        shape = tuple(-1 if old == -1 else new for old, new in zip(op.shape, sizes, strict=True))
        return builder.keep(replace(node, op=Reshape(shape)), operands)[0]

    def _replace(self, builder: Builder, value: Value, tensor: Tensor, grid: Encoding) -> Value:
        if self._graph.use_count(value) == 1:
            builder.release(value.name)
        return builder.derived_constant(value.name, tensor, quantization=grid)


def _check_equal(before: Graph, after: Graph) -> None:
    """The proof's own test: both graphs give the same bytes on random inputs and on the ends of the range."""
    generator = torch.Generator().manual_seed(0)
    for kind in _CHECKS if before.macs < _LARGE_MACS else _CHECKS_OF_LARGE:
        inputs = [_example(before, value, kind, generator) for value in before.inputs]
        for name, x, y in zip(
            before.output_names, run_integer(before, inputs), run_integer(after, inputs), strict=True
        ):
            assert torch.equal(x, y), f'removal of dead channels changed output "{name}"'


def _example(graph: Graph, value: Value, kind: str, generator: torch.Generator) -> Tensor:
    shape, dtype = value.type.shape, value.type.dtype
    if dtype is not DType.F32:
        return torch.zeros(shape, dtype=dtype.torch)
    grids = [
        node.output.type.quantization
        for node in graph.users.get(value.name, ())
        if isinstance(node.op, Quantize)
    ]
    if not grids or grids[0] is None:
        return torch.randn(shape, generator=generator)
    grid = grids[0]
    low, high = {"lowest": (grid.qmin, grid.qmin), "highest": (grid.qmax, grid.qmax)}.get(
        kind, (grid.qmin, grid.qmax)
    )
    return grid.dequantize(torch.randint(low, high + 1, shape, generator=generator))


def _report(before: Graph, after: Graph) -> PassReport:
    """A decision for each layer that lost channels, and a table of the savings."""
    now = {node.outputs[0].name: node for node in after.nodes}
    decisions, rows = [], []
    for node in before.nodes:
        new = now.get(node.outputs[0].name)
        if not is_layer(node.op) or new is None:
            continue
        sizes = [_layer_sizes(n) for n in (node, new)]
        rows.append(
            (node.output.name, node.source.module, *(n for pair in zip(*sizes, strict=True) for n in pair))
        )
        if sizes[0] != sizes[1]:
            text = f"{sizes[0][0]} -> {sizes[1][0]} input channels, {sizes[0][1]} -> {sizes[1][1]} output channels"
            decisions.append(Decision("remove_dead_channels", node.output.name, node.source, True, text))
    columns = ("inputs", "outputs", "weight_bytes", "macs")
    names = tuple(f"{column}_{when}" for column in columns for when in ("before", "after"))
    return PassReport(
        "remove_dead_channels", tuple(decisions), (Table("layers", ("layer", "module", *names), tuple(rows)),)
    )


def _layer_sizes(node: Node) -> tuple[int, int, int, int]:
    x, weight = node.operand("x"), node.operand("weight")
    assert x is not None and weight is not None and is_layer(node.op)
    axis = node.op.channel_axis(node.output.type)
    sizes = (x.type.shape[axis], node.output.type.shape[axis])
    return (*sizes, weight.type.storage_bytes, node.macs)
