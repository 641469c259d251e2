"""The pass `remove_dead_channels`: removes channels that are constant for every input, or that nothing reads.

Intervals prove which channels are constant (`intervals`); the structure of the graph defines which can be removed
(`dead_units`). A constant input channel of a layer is folded into its bias:

    bias[o] += sum_i (c_i - zero point) * sum(weight[o, i])

Removal of channels can make others constant or unread, so this is repeated until nothing changes. At the end both
graphs are run on random and extreme inputs (large graphs only on a random one) and the outputs are compared byte for
byte.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from ...ir import (
    Builder,
    DType,
    Graph,
    Node,
    Source,
    Value,
    coded_weights,
    couple,
    cut_graph,
    decode_codebooks,
    encode_codebooks,
    rewrite,
    run_integer,
)
from ...ir.coupling import Kept
from ...ir.ops.accumulate import bias_quantization
from ...ir.ops.quantize import Quantize
from ...specs.options import RemoveDeadChannelsOptions
from ..base import Context, PassResult, register
from ..report import Decision, PassReport, Table
from ..weighted_layers import apply_to_channels, bias_name, is_layer
from .dead_units import dead_units, is_dense, is_in_integers
from .intervals import Interval, propagate

_CHECKS = ("lowest", "highest", "random", "random", "random")
_CHECKS_OF_LARGE = ("random",)
_LARGE_MACS = 200_000_000  # above, the integer interpreter takes seconds for each input


@register(RemoveDeadChannelsOptions)
def remove_dead_channels(graph: Graph, options: RemoveDeadChannelsOptions, context: Context) -> PassResult:
    """An integer graph with fewer channels and the same outputs."""

    def is_kept(source: Source) -> bool:
        return context.selects_any(options.keep, source)

    coded, graph = coded_weights(graph), decode_codebooks(graph)
    smaller = graph
    while (cut := _cut_once(smaller, is_kept)) is not None:
        smaller = cut
    if smaller is not graph:
        _check_equal(graph, smaller)
    return PassResult(encode_codebooks(smaller, coded), _report(graph, smaller))


def _cut_once(graph: Graph, is_kept: Callable[[Source], bool]) -> Graph | None:
    """The graph without the channels that one analysis finds dead; None if it finds none."""
    coupling, intervals = couple(graph), propagate(graph)
    dead = dead_units(coupling, intervals, is_kept=is_kept)
    if not dead.any():
        return None
    kept = coupling.kept(dead)

    def fold(builder: Builder, node: Node, operands: tuple[Value | None, ...]) -> Value | None:
        folded = _folded_bias(kept, graph.producers[node.outputs[0].name], intervals)
        return None if folded is None else _with_bias(builder, node, operands, folded)

    return rewrite(cut_graph(kept), fold)


def _folded_bias(kept: Kept, node: Node, intervals: Mapping[str, Interval]) -> Tensor | None:
    """Contribution of removed input channels to the accumulators of kept output channels; None if there is none.

    A layer in float keeps all its input channels.
    """
    if not (is_in_integers(node) and is_layer(node.op) and is_dense(kept.coupling.graph, node)):
        return None
    op, x, weight = node.op, node.operand("x"), node.operand("weight")
    axis = op.channel_axis(x.type)
    interval = intervals[x.name].along(axis, x.type.shape[axis])
    removed = torch.ones(x.type.shape[axis], dtype=torch.bool)
    removed[kept.value(x)[axis]] = False
    assert x.type.quantization is not None
    constant = interval.low - x.type.quantization.zero_point[0]
    taps = op.taps(kept.coupling.graph.tensor(weight).to(torch.int64)).sum(-1)
    folded = apply_to_channels(taps, torch.where(removed & interval.is_constant, constant, 0))
    folded = folded[kept.value(node.output)[op.channel_axis(node.output.type)]]
    return folded if bool(folded.any()) else None


def _with_bias(builder: Builder, node: Node, operands: tuple[Value | None, ...], addend: Tensor) -> Value:
    """The layer with `addend` added to its bias."""
    x, weight, bias = (node.op.optional(operands, name) for name in ("x", "weight", "bias"))
    assert x is not None and weight is not None
    assert x.type.quantization is not None and weight.type.quantization is not None
    name = bias_name(weight.name)
    if bias is not None:
        known = builder.tensor(bias)
        assert known is not None
        name, addend = bias.name, addend + known.to(torch.int64)
    quantization = bias_quantization(x.type.quantization, weight.type.quantization)
    summed = builder.derived_constant(name, addend, quantization=quantization)
    return builder.keep(node, replace(node, inputs=operands).with_operands(bias=summed).inputs)[0]


def _check_equal(before: Graph, after: Graph) -> None:
    """Checks the proof: both graphs give the same bytes on random inputs and at the ends of the range."""
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
    encodings = [
        node.output.type.quantization
        for node in graph.users.get(value.name, ())
        if isinstance(node.op, Quantize)
    ]
    if not encodings or encodings[0] is None:
        return torch.randn(shape, generator=generator)
    encoding = encodings[0]
    low, high = {"lowest": (encoding.qmin, encoding.qmin), "highest": (encoding.qmax, encoding.qmax)}.get(
        kind, (encoding.qmin, encoding.qmax)
    )
    return encoding.dequantize(torch.randint(low, high + 1, shape, generator=generator))


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
