"""Matrix products with a constant, and constants added to channels, as linear layers and biases.

    matmul(x, w) = linear(x, w^T)
    layer(x, w, b) + c = layer(x, w, b + c)        c has one number, or one for each output channel, and is not a mask

Models that are written with parameters (`x @ self.w + self.b`, einsum) become layers, whose weights have a scale for
each output channel and kernels of their own.
"""

from __future__ import annotations

from torch import Tensor

from ...ir import Builder, LazyTensor, Value
from ...ir.ops.binary import Add
from ...ir.ops.conv import Conv, ConvTranspose
from ...ir.ops.linear import Linear
from ...ir.ops.matmul import MatMul
from ..masks import NEVER
from ..pattern import OPTIONAL, Application, Match, Rule, Term, op
from ..weighted_layers import bias_name, clamp_of, is_layer, with_clamp


def _product(x: Term, w: Term) -> Application:
    return op(MatMul)(x, w)


def _why_no_layer(match: Match) -> str | None:
    x, w = match.value("x"), match.value("w")
    entry = match.builder.entry(w)
    if entry is None:
        return "it is a product of activations"
    if isinstance(entry, LazyTensor):
        return "the constant is read when it is stored"
    if match.builder.entry(x) is not None or w.type.is_quantized or x.type.is_quantized:
        return "it is a product of constants, or quantized"
    if w.type.rank < 2 or any(size != 1 for size in w.type.shape[:-2]):
        return "the constant is a vector, or has a matrix for each batch"
    return None if w.type.rank <= max(x.type.rank, 2) else "the constant has more dimensions"


def _layer(builder: Builder, match: Match) -> Value:
    w, product = match.value("w"), match.root
    weight = match.tensor(w)
    assert weight is not None
    matrix = weight.reshape(weight.shape[-2:]).mT.contiguous()
    transposed = builder.derived_constant(
        f"{w.name}_transposed", matrix
    )  # not to be taken for w, which may be square
    return builder.add(
        Linear(), match.value("x"), transposed, name=product.output.name, source=product.source
    )


def _sum(x: Term, w: Term, c: Term, *, b: Term = OPTIONAL) -> Application:
    return op(Add)(op(Conv, ConvTranspose, Linear)(x, w, b), c)


def _why_no_bias(match: Match) -> str | None:
    layer = match.nodes[0]
    added = match.tensor(match.value("c"))
    if added is None:
        return "what is added is not a constant"
    if bool((added <= NEVER).any()):
        return "what is added is a mask"
    if clamp_of(layer.op) is not None:
        return f"the {layer.op.name} is clamped before the addition"
    if not match.are_constant(match.optional("b")) or any(v.type.is_quantized for v in layer.operands):
        return "the layer is quantized, or its bias is no constant"
    if match.root.output.type != layer.output.type or added.dtype != layer.output.type.dtype.torch:
        return "the sum has another type than the layer's result"
    return (
        None
        if _by_channel(match, added) is not None
        else "what is added varies along other dimensions than channels"
    )


def _by_channel(match: Match, added: Tensor) -> Tensor | None:
    """Addend of each channel (float64), None if it varies along other dimensions."""
    layer = match.nodes[0]
    assert is_layer(layer.op)
    type = layer.output.type
    axis = layer.op.channel_axis(type)
    aligned = added.reshape((1,) * (type.rank - added.ndim) + tuple(added.shape))
    if any(size != 1 for place, size in enumerate(aligned.shape) if place != axis):
        return None
    return aligned.flatten().double().expand(type.shape[axis])


def _bias(builder: Builder, match: Match) -> Value:
    layer, root = match.nodes
    added, old = match.tensor(match.value("c")), match.optional("b")
    assert added is not None
    channels = _by_channel(match, added)
    assert channels is not None
    dtype, before = layer.output.type.dtype.torch, match.tensor(old)
    if old is not None and before is not None:
        bias = match.replace_constant(old, (channels + before.double()).to(dtype))
    elif added.shape == channels.shape:
        bias = match.value("c")
    else:
        bias = builder.derived_constant(bias_name(match.value("w").name), channels.to(dtype).clone())
    fused = with_clamp(layer.op, clamp_of(root.op))
    operands = (match.value("x"), match.value("w"), bias)
    return builder.add(fused, *operands, name=root.output.name, source=layer.source)


PRODUCT = Rule("product", _product, _why_no_layer, _layer, "computed as a linear layer")
ADDED_BIAS = Rule("added_bias", _sum, _why_no_bias, _bias, "added as a bias by the layer before it")
