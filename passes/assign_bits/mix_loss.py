"""Measured loss increase when all layers are rounded together, to validate the predicted sum."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...ir import Graph, Node
from ..calibration.calibrate import Batch
from ..calibration.observers import Range
from ..quantize.weights import mean_shift
from ..sensitivity import round_weight
from ..sensitivity.blocks import Block, data_of, joined, round_activation, weight_of
from ..sensitivity.replay import Replay
from ..sensitivity.study import Stack, Study, prepare
from ..weighted_layers import is_layer
from .bit_costs import Widths


def mix_losses(
    graph: Graph, samples: Sequence[Batch], mix: Mapping[str, Widths], *, rounds_activations: bool
) -> Tensor:
    """Loss increase of each sample by a mix, float64; weights are rounded and biases corrected as in `quantize` with
    its defaults.

    With `rounds_activations` the operands of layers are rounded, too, each in its range in the float network.
    """
    study = prepare(graph, samples)
    stacks = [stack for shard in study.shards for stack in study.stacks(shard)]
    with torch.no_grad():
        seen = _observe(study, stacks)
        rounded = {
            node.output.name: _round(study.graph, block, node, mix[block.layer], seen)
            for block in study.blocks
            for node in block.nodes
        }
        if not rounds_activations:
            seen.ranges.clear()
        losses = [
            study.loss.divergence(z, study.loss.read(_run(stack, rounded, seen.ranges), stack.count))
            for stack, z in zip(stacks, seen.outputs, strict=True)
        ]
    return torch.cat(losses)


def mean_and_error(losses: Tensor) -> tuple[float, float]:
    """Mean over samples and its standard error."""
    error = float(losses.std()) / len(losses) ** 0.5 if len(losses) > 1 else 0.0
    return float(losses.mean()), error


@dataclass(frozen=True)
class _Seen:
    """Statistics of the float network: outputs, range of each layer's operand, mean per channel by the layer's node."""

    outputs: list[Tensor]
    ranges: dict[str, Range]
    means: dict[str, Tensor]


@dataclass(frozen=True)
class _Rounded:
    """The stored weight of a node, the correction of its bias, and the bits of its operand."""

    weight: Tensor
    shift: Tensor
    activation_bits: int


def _observe(study: Study, stacks: Sequence[Stack]) -> _Seen:
    nodes = [node for block in study.blocks for node in block.nodes]
    outputs: list[Tensor] = []
    ranges: dict[str, list[Range]] = {data_of(node).name: [] for node in nodes}
    sums: dict[str, list[Tensor]] = {node.output.name: [] for node in nodes}
    for stack in stacks:
        replay = Replay(stack.graph, stack.inputs)
        outputs.append(study.loss.read(replay.outputs, stack.count))
        for name, found in ranges.items():
            low, high = replay.value(name).aminmax()
            found.append(Range.of(float(low), float(high)))
        for node in nodes:
            assert is_layer(node.op)
            x = replay.value(data_of(node).name).double()
            axis = node.op.channel_axis(node.output.type) % x.dim()
            sums[node.output.name].append(x.movedim(axis, 0).flatten(1).mean(1) * stack.count)
    means = {name: torch.stack(parts).sum(0) / len(study.samples) for name, parts in sums.items()}
    return _Seen(outputs, {name: joined(found) for name, found in ranges.items()}, means)


def _round(graph: Graph, block: Block, node: Node, widths: Widths, seen: _Seen) -> _Rounded:
    assert is_layer(node.op)
    weight = weight_of(node).name
    error = block.weight_errors(graph, widths[0], round_weight)[weight]
    shift = mean_shift(node.op, error.double(), seen.means[node.output.name])
    return _Rounded(graph.params[weight] + error, shift.to(error.dtype), widths[1])


def _run(stack: Stack, rounded: Mapping[str, _Rounded], ranges: Mapping[str, Range]) -> list[Tensor]:
    """The outputs of some samples with all layers rounded, and operands that have ranges."""
    inputs = zip((v.name for v in stack.graph.inputs), stack.inputs, strict=True)
    values = {**stack.graph.params, **dict(inputs)}
    for node in stack.graph.nodes:
        operands = [None if v is None else values[v.name] for v in node.inputs]
        made = rounded.get(node.outputs[0].name)
        if made is not None:
            x, _, bias, *others = (*operands, None)[: max(len(operands), 3)]
            name = data_of(node).name
            assert x is not None
            x = round_activation(x, ranges[name], made.activation_bits) if name in ranges else x
            operands = [x, made.weight, -made.shift if bias is None else bias - made.shift, *others]
        results = node.op.reference(*operands)
        together = results if isinstance(results, tuple) else (results,)
        values.update((v.name, y) for v, y in zip(node.outputs, together, strict=True))
    return [values[v.name] for v in stack.graph.outputs]
