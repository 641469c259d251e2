"""Common view of layers with weights for passes that rewrite them: the axis of output channels."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TypeGuard

from torch import Tensor

from ..ir import Graph, Node, Op, Source, Value
from ..ir.ops.accumulate import Clamp
from ..ir.ops.binary import Add, Binary, Mul, Sub
from ..ir.ops.conv import Conv, ConvTranspose
from ..ir.ops.layer import Layer
from ..ir.ops.linear import Linear

Clamped = Conv | ConvTranspose | Linear | Binary
CLAMPED: tuple[type[Op], ...] = (Layer, Add, Sub, Mul)


def is_layer(op: Op) -> TypeGuard[Layer]:
    """True for convolution, transposed convolution and linear layer."""
    return isinstance(op, Layer)


def constants_read(
    graph: Graph, read: Callable[[Node], Iterable[Value]], is_kept: Callable[[Source], bool]
) -> dict[str, tuple[Node, Value]]:
    """The constants among the values `read(node)` of each node, by name, with the first node that reads each.

    Constants that a kept node reads are excluded, also if other nodes read them.
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
    """Name for the new bias of a layer: `conv.bias` for `conv.weight`."""
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


def apply_to_channels(taps: Tensor, channels: Tensor) -> Tensor:
    """Contribution of one number per input channel, for tap sums [groups, out / groups, in / groups]."""
    return (taps * channels.view(taps.shape[0], 1, -1)).sum(-1).flatten()
