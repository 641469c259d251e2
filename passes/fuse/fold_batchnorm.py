"""Folding of batch normalization into the convolution or linear layer before it, or after it.

    y = (conv(x, w) + b - mean) * s + beta,   s = gamma / sqrt(var + eps)
      = conv(x, w * s) + (b - mean) * s + beta

    y = conv(x * s + t, w) + b,               t = beta - mean * s
      = conv(x, w * s) + b + sum(w * t)       without padding, or with t = 0

computed in float64 and stored in the weight's dtype. The new constants are used only by this call, so that a layer
that is called twice stays correct.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...ir import Builder, Node, Value
from ...ir.ops.conv import Conv, ConvTranspose
from ...ir.ops.linear import Linear
from ...ir.ops.norm import BatchNorm
from ..pattern import OPTIONAL, Application, Match, Rule, Term, op
from ..weighted_layers import bias_name, clamp_of, is_layer


@dataclass(frozen=True)
class Affine:
    """Affine form of a batch norm, x * scale + shift per channel, in float64."""

    scale: Tensor
    shift: Tensor

    @property
    def is_finite(self) -> bool:
        return bool(self.scale.isfinite().all() and self.shift.isfinite().all())


def _layer_then_norm(
    x: Term,
    w: Term,
    mean: Term,
    var: Term,
    *,
    b: Term = OPTIONAL,
    gamma: Term = OPTIONAL,
    beta: Term = OPTIONAL,
) -> Application:
    return op(BatchNorm)(op(Conv, ConvTranspose, Linear)(x, w, b), gamma, beta, mean, var)


def _norm_then_layer(
    x: Term,
    w: Term,
    mean: Term,
    var: Term,
    *,
    b: Term = OPTIONAL,
    gamma: Term = OPTIONAL,
    beta: Term = OPTIONAL,
) -> Application:
    return op(Conv, Linear)(op(BatchNorm)(x, gamma, beta, mean, var), w, b)


def _why_not_after(match: Match) -> str | None:
    layer, norm = match.nodes
    if clamp_of(layer.op) is not None:
        return f"the {layer.op.name} is clamped before the batch norm"
    if isinstance(layer.op, Linear) and norm.output.type.rank != 2:
        return "the batch norm runs over another dimension than the outputs of the linear layer"
    return why_not_fold(match, norm)


def _why_not_before(match: Match) -> str | None:
    norm, layer = match.nodes
    if isinstance(layer.op, Linear) and norm.output.type.rank != 2:
        return "the batch norm runs over another dimension than the inputs of the linear layer"
    reason = why_not_fold(match, norm)
    if (
        reason is None
        and is_layer(layer.op)
        and layer.op.reads_zeros
        and norm_affine(match, norm).shift.any()
    ):
        return "the convolution pads with zeros, which the batch norm would have shifted"
    return reason


def why_not_fold(match: Match, norm: Node) -> str | None:
    """Reason why a match's weights `w`, `b` and its batch norm cannot be folded, or None."""
    read = [
        match.optional(name) for name in ("w", "b", "gamma", "beta", "mean", "var") if name in match.bound
    ]
    if not match.are_constant(*read):
        return "a weight or a statistic is not a constant"
    if any(value is not None and value.type.is_quantized for value in read):
        return "the layer is quantized"
    if not norm_affine(match, norm).is_finite:
        return "the statistics give a scale that is not finite"
    return None


def norm_affine(match: Match, norm: Node) -> Affine:
    """Scale and shift of a match's batch norm."""
    assert isinstance(norm.op, BatchNorm)
    gamma, beta = match.tensor(match.optional("gamma")), match.tensor(match.optional("beta"))
    mean, var = _real(match, "mean"), _real(match, "var")
    scale = torch.rsqrt(var + norm.op.eps)
    if gamma is not None:
        scale = scale * gamma.double()
    shift = -mean * scale
    return Affine(scale, shift if beta is None else shift + beta.double())


def _fold_after(builder: Builder, match: Match) -> Value:
    layer, norm = match.nodes
    assert is_layer(layer.op)
    affine = norm_affine(match, norm)
    weight = layer.op.scale_outputs(_real(match, "w"), affine.scale)
    bias = _bias(match, layer.op.output_channels(weight)) * affine.scale + affine.shift
    return _emit(builder, match, layer, weight, bias)


def _fold_before(builder: Builder, match: Match) -> Value:
    norm, layer = match.nodes
    assert is_layer(layer.op)
    affine, weight = norm_affine(match, norm), _real(match, "w")
    shifted = layer.op.scale_inputs(weight, affine.shift).flatten(1).sum(1)
    bias = _bias(match, weight.shape[0]) + shifted
    return _emit(builder, match, layer, layer.op.scale_inputs(weight, affine.scale), bias)


def _real(match: Match, name: str) -> Tensor:
    tensor = match.tensor(match.value(name))
    assert tensor is not None
    return tensor.double()


def _bias(match: Match, channels: int) -> Tensor:
    bias = match.tensor(match.optional("b"))
    return torch.zeros(channels, dtype=torch.float64) if bias is None else bias.double()


def _emit(builder: Builder, match: Match, layer: Node, weight: Tensor, bias: Tensor) -> Value:
    old_weight, old_bias = match.value("w"), match.optional("b")
    weight, bias = (tensor.to(old_weight.type.dtype.torch) for tensor in (weight, bias))
    if old_bias is None:
        folded = builder.derived_constant(bias_name(old_weight.name), bias)
    else:
        folded = match.replace_constant(old_bias, bias)
    operands = (match.value("x"), match.replace_constant(old_weight, weight), folded)
    return builder.add(layer.op, *operands, name=match.root.output.name, source=layer.source)


FOLD_BATCHNORM = Rule(
    "fold_batchnorm", _layer_then_norm, _why_not_after, _fold_after, "scaled into the weights"
)
FOLD_BATCHNORM_BEFORE = Rule(
    "fold_batchnorm_before",
    _norm_then_layer,
    _why_not_before,
    _fold_before,
    "scaled into the weights after it",
)
