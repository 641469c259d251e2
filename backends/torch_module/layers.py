"""Operators that are emitted as submodules of `torch.nn`: constructor and call.

All other operators are written as torch expressions, derived from their reference (`record.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ...ir import DType, Entry, Node, TensorType
from ...ir.ops.activation import Clamp, Gelu, Hardsigmoid, Hardswish, LeakyRelu, Relu, Sigmoid, Silu, Tanh
from ...ir.ops.conv import Conv, ConvTranspose
from ...ir.ops.embedding import Embedding
from ...ir.ops.linear import Linear
from ...ir.ops.norm import BatchNorm, GroupNorm, LayerNorm, RmsNorm
from ...ir.ops.pool import AvgPool, MaxPool
from ...ir.ops.prelu import Prelu
from ...ir.ops.spatial import pairs
from .literal import literal

Argument = int | float | bool | str | tuple[int, ...] | list[int]


@dataclass(frozen=True, slots=True)
class LayerKind:
    """A submodule that computes a node: its constructor, and the operand for each of its tensors.

    The submodule is called on operand `x`, padded by `pad` if its own padding cannot express it. One that `is_whole`
    also takes the residual and computes the node on carried values; one that `is_held` is itself the value of the
    node's variable, at the path of its constant. `statistics` are tensors that are not trained; `state` are entries
    of its state that are not constants of the graph; `integers` are the tensors that it stores as integers.
    """

    constructor: str
    parameters: Mapping[str, str] = field(default_factory=dict)
    statistics: Mapping[str, str] = field(default_factory=dict)
    state: Mapping[str, Entry] = field(default_factory=dict, compare=False)
    integers: tuple[str, ...] = ()
    pad: tuple[int, ...] = ()
    is_whole: bool = False
    is_held: bool = False

    @property
    def tensors(self) -> dict[str, str]:
        """Name of the operand for each of the submodule's tensors, by attribute."""
        return {**self.parameters, **self.statistics}

    @property
    def has_integers(self) -> bool:
        """True if some of its tensors are quantized integers."""
        return self.is_held or bool(self.integers)

    def keeps_integers(self, attribute: str) -> bool:
        """True for a tensor stored as integers; methods such as `real_weight()` of the submodule return the reals."""
        return attribute in self.integers

    def holds_parameter(self, attribute: str) -> bool:
        """True for a tensor that is an `nn.Parameter` of the submodule."""
        buffers = self.is_held or self.is_whole or self.keeps_integers(attribute)
        return attribute in self.parameters and not buffers


def layer_kind(node: Node) -> LayerKind | None:
    """The submodule that computes `node` up to a fused residual and clamp; None if `torch.nn` has none."""
    op = node.op
    match op:
        case Conv() | ConvTranspose():
            return _convolution(op, node)
        case Linear():
            weight = node.operand("weight").type
            return LayerKind(
                construct("nn.Linear", *reversed(weight.shape), **_bias(node), **_dtype(weight)),
                layer_parameters(node),
            )
        case BatchNorm():
            return _batch_norm(op, node)
        case LayerNorm() | RmsNorm() | GroupNorm():
            return _norm(op, node)
        case Embedding():
            weight = node.operand("weight").type
            return LayerKind(construct("nn.Embedding", *weight.shape, **_dtype(weight)), {"weight": "weight"})
        case Prelu():
            slope = node.operand("slope").type
            return LayerKind(construct("nn.PReLU", slope.numel, **_dtype(slope)), {"weight": "slope"})
        case _:
            constructor = _stateless(node)
            return None if constructor is None else LayerKind(constructor)


def integer_layer_kind(node: Node) -> LayerKind | None:
    """Like `layer_kind`, with an integer weight and a scale per channel for convolutions and linear layers.

    Embeddings store the bytes of their rows.
    """
    kind = layer_kind(node)
    if isinstance(node.op, Embedding):
        return integer_embedding(node) or kind
    if kind is None or not isinstance(node.op, Conv | Linear):
        return kind
    scales = channel_scales(node.operand("weight").type)
    if scales is None:
        return kind
    constructor = kind.constructor.replace("nn.", "Quantized", 1)
    return replace(kind, constructor=constructor, state={"weight_scale": scales}, integers=("weight",))


def integer_embedding(node: Node) -> LayerKind | None:
    """A table of integers of at most 8 bits with one scale, whose rows are moved unchanged."""
    weight = node.operand("weight").type
    encoding = weight.quantization
    if encoding is None or encoding.bits > 8 or encoding.levels or len(encoding.scale) > 1:
        return None
    if encoding.axis is not None or len(encoding.zero_point) > 1:
        return None
    grid = literal((encoding.scale[0], encoding.zero_point[0]))
    constructor = f"QuantizedEmbedding({', '.join(map(str, weight.shape))}, grid={grid})"
    return LayerKind(constructor, {"weight": "weight"}, integers=("weight",), is_whole=True)


def channel_scales(weight: TensorType) -> Tensor | None:
    """A scale for each output channel of an integer weight of at most 8 bits; None for any other."""
    quantization = weight.quantization
    if quantization is None or quantization.bits > 8 or quantization.levels or not quantization.is_symmetric:
        return None
    if quantization.group_size is not None or quantization.axis not in (None, 0):
        return None
    return quantization.scale.tensor(torch.float32).expand(weight.shape[0]).clone()


