"""What rounding all layers together really adds to the loss of the float network: the check of a predicted sum."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ..ir import Graph, run
from .bit_costs import Widths
from .calibrate import Batch
from .observers import Range
from .sensitivity import SHARDS, round_weight
from .sensitivity.blocks import data_of, joined, round_activation
from .sensitivity.study import Stack, Study, prepare
from .sensitivity.workers import ALONE


def measured_loss(
    graph: Graph, samples: Sequence[Batch], widths: Mapping[str, Widths], *, rounds_activations: bool
) -> tuple[float, float]:
    """Mean loss that is added over samples, and its standard error.

    Weights are rounded as by `quantize` at its defaults; with `rounds_activations` the operands of layers too, each on
    a grid that covers what the float network shows it.
    """
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
    weights = {
        name: study.graph.params[name] + error
        for block in study.blocks
        for name, error in block.weight_errors(study.graph, widths[block.layer][0], round_weight).items()
    }
    bits = {n.output.name: widths[b.layer][1] for b in study.blocks for n in b.nodes}
    stacks = [stack for shard in study.shards for stack in study.stacks(shard)]
    ranges = _ranges(study, stacks) if rounds_activations else {}
    losses = []
    with torch.no_grad():
        for stack in stacks:
            z = study.loss.read(run(stack.graph, stack.inputs), stack.count)
            rounded = study.loss.read(_run_rounded(stack, weights, bits, ranges), stack.count)
            losses.append(study.loss.divergence(z, rounded))
    found = torch.cat(losses)
    error = float(found.std()) / len(found) ** 0.5 if len(found) > 1 else 0.0
    return float(found.mean()), error


def _ranges(study: Study, stacks: Sequence[Stack]) -> dict[str, Range]:
    """What the operand of each layer covers in the float network, by the operand's name."""
    names = {data_of(node).name for block in study.blocks for node in block.nodes}
    seen: dict[str, list[Range]] = {name: [] for name in names}

    def observe(name: str, x: Tensor) -> None:
        if name in names:
            low, high = x.aminmax()
            seen[name].append(Range.of(float(low), float(high)))

    with torch.no_grad():
        for stack in stacks:
            for value, x in zip(stack.graph.inputs, stack.inputs, strict=True):
                observe(value.name, x)
            run(stack.graph, stack.inputs, observe=lambda value, x: observe(value.name, x))
    return {name: joined(ranges) for name, ranges in seen.items()}


def _run_rounded(
    stack: Stack, weights: Mapping[str, Tensor], bits: Mapping[str, int], ranges: Mapping[str, Range]
) -> list[Tensor]:
    """The outputs with these weights; an operand that has a range is rounded where a layer reads it."""
    graph = stack.graph
    values = {**graph.params, **weights}
    values.update((v.name, x) for v, x in zip(graph.inputs, stack.inputs, strict=True))
    for node in graph.nodes:
        operands = [None if v is None else values[v.name] for v in node.inputs]
        name = node.outputs[0].name
        if name in bits and data_of(node).name in ranges:
            covered = ranges[data_of(node).name]
            operands[0] = round_activation(values[data_of(node).name], covered, bits[name])
        results = node.op.reference(*operands)
        together = results if isinstance(results, tuple) else (results,)
        values.update((v.name, x) for v, x in zip(node.outputs, together, strict=True))
    return [values[v.name] for v in graph.outputs]
