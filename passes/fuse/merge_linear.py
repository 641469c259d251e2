"""Merging of two adjacent layers into one, if it has fewer weights and multiplications.

    linear(linear(x, w1, b1), w2, b2) = linear(x, w2 w1, w2 b1 + b2)

and the same for a convolution followed by a 1x1 convolution. Computed in float64.
"""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from ...ir import Builder, Node, Value
from ...ir.ops.conv import Conv
from ...ir.ops.linear import Linear
from ..pattern import OPTIONAL, Application, Match, Rule, Term, op
from ..weighted_layers import bias_name, clamp_of, with_clamp


def _linear_then_linear(
    x: Term, w1: Term, w2: Term, *, b1: Term = OPTIONAL, b2: Term = OPTIONAL
) -> Application:
    return op(Linear)(op(Linear)(x, w1, b1), w2, b2)


def _conv_then_conv(x: Term, w1: Term, w2: Term, *, b1: Term = OPTIONAL, b2: Term = OPTIONAL) -> Application:
    return op(Conv)(op(Conv)(x, w1, b1), w2, b2)


def _why_not(match: Match) -> str | None:
    first, second = match.nodes
    if clamp_of(first.op) is not None:
        return f"the {first.op.name} before it is clamped"
    if not match.are_constant(*(match.optional(name) for name in ("w1", "b1", "w2", "b2"))):
        return "a weight is not a constant"
    if any(v.type.is_quantized for v in first.operands):
        return "the layer is quantized"
    return _why_not_pointwise(first.op, second) or _why_not_smaller(match)


def _why_not_pointwise(first: object, second: Node) -> str | None:
    if not isinstance(first, Conv):
        return None
    assert isinstance(second.op, Conv)
    if (
        prod(second.operand("weight").type.shape[2:]) > 1
        or any(second.op.padding)
        or set(second.op.stride) != {1}
    ):
        return "it is not a 1x1 convolution without padding and stride"
    return None if first.groups == second.op.groups == 1 else "a convolution in groups"


def _why_not_smaller(match: Match) -> str | None:
    first, second = match.nodes
    w1, w2 = match.value("w1").type, match.value("w2").type
    merged = w2.shape[0] * prod(w1.shape[1:])
    positions = prod(second.output.type.shape) // w2.shape[0]
    if merged >= w1.numel + w2.numel:
        return f"merged it has {merged:,} weights, separately {w1.numel + w2.numel:,}"
    if merged * positions > first.macs + second.macs:
        return (
            f"merged it has {merged * positions:,} multiplications, separately {first.macs + second.macs:,}"
        )
    return None


def _merge(builder: Builder, match: Match) -> Value:
    first, second = match.nodes
    w1, w2 = _real(match, "w1"), _real(match, "w2").flatten(1)
    weight = torch.tensordot(w2, w1, dims=1)
    bias = _real(match, "b2", channels=len(w2)) + w2 @ _real(match, "b1", channels=len(w1))
    dtype = match.value("w1").type.dtype.torch
    has_bias = match.optional("b1") is not None or match.optional("b2") is not None
    old = match.value("w2")
    operands = (
        match.value("x"),
        match.replace_constant(old, weight.to(dtype)),
        builder.derived_constant(bias_name(old.name), bias.to(dtype)) if has_bias else None,
    )
    merged = with_clamp(first.op, clamp_of(second.op))
    return builder.add(merged, *operands, name=second.output.name, source=second.source)


def _real(match: Match, name: str, *, channels: int = 0) -> Tensor:
    tensor = match.tensor(match.optional(name))
    return torch.zeros(channels, dtype=torch.float64) if tensor is None else tensor.double()


MERGE_LINEAR = Rule(
    "merge_linear", _linear_then_linear, _why_not, _merge, "multiplied with the layer before it"
)
MERGE_CONV = Rule(
    "merge_conv", _conv_then_conv, _why_not, _merge, "multiplied with the convolution before it"
)