def _stateless(node: Node) -> str | None:
    match node.op:
        case Relu():
            return "nn.ReLU()"
        case Clamp(low=0.0, high=6.0):
            return "nn.ReLU6()"
        case LeakyRelu(slope=slope):
            return construct("nn.LeakyReLU", slope)
        case Hardswish():
            return "nn.Hardswish()"
        case Hardsigmoid():
            return "nn.Hardsigmoid()"
        case Sigmoid():
            return "nn.Sigmoid()"
        case Tanh():
            return "nn.Tanh()"
        case Silu():
            return "nn.SiLU()"
        case Gelu(approximate=approximate):
            return construct("nn.GELU", **given(approximate=(approximate, "none")))
        case MaxPool() | AvgPool() as pool:
            return _pool(pool)
        case _:
            return None


def _convolution(op: Conv | ConvTranspose, node: Node) -> LayerKind | None:
    if op.rank not in (1, 2, 3):
        return None
    weight, transposed = node.operand("weight").type, isinstance(op, ConvTranspose)
    first, second = weight.shape[:2]
    channels = (first, second * op.groups) if transposed else (second * op.groups, first)
    padding, pad = symmetric_padding(op.padding)
    if transposed and pad:
        return None
    zeros, ones = (0,) * op.rank, (1,) * op.rank
    arguments = given(stride=(op.stride, ones), padding=(padding, zeros))
    if isinstance(op, ConvTranspose):
        arguments |= given(output_padding=(op.output_padding, zeros))
    arguments |= given(groups=(op.groups, 1), dilation=(op.dilation, ones))
    name = f"nn.Conv{'Transpose' if transposed else ''}{op.rank}d"
    constructor = construct(name, *channels, weight.shape[2:], **arguments, **_bias(node), **_dtype(weight))
    return LayerKind(constructor, layer_parameters(node), pad=pad)


def _batch_norm(op: BatchNorm, node: Node) -> LayerKind | None:
    x, affine = node.operand("x").type, [node.optional(name) is not None for name in ("weight", "bias")]
    dimensions = {2: "1", 3: "1", 4: "2", 5: "3"}
    if x.rank not in dimensions or affine[0] != affine[1]:
        return None
    mean = node.operand("mean").type
    arguments = given(eps=(op.eps, 1e-5), affine=(affine[0], True)) | _dtype(mean)
    return LayerKind(
        construct(f"nn.BatchNorm{dimensions[x.rank]}d", *mean.shape, **arguments),
        {"weight": "weight", "bias": "bias"} if affine[0] else {},
        {"running_mean": "mean", "running_var": "var"},
        {"num_batches_tracked": torch.zeros((), dtype=torch.int64)},
    )


def _norm(op: LayerNorm | RmsNorm | GroupNorm, node: Node) -> LayerKind | None:
    weight, bias = node.optional("weight"), node.optional("bias")
    if weight is None or (bias is None and isinstance(op, GroupNorm)):
        return None
    if not isinstance(op, GroupNorm) and (op.axes or op.root_eps):
        return None
    dtype = _dtype(weight.type)
    parameters = {"weight": "weight"} | ({} if bias is None else {"bias": "bias"})
    match op:
        case LayerNorm():
            arguments = given(eps=(op.eps, 1e-5), bias=(bias is not None, True)) | dtype
            return LayerKind(construct("nn.LayerNorm", list(op.shape), **arguments), parameters)
        case RmsNorm():
            arguments = {} if op.eps is None else {"eps": op.eps}
            return LayerKind(construct("nn.RMSNorm", list(op.shape), **arguments, **dtype), parameters)
        case GroupNorm():
            arguments = given(eps=(op.eps, 1e-5)) | dtype
            return LayerKind(
                construct("nn.GroupNorm", op.groups, *weight.type.shape, **arguments), parameters
            )


def _pool(op: MaxPool | AvgPool) -> str | None:
    rank = len(op.kernel)
    padding, pad = symmetric_padding(op.padding)
    if pad or rank not in (1, 2, 3):
        return None
    arguments = given(stride=(op.stride, op.kernel), padding=(padding, (0,) * rank))
    arguments |= given(ceil_mode=(op.ceil, False))
    if isinstance(op, MaxPool):
        arguments |= given(dilation=(op.dilation, (1,) * rank))
        return construct(f"nn.MaxPool{rank}d", op.kernel, **arguments)
    if op.divisor is not None:
        return None
    arguments |= given(count_include_pad=(op.count_padding, True))
    return construct(f"nn.AvgPool{rank}d", op.kernel, **arguments)


def layer_parameters(node: Node) -> dict[str, str]:
    """The operand of each tensor of a convolution or linear layer."""
    return {"weight": "weight"} | ({} if node.optional("bias") is None else {"bias": "bias"})


def _bias(node: Node) -> dict[str, Argument]:
    return given(bias=(node.optional("bias") is not None, True))


def _dtype(type: TensorType) -> dict[str, Argument]:
    return {} if type.real().dtype is DType.F32 else {"dtype": str(type.dtype.torch)}


def symmetric_padding(padding: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The module's own padding, and the padding by `F.pad` before it if both sides differ."""
    both = pairs(padding)
    if all(before == after for before, after in both):
        return tuple(before for before, _ in both), ()
    return (0,) * len(both), tuple(n for pair in reversed(both) for n in pair)


def given(**arguments: tuple[Argument, Argument]) -> dict[str, Argument]:
    """The arguments that differ from their defaults, from pairs of value and default."""
    return {name: value for name, (value, default) in arguments.items() if value != default}


def construct(name: str, *positional: Argument, **keywords: Argument) -> str:
    """Source of a constructor call."""
    texts = [_text(value) for value in positional]
    texts += [f"{key}={value if key == 'dtype' else _text(value)}" for key, value in keywords.items()]
    return f"{name}({', '.join(texts)})"


def _text(value: Argument) -> str:
    """Source of an argument; equal sizes for all dimensions are written once."""
    if isinstance(value, tuple) and len(set(value)) == 1:
        return literal(value[0])
    return literal(value)
