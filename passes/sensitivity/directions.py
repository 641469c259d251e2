"""Scores along the rounding error itself, by one forward-mode product per (layer, bits), or measured.

    quadratic      1/2 dz^T F dz, dz = J dW: the Gauss-Newton form of the loss; no probes and no randomness
gauss_newton   KL(softmax(z) || softmax(z + dz)), of which `quadratic` is the second order: the loss itself, which
stays bounded for few bits, over outputs that are linearized in the error
    kl             the divergence between the outputs of the network with and without the error, by running both

With labels the first two add the first-order term (p - y) . dz; gauss_newton is then the cross-entropy's change.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..calibration.observers import Range
from ..workers import Moments
from .blocks import Block, data_of, joined, round_activation, weight_of
from .replay import Operand, Replay
from .sensitivity_table import Kind, Score
from .study import Stack, Study


@dataclass(frozen=True)
class _Error:
    """One scored error: the addend of weights, or the range of a rounded operand."""

    block: Block
    kind: Kind
    bits: int
    weights: dict[str, Tensor]
    ranges: dict[str, Range]

    def operands(self, replay: Replay) -> dict[Operand, Tensor]:
        """Perturbations of operands."""
        if self.kind == "weight":
            return {(n.output.name, 1): self.weights[weight_of(n).name] for n in self.block.nodes}
        found = {}
        for node in self.block.nodes:
            x = replay.value(data_of(node).name)
            rounded = round_activation(x, self.ranges[data_of(node).name], self.bits)
            found[node.output.name, 0] = rounded - x
        return found


def gauss_newton(study: Study, weight_bits: Sequence[int], activation_bits: Sequence[int]) -> list[Score]:
    """Increase of the loss over outputs that are linearized in each error."""
    return _along(
        study, weight_bits, activation_bits, lambda z, dz: study.loss.divergence(z, z.double() + dz)
    )


def quadratic(study: Study, weight_bits: Sequence[int], activation_bits: Sequence[int]) -> list[Score]:
    """The same, to second order in the outputs as well."""
    return _along(study, weight_bits, activation_bits, study.loss.quadratic)


def _along(
    study: Study,
    weight_bits: Sequence[int],
    activation_bits: Sequence[int],
    rise: Callable[[Tensor, Tensor], Tensor],
) -> list[Score]:
    def score(replay: Replay, stack: Stack, z: Tensor, error: _Error) -> Tensor:
        dz = study.loss.read(replay.tangents(error.operands(replay)), stack.count)
        found = rise(z, dz)
        return found if stack.labels is None else found + study.loss.first_order(z, dz, stack.labels)

    return _score(study, weight_bits, activation_bits, score)


def kl(study: Study, weight_bits: Sequence[int], activation_bits: Sequence[int]) -> list[Score]:
    """The measured divergence by each error."""

    def score(replay: Replay, stack: Stack, z: Tensor, error: _Error) -> Tensor:
        changed = study.loss.read(replay.changed(error.operands(replay)), stack.count)
        return study.loss.divergence(z, changed)

    return _score(study, weight_bits, activation_bits, score)


def _score(
    study: Study,
    weight_bits: Sequence[int],
    activation_bits: Sequence[int],
    score: Callable[[Replay, Stack, Tensor, _Error], Tensor],
) -> list[Score]:
    errors = _errors(study, weight_bits, activation_bits)

    def work(shard: range) -> Moments:
        parts = []
        for stack in study.stacks(shard):
            replay = Replay(stack.graph, stack.inputs)
            z = study.loss.read(replay.outputs, stack.count)
            parts.append(Moments.of(torch.stack([score(replay, stack, z, error) for error in errors])))
        return Moments.total(parts)

    total = Moments.total(study.over_shards("sensitivity", work))
    return [
        Score(error.block.layer, error.kind, error.bits, loss, deviation)
        for error, loss, deviation in zip(errors, total.mean.tolist(), total.error.tolist(), strict=True)
    ]


def _errors(study: Study, weight_bits: Sequence[int], activation_bits: Sequence[int]) -> list[_Error]:
    errors = [
        _Error(block, "weight", bits, block.weight_errors(study.graph, bits, study.rounding), {})
        for block in study.blocks
        for bits in weight_bits
    ]
    if not activation_bits:
        return errors
    ranges = _ranges(study)
    blocks = [b for b in study.blocks if all(data_of(n).type.dtype.is_floating for n in b.nodes)]
    return errors + [
        _Error(block, "activation", bits, {}, ranges) for block in blocks for bits in activation_bits
    ]


def _ranges(study: Study) -> dict[str, Range]:
    """The range of each layer's operand over all samples."""
    names = sorted({data_of(node).name for block in study.blocks for node in block.nodes})

    def work(shard: range) -> list[Range]:
        found: list[list[Range]] = [[] for _ in names]
        for stack in study.stacks(shard):
            replay = Replay(stack.graph, stack.inputs)
            for ranges, name in zip(found, names, strict=True):
                low, high = replay.value(name).aminmax()
                ranges.append(Range.of(float(low), float(high)))
        return [joined(ranges) for ranges in found]

    parts = study.over_shards("ranges of activations", work)
    return {name: joined(ranges) for name, ranges in zip(names, zip(*parts, strict=True), strict=True)}
