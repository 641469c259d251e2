"""Convolutions before smaller maps or means, computed in parts of their channels.

    pool(conv(x, W)) = [pool(conv(x, W_1)), pool(conv(x, W_2)), ...],    W = [W_1; W_2; ...]

Functions, sums, pooling, means and depthwise convolutions compute each channel by itself, so that only one part of the
large maps is in memory at a time; every weight is read once, and nothing is computed twice. The map before the mean
over all positions is the largest of many image networks once their first layers compute some rows at a time.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from ....ir import Builder, Graph, Node, Op, Value, rewrite
from ....ir.ops.activation import Elementwise
from ....ir.ops.binary import Binary
from ....ir.ops.conv import Conv
from ....ir.ops.pool import Averaging, MaxPool
from ....ir.ops.prelu import Prelu
from ....ir.ops.reduce import Reduction
from ....ir.ops.shape import Reshape
from ....ir.ops.slicing import Concat

_TOGETHER = 4
"""Output channels that kernels compute at a time: parts have a multiple of them."""
_SMALLER = 8
"""All that is read afterwards is smaller than the largest map by this factor; else rows at a time take less time."""
_CHANNELS = 1
"""Axis of the channels of activations."""

_Nodes = Mapping[str, Node]
"""Nodes with one result, by its name."""


def in_channel_parts(graph: Graph, parts: int, least_bytes: int) -> tuple[Graph, tuple[str, ...]]:
    """The graph with convolutions of results of at least `least_bytes` in parts, and the names of these layers."""
    names: list[str] = []
    taken: set[str] = set()
    for conv in graph.nodes:
        is_large = conv.op.name == "conv" and conv.output.type.storage_bytes >= least_bytes
        if not is_large or conv.output.name in taken:
            continue
        nodes = _computed_together(graph, conv, parts)
        if nodes is None or nodes.keys() & taken:
            continue
        taken |= nodes.keys()
        names += [name for node in nodes.values() if (name := _layer(node))]
        graph = _split(graph, nodes, parts)
    return graph, tuple(dict.fromkeys(names))


def _layer(node: Node) -> str:
    """The name of a convolution; empty for other nodes."""
    return (node.source.module or node.output.name) if node.op.name == "conv" else ""


def _computed_together(graph: Graph, conv: Node, parts: int) -> _Nodes | None:
    """The nodes that compute parts of their channels with those of a convolution, in order; None if nothing becomes
    smaller.

    Each reads channels of the others, and may be a convolution of a whole map that needs none of them.
    """
    channels = conv.output.type.shape[_CHANNELS]
    found = _closed(graph, conv, {}, channels)
    if found is None or _needs_itself(graph, found) or channels < _TOGETHER * parts:
        return None
    left = list(found)
    while left:
        for reader in graph.users.get(left.pop(0), ()):
            more = _closed(graph, reader, found, channels)
            if more is not None and not _needs_itself(graph, {**found, **more}):
                left += [name for name in more if name not in found]
                found |= more
    found = _without_useless(graph, found)
    largest = max((node.output.type.storage_bytes for node in found.values()), default=0)
    if conv.output.name not in found or _SMALLER * _bytes(_read_outside(graph, found)) > largest:
        return None
    return {node.output.name: node for node in graph.nodes if node.outputs[0].name in found}


def _closed(graph: Graph, node: Node, found: _Nodes, channels: int) -> dict[str, Node] | None:
    """A node and all that it needs to compute channels of its result, beside `found`; None if that is impossible."""
    if not _computes_channels(graph, node, channels):
        return None
    needed = {node.output.name: node}
    for value in _read_in_parts(graph, node):
        if value.name in found or value.name in needed:
            continue
        producer = graph.producers.get(value.name)
        more = None if producer is None else _closed(graph, producer, {**found, **needed}, channels)
        if more is None:
            return None
        needed = more | needed
    return needed


def _computes_channels(graph: Graph, node: Node, channels: int) -> bool:
    """True if some channels of the result [1, c, ...] are computed from these channels of what is read in parts."""
    op, shape = node.op, node.outputs[0].type.shape
    if len(node.outputs) > 1 or len(shape) < 2 or shape[:2] != (1, channels):
        return False
    read = _read_in_parts(graph, node)
    if not read and _read_whole(node) is None:
        return False
    constants = [value for value in node.operands if graph.is_constant(value)]
    if any(value.type.shape[:2] != shape[:2] for value in read) or not all(
        _is_cut_by_channel(node, value) for value in constants
    ):
        return False
    if isinstance(op, Conv):
        return op.groups in (1, channels) and graph.is_constant(node.operand("weight"))
    if isinstance(op, Reduction):
        return min(op.reduced(read[0].type)) > _CHANNELS
    if isinstance(op, Binary):  # of equal rank, so that channels meet channels
        return all(len(value.type.shape) == len(shape) for value in read)
    return isinstance(op, Elementwise | Prelu | MaxPool | Averaging | Reshape)


def _read_whole(node: Node) -> Value | None:
    """The map of which a convolution needs all channels."""
    return node.operand("x") if isinstance(node.op, Conv) and node.op.groups == 1 else None


def _read_in_parts(graph: Graph, node: Node) -> list[Value]:
    """The activations of which it needs the channels that it computes."""
    first = 0 if _read_whole(node) is None else node.op.position("x") + 1
    return [value for value in node.inputs[first:] if value is not None and not graph.is_constant(value)]


def _channel_axis(node: Node, constant: Value) -> int | None:
    """The axis of a constant with the channels of the result; None if all channels read the same elements."""
    shape = constant.type.shape
    is_aligned = isinstance(node.op, Binary) or constant == node.optional("residual")
    axis = len(shape) - len(node.outputs[0].type.shape) + _CHANNELS if is_aligned else 0
    return axis if axis >= 0 and shape and shape[axis] > 1 else None


def _is_cut_by_channel(node: Node, constant: Value) -> bool:
    """True for a constant of which the elements of some channels have an encoding."""
    encoding, axis = constant.type.quantization, _channel_axis(node, constant)
    is_whole = encoding is None or encoding.axis is None or axis is None
    return is_whole or (encoding is not None and encoding.axis == axis == 0 and encoding.group_size is None)


def _needs_itself(graph: Graph, found: _Nodes) -> bool:
    """True if a convolution of a whole map needs the result of one of the nodes."""
    outside = [value for node in found.values() for value in node.operands if value.name not in found]
    left = [*outside, *(value for node in found.values() if (value := _read_whole(node)) is not None)]
    seen: set[str] = set()
    while left:
        value = left.pop()
        if value.name in found:
            return True
        producer = graph.producers.get(value.name)
        if value.name not in seen and producer is not None:
            left += producer.operands
        seen.add(value.name)
    return False


def _without_useless(graph: Graph, found: dict[str, Node]) -> dict[str, Node]:
    """Without the last nodes that make nothing smaller."""
    while True:
        read = {value.name for node in found.values() for value in node.operands}
        needed = _bytes(_read_outside(graph, found))
        for name in [name for name in found if name not in read]:
            others = {other: node for other, node in found.items() if other != name}
            if _bytes(_read_outside(graph, others)) <= needed:
                found = others
                break
        else:
            return found


def _read_outside(graph: Graph, found: _Nodes) -> Iterator[Value]:
    """Results of the nodes that others read, or the caller."""
    outputs = {value.name for value in graph.outputs}
    for name, node in found.items():
        readers = graph.users.get(name, ())
        if name in outputs or any(reader.outputs[0].name not in found for reader in readers):
            yield node.output


def _bytes(values: Iterable[Value]) -> int:
    return sum(value.type.storage_bytes for value in values)


def _split(graph: Graph, nodes: _Nodes, parts: int) -> Graph:
    """The graph with the nodes in parts: all nodes of a part before those of the next."""
    channels = next(iter(nodes.values())).output.type.shape[_CHANNELS]
    size = -(-channels // (parts * _TOGETHER)) * _TOGETHER
    chosen = torch.arange(channels).split(size)
    in_parts: dict[str, list[Value]] = {}

    def visit(builder: Builder, node: Node, operands: tuple[Value | None, ...]) -> Value | None:
        name = node.outputs[0].name
        if name not in nodes:
            return None
        in_parts[name], read_in_parts = [], _read_in_parts(graph, node)
        for number, some in enumerate(chosen):
            read = [
                _cut(graph, builder, node, value, some)
                if graph.is_constant(value)
                else (in_parts[value.name][number] if value in read_in_parts else new)
                for value, new in zip(node.inputs, operands, strict=True)
            ]
            type = node.output.type.with_shape((1, len(some), *node.output.type.shape[2:]))
            names = (f"{name}_part_{number + 1}_of_{len(chosen)}",)
            op = _part_of(node.op, len(some))
            in_parts[name] += builder.append(op, read, (type,), names=names, source=node.source)
        return builder.append(
            Concat(_CHANNELS), in_parts[name], (node.output.type,), names=(name,), source=node.source
        )[0]

    split = rewrite(graph, visit)
    part_of = {value.name: number for values in in_parts.values() for number, value in enumerate(values)}
    order: list[list[Node]] = [[] for _ in range(len(chosen) + 2)]
    later: set[str] = set()
    for node in split.nodes:
        number = part_of.get(node.outputs[0].name)
        is_later = number is None and any(v.name in later or v.name in part_of for v in node.operands)
        later |= {value.name for value in node.outputs} if is_later else set()
        order[-1 if is_later else 0 if number is None else number + 1].append(node)
    return replace(split, nodes=tuple(node for group in order for node in group))


def _part_of(op: Op, channels: int) -> Op:
    """The operator on some channels."""
    if isinstance(op, Reshape):
        return replace(op, shape=(1, channels, *op.shape[2:]))
    return replace(op, groups=channels) if isinstance(op, Conv) and op.groups > 1 else op


def _cut(graph: Graph, builder: Builder, node: Node, value: Value | None, channels: Tensor) -> Value:
    """Elements of a constant for some channels; its encoding is that of these channels."""
    assert value is not None
    encoding, axis = value.type.quantization, _channel_axis(node, value)
    if axis is None:
        return value
    own = encoding if encoding is None or encoding.axis is None else encoding.of_channels(channels)
    return builder.constant(value.name, graph.tensor(value).index_select(axis, channels), quantization=own)
