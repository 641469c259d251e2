"""Which operators are written as submodules of `torch.nn`, and how these are constructed and called.

Everything else is written as a torch expression, had from the operator's reference (`record.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ...ir import DType, Node, TensorType
from ...ir.ops.activation import Clamp, Gelu, Hardsigmoid, Hardswish, LeakyRelu, Relu, Sigmoid, Silu, Tanh
from ...ir.ops.conv import Conv, ConvTranspose, pairs
from ...ir.ops.embedding import Embedding
from ...ir.ops.linear import Linear
from ...ir.ops.norm import BatchNorm, GroupNorm, LayerNorm, RmsNorm
from ...ir.ops.pool import AvgPool, MaxPool
from ...ir.ops.prelu import Prelu
from .record import literal

Argument = int | float | bool | str | tuple[int, ...] | list[int]


@dataclass(frozen=True, slots=True)
class LayerKind:
    """A submodule that computes a node: what constructs it, and which operand each of its tensors is.

    The submodule is called on operand 0, padded by `pad` where its own padding cannot say it. `statistics` are
    tensors that are not trained; `counters` are entries of its state that the graph does not hold, all zero.
    """

    constructor: str
    parameters: Mapping[str, int] = field(default_factory=dict)
    statistics: Mapping[str, int] = field(default_factory=dict)
    counters: tuple[str, ...] = ()
    pad: tuple[int, ...] = ()

    @property
    def tensors(self) -> dict[str, int]:
        """Operand index of each of the submodule's tensors, by attribute."""
        return {**self.parameters, **self.statistics}


def layer_kind(node: Node) -> LayerKind | None:
    """The submodule that computes `node` up to a fused residual and clamp; None where `torch.nn` has none."""
    op = node.op
    match op:
        case Conv() | ConvTranspose():
            return _convolution(op, node)
        case Linear():
            weight = _type(node, 1)
            return LayerKind(
                _construct("nn.Linear", *reversed(weight.shape), **_bias(node), **_dtype(weight)),
                _parameters(node),
            )
        case BatchNorm():
            return _batch_norm(op, node)
        case LayerNorm() | RmsNorm() | GroupNorm():
            return _norm(op, node)
        case Embedding():
            weight = _type(node, 1)
            return LayerKind(_construct("nn.Embedding", *weight.shape, **_dtype(weight)), {"weight": 1})
        case Prelu():
            slope = _type(node, 1)
            return LayerKind(_construct("nn.PReLU", slope.numel, **_dtype(slope)), {"weight": 1})
        case _:
            constructor = _stateless(node)
            return None if constructor is None else LayerKind(constructor)


def _stateless(node: Node) -> str | None:
    match node.op:
        case Relu():
            return "nn.ReLU()"
        case Clamp(low=0.0, high=6.0):
            return "nn.ReLU6()"
        case LeakyRelu(slope=slope):
            return _construct("nn.LeakyReLU", slope)
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
            return _construct("nn.GELU", **_given(approximate=(approximate, "none")))
        case MaxPool() | AvgPool() as pool:
            return _pool(pool)
        case _:
            return None


def _convolution(op: Conv | ConvTranspose, node: Node) -> LayerKind | None:
    if op.rank not in (1, 2, 3):
        return None
    weight, transposed = _type(node, 1), isinstance(op, ConvTranspose)
    first, second = weight.shape[:2]
    channels = (first, second * op.groups) if transposed else (second * op.groups, first)
    padding, pad = _symmetric(op.padding)
    if transposed and pad:
        return None
    zeros, ones = (0,) * op.rank, (1,) * op.rank
    arguments = _given(stride=(op.stride, ones), padding=(padding, zeros))
    if isinstance(op, ConvTranspose):
        arguments |= _given(output_padding=(op.output_padding, zeros))
    arguments |= _given(groups=(op.groups, 1), dilation=(op.dilation, ones))
    name = f"nn.Conv{'Transpose' if transposed else ''}{op.rank}d"
    constructor = _construct(name, *channels, weight.shape[2:], **arguments, **_bias(node), **_dtype(weight))
    return LayerKind(constructor, _parameters(node), pad=pad)


