"""Common view of layers with weights for passes that rewrite them: the axis of output channels."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TypeGuard

from torch import Tensor

from ..ir import Graph, Node, Op, Source, TensorType, Value
from ..ir.ops.accumulate import Clamp
from ..ir.ops.binary import Add, Binary, Mul, Sub
from ..ir.ops.conv import Conv, ConvTranspose
from ..ir.ops.linear import Linear

Layer = Conv | ConvTranspose | Linear
LAYERS: tuple[type[Op], ...] = (Conv, ConvTranspose, Linear)
Clamped = Conv | ConvTranspose | Linear | Binary
CLAMPED: tuple[type[Op], ...] = (Conv, ConvTranspose, Linear, Add, Sub, Mul)


def is_layer(op: Op) -> TypeGuard[Layer]:
    """True for convolution, transposed convolution and linear layer."""
    return isinstance(op, LAYERS)


def is_depthwise(op: Op, weight_shape: tuple[int, ...]) -> bool:
    """True for a convolution in which each output channel reads one input channel."""
    return isinstance(op, Conv) and op.groups > 1 and weight_shape[1] == 1


def constants_read(
    graph: Graph, read: Callable[[Node], Iterable[Value]], is_kept: Callable[[Source], bool]
) -> dict[str, tuple[Node, Value]]:
    """The constants among what `read` says of each node, by name, with the first node that reads each.

    What a kept node reads is left out, also where others share it.
    """
    found: dict[str, tuple[Node, Value]] = {}
    kept: set[str] = set()
    for node in graph.nodes:
        constants = [value for value in read(node) if graph.is_constant(value)]
        for value in constants:
            found.setdefault(value.name, (node, value))
        if is_kept(node.source):
            kept.update(value.name for value in constants)
    return {name: reader for name, reader in found.items() if name not in kept}


def bias_name(weight_name: str) -> str:
    """Name for the bias of a layer that had none: `conv.bias` beside `conv.weight`."""
    stem = weight_name.removesuffix("weight")
    return f"{stem}bias" if stem != weight_name else f"{weight_name}_bias"


def clamp_of(op: Op) -> Clamp:
    """The fused clamp of an operator that can have one."""
    assert isinstance(op, Clamped)
    return op.clamp


def with_clamp(op: Op, clamp: Clamp) -> Op:
    """The operator with another fused clamp."""
    assert isinstance(op, Clamped)
    return replace(op, clamp=clamp)


def output_channels(op: Layer, weight: Tensor) -> int:
    """Number of output channels of a layer with this weight."""
    return weight.shape[1] * op.groups if isinstance(op, ConvTranspose) else weight.shape[0]


def scale_outputs(op: Layer, weight: Tensor, factor: Tensor) -> Tensor:
    """The weight with output channel i multiplied by `factor[i]`."""
    if isinstance(op, ConvTranspose):
        return _scale_second(weight, factor, op.groups)
    return weight * factor.view(-1, *[1] * (weight.ndim - 1))


def scale_inputs(op: Conv | Linear, weight: Tensor, factor: Tensor) -> Tensor:
    """The weight with the taps of input channel i multiplied by `factor[i]`."""
    return _scale_second(weight, factor, op.groups if isinstance(op, Conv) else 1)


def _scale_second(weight: Tensor, factor: Tensor, groups: int) -> Tensor:
    """`weight` [groups * a, b, ...] times `factor` [groups * b]."""
    grouped = weight.reshape(groups, -1, *weight.shape[1:])
    along = factor.view(groups, 1, -1, *[1] * (weight.ndim - 2))
    return (grouped * along).reshape(weight.shape)


def channel_axis(op: Layer, type: TensorType) -> int:
    """Dimension of a layer's operand and result along which channels lie."""
    return type.rank - 1 if isinstance(op, Linear) else 1


def channel_taps(op: Layer, weight: Tensor) -> Tensor:
    """The weight as [groups, out / groups, in / groups, taps]."""
    groups = 1 if isinstance(op, Linear) else op.groups
    taps = weight.reshape(groups, -1, weight.shape[1], weight[0, 0].numel())
    return taps.transpose(1, 2) if isinstance(op, ConvTranspose) else taps


def apply_to_channels(taps: Tensor, channels: Tensor) -> Tensor:
    """Contribution of one number per input channel, for tap sums [groups, out / groups, in / groups]."""
    return (taps * channels.view(taps.shape[0], 1, -1)).sum(-1).flatten()
