"""Convolutions before a smaller map or a mean, computed in parts of their channels.

    pool(conv(x, W)) = [pool(conv(x, W_1)), pool(conv(x, W_2)), ...],    W = [W_1; W_2; ...]

Functions, pooling and means compute each channel by itself, so that only one part of the large map is in memory at a
time; every weight is read once, and nothing is computed twice. The map before the mean over all positions is the
largest of many image networks once their first layers compute some rows at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ....ir import Builder, Graph, Node, Op, Value, rewrite
from ....ir.ops.activation import Elementwise
from ....ir.ops.conv import Conv
from ....ir.ops.pool import Averaging, MaxPool
from ....ir.ops.reduce import Reduction
from ....ir.ops.shape import Reshape
from ....ir.ops.slicing import Concat

_TOGETHER = 4
"""Output channels that kernels compute at a time: parts have a multiple of them."""
_SMALLER = 2
"""The map must become smaller by this factor."""


@dataclass(frozen=True)
class _Chain:
    """A convolution, and the nodes after it up to the first with the smallest result."""

    conv: Node
    following: tuple[Node, ...]


def in_channel_parts(graph: Graph, parts: int, least_bytes: int) -> tuple[Graph, tuple[str, ...]]:
    """The graph with convolutions of results of at least `least_bytes` in parts, and the names of these layers."""
    found = [
        chain
        for node in graph.nodes
        if node.op.name == "conv" and node.output.type.storage_bytes >= least_bytes
        if (chain := _chain(graph, node, parts)) is not None
    ]
    last = {chain.following[-1].output.name: chain for chain in found}
    operands_of: dict[str, tuple[Value | None, ...]] = {chain.conv.output.name: () for chain in found}

    def visit(builder: Builder, node: Node, operands: tuple[Value | None, ...]) -> tuple[Value, ...] | None:
        name = node.output.name
        if name in operands_of:
            operands_of[name] = operands
        if name not in last:
            return None
        chain = last[name]
        return (_joined(graph, builder, chain, operands_of[chain.conv.output.name], parts),)

    names = tuple(chain.conv.source.module or chain.conv.output.name for chain in found)
    return (rewrite(graph, visit) if found else graph), names


def _chain(graph: Graph, conv: Node, parts: int) -> _Chain | None:
    """The chain that begins with a convolution; None if it cannot run in parts, or nothing becomes smaller."""
    constants = [conv.operand("weight"), conv.op.optional(conv.inputs, "bias")]
    shape = conv.output.type.shape
    is_plain = isinstance(conv.op, Conv) and conv.op.groups == 1 and shape[0] == 1
    is_cut = all(value is None or _is_cut_by_channel(graph, value) for value in constants)
    if not is_plain or not is_cut or conv.op.optional(conv.inputs, "residual") is not None:
        return None
    outputs = {value.name for value in graph.outputs}
    following: list[Node] = []
    value = conv.output
    while value.name not in outputs and len(readers := graph.users[value.name]) == 1:
        if not _computes_each_channel(readers[0]):
            break
        following.append(readers[0])
        value = readers[0].output
    sizes = [node.output.type.storage_bytes for node in following]
    least = min(sizes, default=conv.output.type.storage_bytes)
    if _SMALLER * least > conv.output.type.storage_bytes or shape[1] < _TOGETHER * parts:
        return None
    return _Chain(conv, tuple(following[: sizes.index(least) + 1]))


def _computes_each_channel(node: Node) -> bool:
    """True if each channel [1, c, ...] of the result is computed from this channel of the only operand."""
    if (
        not isinstance(node.op, Elementwise | MaxPool | Averaging | Reduction | Reshape)
        or len(node.operands) != 1
    ):
        return False
    before, after = node.operand("x").type, node.output.type
    if before.shape[:2] != after.shape[:2]:
        return False
    return not isinstance(node.op, Reduction) or min(node.op.reduced(before)) > 1


def _is_cut_by_channel(graph: Graph, value: Value) -> bool:
    """True for a constant of which some output channels have an encoding."""
    encoding = value.type.quantization
    if not graph.is_constant(value):
        return False
    return encoding is None or (encoding.axis in (None, 0) and encoding.group_size is None)


def _joined(
    graph: Graph, builder: Builder, chain: _Chain, operands: Sequence[Value | None], parts: int
) -> Value:
    """The results of all parts, one after the other."""
    conv, last = chain.conv, chain.following[-1]
    channels = conv.output.type.shape[1]
    size = -(-channels // (parts * _TOGETHER)) * _TOGETHER
    results: list[Value] = []
    for chosen in torch.arange(channels).split(size):
        constants = (conv.operand("weight"), conv.op.optional(conv.inputs, "bias"))
        cut = [None if value is None else _part(graph, builder, value, chosen) for value in constants]
        part = _appended(builder, conv, conv.op, [conv.op.operand(operands, "x"), *cut], len(chosen))
        for node in chain.following:
            op = node.op
            if isinstance(op, Reshape):
                op = replace(op, shape=(op.shape[0], len(chosen), *op.shape[2:]))
            part = _appended(builder, node, op, [part], len(chosen))
        results.append(part)
    name, type = last.output.name, last.output.type
    return builder.append(Concat(1), results, (type,), names=(name,), source=last.source)[0]


def _appended(builder: Builder, node: Node, op: Op, operands: Sequence[Value | None], channels: int) -> Value:
    type = node.output.type
    result = type.with_shape((type.shape[0], channels, *type.shape[2:]))
    return builder.append(op, operands, (result,), source=node.source)[0]


def _part(graph: Graph, builder: Builder, value: Value, channels: Tensor) -> Value:
    """Rows of a constant; its encoding is that of these channels."""
    encoding = value.type.quantization
    tensor = graph.tensor(value).index_select(0, channels)
    own = None if encoding is None else encoding.of_channels(channels)
    return builder.constant(value.name, tensor, quantization=own)