def _batch_norm(op: BatchNorm, node: Node) -> LayerKind | None:
    x, affine = _type(node, 0), [node.operand(i) is not None for i in (1, 2)]
    dimensions = {2: "1", 3: "1", 4: "2", 5: "3"}
    if x.rank not in dimensions or affine[0] != affine[1]:
        return None
    mean = _type(node, 3)
    arguments = _given(eps=(op.eps, 1e-5), affine=(affine[0], True)) | _dtype(mean)
    return LayerKind(
        _construct(f"nn.BatchNorm{dimensions[x.rank]}d", *mean.shape, **arguments),
        {"weight": 1, "bias": 2} if affine[0] else {},
        {"running_mean": 3, "running_var": 4},
        ("num_batches_tracked",),
    )


def _norm(op: LayerNorm | RmsNorm | GroupNorm, node: Node) -> LayerKind | None:
    weight, bias = node.operand(1), node.operand(2)
    if weight is None or (bias is None and isinstance(op, GroupNorm)):
        return None
    dtype = _dtype(weight.type)
    parameters = {"weight": 1} if bias is None else {"weight": 1, "bias": 2}
    match op:
        case LayerNorm():
            arguments = _given(eps=(op.eps, 1e-5), bias=(bias is not None, True)) | dtype
            return LayerKind(_construct("nn.LayerNorm", list(op.shape), **arguments), parameters)
        case RmsNorm():
            arguments = {} if op.eps is None else {"eps": op.eps}
            return LayerKind(_construct("nn.RMSNorm", list(op.shape), **arguments, **dtype), parameters)
        case GroupNorm():
            arguments = _given(eps=(op.eps, 1e-5)) | dtype
            return LayerKind(
                _construct("nn.GroupNorm", op.groups, *weight.type.shape, **arguments), parameters
            )


def _pool(op: MaxPool | AvgPool) -> str | None:
    rank = len(op.kernel)
    padding, pad = _symmetric(op.padding)
    if pad or rank not in (1, 2, 3):
        return None
    arguments = _given(stride=(op.stride, op.kernel), padding=(padding, (0,) * rank))
    arguments |= _given(ceil_mode=(op.ceil, False))
    if isinstance(op, MaxPool):
        arguments |= _given(dilation=(op.dilation, (1,) * rank))
        return _construct(f"nn.MaxPool{rank}d", op.kernel, **arguments)
    if op.divisor is not None:
        return None
    arguments |= _given(count_include_pad=(op.count_padding, True))
    return _construct(f"nn.AvgPool{rank}d", op.kernel, **arguments)


def _parameters(node: Node) -> dict[str, int]:
    return {"weight": 1} if node.operand(2) is None else {"weight": 1, "bias": 2}


def _type(node: Node, index: int) -> TensorType:
    value = node.operand(index)
    assert value is not None
    return value.type


def _bias(node: Node) -> dict[str, Argument]:
    return _given(bias=(node.operand(2) is not None, True))


def _dtype(type: TensorType) -> dict[str, Argument]:
    return {} if type.real().dtype is DType.F32 else {"dtype": str(type.dtype.torch)}


def _symmetric(padding: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The module's own padding, and what `F.pad` must do before it where both sides differ."""
    both = pairs(padding)
    if all(before == after for before, after in both):
        return tuple(before for before, _ in both), ()
    return (0,) * len(both), tuple(n for pair in reversed(both) for n in pair)


def _given(**arguments: tuple[Argument, Argument]) -> dict[str, Argument]:
    """The arguments that differ from their defaults, from pairs of value and default."""
    return {name: value for name, (value, default) in arguments.items() if value != default}


def _construct(name: str, *positional: Argument, **keywords: Argument) -> str:
    texts = [_text(value) for value in positional]
    texts += [f"{key}={value if key == 'dtype' else _text(value)}" for key, value in keywords.items()]
    return f"{name}({', '.join(texts)})"


def _text(value: Argument) -> str:
    """Source of an argument; equal sizes for all dimensions are written once, as people do."""
    if isinstance(value, tuple) and len(set(value)) == 1:
        return literal(value[0])
    return literal(value)
