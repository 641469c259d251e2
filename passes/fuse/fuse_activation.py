"""Fusion of ReLU, ReLU6, hardtanh and clamp into the node before them, as its `clamp` attribute.

clamp(clamp(x, l1, h1), l2, h2) = clamp(x, clamp(l1, l2, h2), clamp(h1, l2, h2))
"""

from __future__ import annotations

from ...ir import Builder, Value
from ...ir.ops.activation import Clamp, Relu
from ..pattern import Application, Match, Rule, Term, op
from ..weighted_layers import CLAMPED, clamp_of, with_clamp


def _clamped_then_activation(*operands: Term) -> Application:
    return op(Relu, Clamp)(op(*CLAMPED)(*operands))


def merge_bounds(first: tuple[float, float] | None, second: tuple[float, float]) -> tuple[float, float]:
    """Bounds of the clamp to `first` followed by the clamp to `second`."""
    low, high = second
    if first is None:
        return min(low, high), high
    return min(max(first[0], low), high), min(max(first[1], low), high)


def _why_not(match: Match) -> str | None:
    producer, activation = match.nodes
    if any(
        type is not None and type.is_quantized for type in (*producer.operand_types, *activation.output_types)
    ):
        return "the layer is quantized"
    return None


def _fuse(builder: Builder, match: Match) -> Value:
    producer, activation = match.nodes
    bounds = merge_bounds(clamp_of(producer.op), activation.op.facts.bounds)
    return builder.add(
        with_clamp(producer.op, bounds), *producer.inputs, name=activation.output.name, source=producer.source
    )


FUSE_ACTIVATION = Rule(
    "fuse_activation", _clamped_then_activation, _why_not, _fuse, "clamped by the node before it"
)
