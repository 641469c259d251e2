"""Fusion of a residual addition into the convolution or linear layer that computes one of its operands.

    clamp(conv(x, w, b) + r) = conv{clamp}(x, w, b, r)

The layer is moved to the position of the addition, where `r` is available. If both operands come from layers, the
later one is fused, so that the operands of the earlier are not kept alive.
"""

from __future__ import annotations

from ...ir import Builder, Value
from ...ir.ops.binary import Add
from ...ir.ops.conv import Conv, ConvTranspose
from ...ir.ops.linear import Linear
from ..pattern import OPTIONAL, Application, Match, Rule, Term, op
from ..weighted_layers import clamp_of, with_clamp


def _layer_then_add(x: Term, w: Term, residual: Term, *, b: Term = OPTIONAL) -> Application:
    return op(Add)(op(Conv, ConvTranspose, Linear)(x, w, b), residual)


def _why_not(match: Match) -> str | None:
    layer = match.nodes[0]
    residual = match.value("residual")
    if clamp_of(layer.op) is not None:
        return f"the {layer.op.name} is clamped before the addition"
    if residual.type != layer.output.type:
        return "the other operand broadcasts"
    if match.are_constant(residual):
        return "the other operand is a constant"
    if any(type is not None and type.is_quantized for type in layer.operand_types):
        return "the layer is quantized"
    return None


def _fuse(builder: Builder, match: Match) -> Value:
    layer, add = match.nodes
    operands = (match.value("x"), match.value("w"), match.optional("b"), match.value("residual"))
    fused = with_clamp(layer.op, clamp_of(add.op))
    return builder.add(fused, *operands, name=add.output.name, source=layer.source)


FUSE_RESIDUAL = Rule("fuse_residual", _layer_then_add, _why_not, _fuse, "added by the layer before it")
