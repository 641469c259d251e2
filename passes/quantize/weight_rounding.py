"""Learned rounding in a quantized graph, layer by layer: each layer learns on the results of the rounded layers
before it.

The float graph and the quantized graph run in parallel, node by node, on the calibration samples. A layer's output is
compared at a bounded number of positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...ir import Encoding, Graph, Node, OverflowBoundError, Params, Value, rebatch, run
from ...ir.interpret import at_call
from ...ir.ops.accumulate import fixed_point, prove_accumulator
from ...ir.ops.layer import Layer
from ...ir.ops.linear import Linear
from ...specs.options import AdaRound
from ..calibration.calibrate import Batch, batch_size, stack
from ..progress_callback import Progress
from ..report import Cell, Decision, PassReport, Table
from ..weighted_layers import is_layer
from .adaround import LayerSamples, learn_rounding
from .layer_rows import count_places, pick, taps_of, unfold

_PLACES = 8192  # of a layer, over all samples
_ROW_ELEMENTS = 1 << 24  # of a layer's positions: 64 MiB
_VALUE_ELEMENTS = 1 << 26  # of the largest value, over all samples: 256 MiB


def learn_roundings(
    real: Graph,
    quantized: Graph,
    samples: Sequence[Batch],
    options: AdaRound,
    *,
    corrects_bias: bool,
    progress: Progress,
) -> tuple[Graph, PassReport]:
    """The quantized graph with weights rounded such that each layer's error on the samples decreases.

    A layer whose error would not decrease stays unchanged. With `corrects_bias`, biases give each output channel its
        mean in the float graph.
    """
    size, chunks = _chunks(real, samples, options.samples)
    together = size * real.inputs[0].type.shape[0] if size > 1 else 0
    floats, integers = (_Walk(rebatch(g, together) if size > 1 else g, chunks) for g in (real, quantized))
    generator = torch.Generator().manual_seed(options.seed)
    decisions: list[Decision] = []
    rows: list[tuple[Cell, ...]] = []
    nodes = integers.graph.nodes
    for done, node in enumerate(nodes, start=1):
        if is_layer(node.op) and node.operand("weight").type.is_quantized:
            reason = _why_not(integers.graph, node)
            learned = None
            if reason is None:
                floats.advance_to(node.output.name)
                learned = _learn(floats, integers, node, options, corrects_bias, generator)
                reason = learned.reason
                rows.append(learned.row)
                integers.params.update(learned.params)
            applied = learned is not None and bool(learned.params)
            decisions.append(Decision("adaround", node.output.name, node.source, applied, reason))
        integers.step(node)
        progress("rounding", done, len(nodes))
    columns = ("layer", "module", "bits", "error_nearest", "error_adaround", "changed_weights")
    report = PassReport("quantize", tuple(decisions), (Table("rounding", columns, tuple(rows)),))
    return quantized.with_params(integers.params), report


@dataclass(frozen=True)
class _Learned:
    """New constants of a layer, none if it stays unchanged; errors are relative to the power of its result."""

    params: dict[str, Tensor]
    reason: str
    row: tuple[Cell, ...]


class _Walk:
    """Execution of a graph on all chunks of samples, one node at a time; `params` replaces constants."""

    def __init__(self, graph: Graph, chunks: Sequence[Batch]) -> None:
        self.graph, self.params = graph, dict[str, Tensor]()
        self._graphs = [at_call(graph, chunk) for chunk in chunks]
        self._values = {v.name: [chunk[i] for chunk in chunks] for i, v in enumerate(graph.inputs)}
        self._readers = {name: len(nodes) for name, nodes in graph.users.items()}
        self._at = 0

    def tensors(self, value: Value) -> list[Tensor]:
        """A value that a later node reads, as reals, by chunks."""
        return self._values[value.name]

    def real(self, value: Value) -> Tensor:
        """A constant as reals in float32."""
        tensor, encoding = self.params.get(value.name, self.graph.tensor(value)), value.type.quantization
        return tensor if encoding is None else encoding.dequantize(tensor)

    def advance_to(self, name: str) -> None:
        """Runs all nodes before the producer of this value."""
        while self.graph.nodes[self._at].outputs[0].name != name:
            self.step(self.graph.nodes[self._at])

    def step(self, node: Node) -> None:
        """Runs the next node."""
        constants = self.graph.params.only({v.name for v in node.operands})
        params = constants | Params(self.params).only(constants)
        with torch.no_grad():
            results = [self._run(graph.nodes[self._at], params, i) for i, graph in enumerate(self._graphs)]
        self._at += 1
        for place, value in enumerate(node.outputs):
            self._values[value.name] = [result[place] for result in results]
        for value in node.operands:
            self._readers[value.name] -= 1
            if not self._readers[value.name]:
                self._values.pop(value.name, None)

    def _run(self, node: Node, params: Params, chunk: int) -> list[Tensor]:
        inputs = tuple({v.name: v for v in node.operands if v.name not in params}.values())
        alone = Graph(inputs, node.outputs, (node,), params)
        return run(alone, [self._values[v.name][chunk] for v in inputs])


def _chunks(graph: Graph, samples: Sequence[Batch], wanted: int) -> tuple[int, list[Batch]]:
    """Samples within the memory limit, in chunks of the batch size."""
    largest = max((v.type.numel for v in graph.results), default=1)
    count = min(len(samples), wanted, max(_VALUE_ELEMENTS // largest, 1))
    size = batch_size(graph, samples[:count])
    starts = range(0, count - count % size, size)
    return size, [stack(samples[at : at + size]) for at in starts]


def _why_not(graph: Graph, node: Node) -> str | None:
    if graph.use_count(node.operand("weight")) > 1:
        return "its weights are shared with another layer"
    if (encoding := node.operand("weight").type.quantization) is not None and encoding.levels is not None:
        return "its weights have a codebook"
    return None


def _learn(
    floats: _Walk, integers: _Walk, node: Node, options: AdaRound, corrects: bool, generator: torch.Generator
) -> _Learned:
    op, twin = node.op, floats.graph.producers[node.output.name]
    assert is_layer(op)
    stored, kept_bias = node.operand("weight"), node.optional("bias")
    encoding = stored.type.quantization
    assert encoding is not None
    real_weight = floats.real(twin.operand("weight"))
    weight = taps_of(op, real_weight)
    step = taps_of(op, encoding.expand(stored.type.shape)[0].float().expand(stored.type.shape))
    layer_samples = _layer_samples(op, node, twin, floats, integers, weight, generator)
    groups, outputs = weight.shape[0], weight.shape[1]
    nearest = taps_of(op, integers.real(stored))
    bias = (
        torch.zeros(groups, 1, outputs) if kept_bias is None else integers.real(kept_bias).view(groups, 1, -1)
    )
    corrects = corrects and kept_bias is not None
    studied = layer_samples.centred() if corrects else layer_samples
    chosen = learn_rounding(
        weight,
        step,
        studied.shortfall(nearest) if corrects else bias,
        studied,
        largest=encoding.qmax,
        iterations=options.iterations,
        learning_rate=options.learning_rate,
        generator=generator,
    )
    learned_bias = layer_samples.shortfall(chosen * step) if corrects else bias
    before, after = layer_samples.error(nearest, bias), layer_samples.error(chosen * step, learned_bias)
    params = {stored.name: op.weight_of(chosen, stored.type.shape).to(encoding.container.torch)}
    if corrects and kept_bias is not None and kept_bias.type.quantization is not None:
        params[kept_bias.name] = _integers(learned_bias.flatten(), kept_bias.type.quantization)
    power = layer_samples.power() or 1.0
    changed = float((params[stored.name] != integers.graph.tensor(stored)).double().mean())
    row = (node.output.name, node.source.module, encoding.bits, before / power, min(before, after) / power)
    if after >= before:
        return _Learned({}, "no rounding that was found is better than the nearest", (*row, 0.0))
    if not _fits(node, params, integers.graph):
        return _Learned({}, "an accumulator could overflow", (*row[:4], before / power, 0.0))
    return _Learned(params, f"{100 * changed:.0f} % of the weights are not the nearest", (*row, changed))


def _layer_samples(
    op: Layer,
    node: Node,
    twin: Node,
    floats: _Walk,
    integers: _Walk,
    weight: Tensor,
    generator: torch.Generator,
) -> LayerSamples:
    """Inputs and results of the layer at the same random positions of each sample in both graphs, other positions in
    each chunk.
    """
    available = count_places(op, torch.empty(node.output.type.shape, device="meta"))
    chunks = len(integers.tensors(node.operand("x")))
    samples = 1 if isinstance(op, Linear) else node.output.type.shape[0]
    rows = max(1, min(_PLACES, _ROW_ELEMENTS // weight[0, 0].numel() // weight.shape[0]))
    taken = min(available, max(1, rows // (chunks * samples)))
    places = [torch.randperm(available, generator=generator)[:taken] for _ in range(chunks)]
    kernel, output = node.operand("weight").type.shape[2:], node.output.type.shape
    wanted, read, added = [], [], []
    for i, chosen in enumerate(places):
        x_real, x = floats.tensors(twin.operand("x"))[i], integers.tensors(node.operand("x"))[i]
        real = unfold(op, x_real, kernel, output, chosen) @ weight.mT
        bias, residual, residual_real = (
            twin.optional("bias"),
            node.optional("residual"),
            twin.optional("residual"),
        )
        if bias is not None:
            real = real + floats.real(bias).view(weight.shape[0], 1, -1)
        if residual is not None and residual_real is not None:
            real = real + pick(op, floats.tensors(residual_real)[i], chosen)
            added.append(pick(op, integers.tensors(residual)[i], chosen))
        wanted.append(real)
        read.append(unfold(op, x, kernel, output, chosen))
    return LayerSamples(
        torch.cat(read, 1), torch.cat(added, 1) if added else 0.0, torch.cat(wanted, 1), op.clamp
    )


def _integers(bias: Tensor, encoding: Encoding) -> Tensor:
    steps = encoding.scale.tensor(torch.float64)
    return (bias.double() / steps).round().clamp(encoding.qmin, encoding.qmax).to(torch.int32)


def _fits(node: Node, params: dict[str, Tensor], graph: Graph) -> bool:
    """True if no accumulator of the layer with these constants can overflow."""
    x, weight = node.operand("x").type, node.operand("weight")
    bias, residual = node.optional("bias"), node.optional("residual")
    assert is_layer(node.op) and x.quantization is not None
    added = None if residual is None else residual.type
    fixed = fixed_point(x, weight.type, node.output.type, residual=added, clamp=node.op.clamp)
    constant = None if bias is None else params.get(bias.name, graph.tensor(bias))
    try:
        rows, phases = node.op.rows(params[weight.name]), node.op.phases(weight.type)
        prove_accumulator(rows, constant, fixed, x=x.quantization, phases=phases)
    except OverflowBoundError:
        return False
    return True
