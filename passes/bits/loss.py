"""What rounding all layers together really adds to the loss of the float network: the check of a predicted sum."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...ir import Graph, Node
from ..calibrate import Batch
from ..layers import channel_axis, is_layer
from ..quantization.observers import Range
from ..quantization.weights import mean_shift
from ..sensitivity import SHARDS, round_weight
from ..sensitivity.blocks import Block, data_of, joined, round_activation, weight_of
from ..sensitivity.study import Stack, Study, prepare
from ..sensitivity.workers import ALONE
from .costs import Widths

Mix = Mapping[str, Widths]
Values = dict[str, Tensor]


@dataclass(frozen=True)
class _Rounded:
    """The weights of a layer as stored, and what the bias of each of its nodes takes back, by name."""

    weights: Mapping[str, Tensor]
    shifts: Mapping[str, Tensor]


@dataclass
class MixLoss:
    """Measures mixes on some samples; weights are rounded and biases corrected as by `quantize` at its defaults.

    With `rounds_activations` the operands of layers are rounded too, each on a grid that covers what the float network
    shows it. `runs` counts how often all samples went through the network.
    """

    study: Study
    rounds_activations: bool
    runs: int = 0
    _layers: dict[tuple[str, int], _Rounded] = field(default_factory=dict)

    @staticmethod
    def on(graph: Graph, samples: Sequence[Batch], *, rounds_activations: bool) -> MixLoss:
        """Ready to measure mixes of a float graph."""
        study = prepare(
            graph,
            samples,
            (),
            objective=None,
            rounding=round_weight,
            shards=SHARDS,
            workers=ALONE,
            progress=lambda label, done, total: None,
        )
        return MixLoss(study, rounds_activations)

    def __post_init__(self) -> None:
        self._blocks = {block.layer: block for block in self.study.blocks}
        self._stacks = [stack for shard in self.study.shards for stack in self.study.stacks(shard)]
        self._outputs: list[Tensor] = []
        self._ranges, self._means = self._observe()

    def of(self, mix: Mix) -> Tensor:
        """The loss that the mix adds to each sample, float64."""
        return torch.cat(self._losses(mix, [])[0])

    def around(self, mix: Mix, changes: Sequence[tuple[str, Widths]]) -> list[float]:
        """How much more the mix loses with each change of one layer; only what lies behind it runs again."""
        present, *others = (float(torch.cat(losses).mean()) for losses in self._losses(mix, changes))
        return [loss - present for loss in others]

    def _losses(self, mix: Mix, changes: Sequence[tuple[str, Widths]]) -> list[list[Tensor]]:
        """Losses of the samples, stack by stack: of the mix, and of each change."""
        losses: list[list[Tensor]] = [[] for _ in (None, *changes)]
        self.runs += len(losses)
        read, divergence = self.study.loss.read, self.study.loss.divergence
        with torch.no_grad():
            for stack, z in zip(self._stacks, self._outputs, strict=True):
                first = dict(zip((v.name for v in stack.graph.inputs), stack.inputs, strict=True))
                base = self._run(stack, mix, {**stack.graph.params, **first}, stack.graph.producers)
                for found, (layer, widths) in zip(losses[1:], changes, strict=True):
                    nodes = {node.output.name for node in self._blocks[layer].nodes}
                    values = self._run(stack, {**mix, layer: widths}, base, nodes)
                    outputs = [values.get(v.name, base[v.name]) for v in stack.graph.outputs]
                    found.append(divergence(z, read(outputs, stack.count)))
                outputs = [base[v.name] for v in stack.graph.outputs]
                losses[0].append(divergence(z, read(outputs, stack.count)))
        return losses

    def _run(self, stack: Stack, mix: Mix, known: Values, starts: Container[str]) -> Values:
        """`known` with the values of the nodes that start a change, and of all behind them."""
        layers = {n.output.name: layer for layer, block in self._blocks.items() for n in block.nodes}
        values, fresh = dict(known), set[str]()
        for node in stack.graph.nodes:
            if node.outputs[0].name not in starts and not any(v.name in fresh for v in node.operands):
                continue
            operands = [None if v is None else values[v.name] for v in node.inputs]
            name = node.outputs[0].name
            if name in layers:
                self._round(node, operands, mix[layers[name]], self._rounded(layers[name], mix))
            results = node.op.reference(*operands)
            together = results if isinstance(results, tuple) else (results,)
            values.update((v.name, x) for v, x in zip(node.outputs, together, strict=True))
            fresh.update(v.name for v in node.outputs)
        return values

    def _round(self, node: Node, operands: list[Tensor | None], widths: Widths, made: _Rounded) -> None:
        """Put in the operands as they will be stored."""
        x = operands[0]
        assert x is not None
        if self.rounds_activations:
            operands[0] = round_activation(x, self._ranges[data_of(node).name], widths[1])
        operands[1] = made.weights[weight_of(node).name]
        if node.output.name in made.shifts:
            operands += [None] * (3 - len(operands))
            bias, shift = operands[2], made.shifts[node.output.name]
            operands[2] = -shift if bias is None else bias - shift

    def _rounded(self, layer: str, mix: Mix) -> _Rounded:
        bits = mix[layer][0]
        if (layer, bits) not in self._layers:
            self._layers[layer, bits] = self._round_layer(self._blocks[layer], bits)
        return self._layers[layer, bits]

    def _round_layer(self, block: Block, bits: int) -> _Rounded:
        graph = self.study.graph
        errors = block.weight_errors(graph, bits, round_weight)
        shifts = {}
        for node in block.nodes:
            weight = weight_of(node).name
            if node.output.name in self._means and is_layer(node.op):
                shift = mean_shift(node.op, errors[weight].double(), self._means[node.output.name])
                shifts[node.output.name] = shift.to(graph.params[weight].dtype)
        return _Rounded({name: graph.params[name] + error for name, error in errors.items()}, shifts)

    def _observe(self) -> tuple[dict[str, Range], dict[str, Tensor]]:
        """In the float network: what each layer's operand covers, and its mean along channels by the layer's node."""
        nodes = [node for block in self.study.blocks for node in block.nodes]
        seen: dict[str, list[Range]] = {data_of(node).name: [] for node in nodes}
        sums: dict[str, list[Tensor]] = {node.output.name: [] for node in nodes}
        with torch.no_grad():
            for stack in self._stacks:
                values = dict(stack.graph.params)
                values |= {v.name: x for v, x in zip(stack.graph.inputs, stack.inputs, strict=True)}
                for node in stack.graph.nodes:
                    results = node.op.reference(*(None if v is None else values[v.name] for v in node.inputs))
                    together = results if isinstance(results, tuple) else (results,)
                    values.update((v.name, x) for v, x in zip(node.outputs, together, strict=True))
                for name, ranges in seen.items():
                    low, high = values[name].aminmax()
                    ranges.append(Range.of(float(low), float(high)))
                for node in nodes:
                    assert is_layer(node.op)
                    x = values[data_of(node).name].double()
                    axis = channel_axis(node.op, node.output.type) % x.dim()
                    mean = x.movedim(axis, 0).flatten(1).mean(1)
                    sums[node.output.name].append(mean * stack.count)
                outputs = [values[v.name] for v in stack.graph.outputs]
                self._outputs.append(self.study.loss.read(outputs, stack.count))
        count = len(self.study.samples)
        means = {name: torch.stack(parts).sum(0) / count for name, parts in sums.items()}
        return {name: joined(ranges) for name, ranges in seen.items()}, means


def mean_and_error(losses: Tensor) -> tuple[float, float]:
    """Mean over samples and its standard error."""
    error = float(losses.std()) / len(losses) ** 0.5 if len(losses) > 1 else 0.0
    return float(losses.mean()), error
