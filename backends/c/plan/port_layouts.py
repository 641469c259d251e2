"""The order in which the caller of the emitted function stores inputs and outputs, from `outputs.c.layouts`.

    nhwc     the model's dimension 1, the channels, last: for ports of four dimensions
    nchw     the model's order, of a model whose images have their channels first
    ntc      the model's dimension 1, the channels, last: for ports of three dimensions
    model    the model's order

A port without an entry is stored in the model's order, except that images are stored channels last. A port is an image
if it has four dimensions, unless the model itself moves the last dimension of an input to the channels, or the
channels of an output to the last dimension: such a port is an image that is already channels last.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import networkx as nx

from ....ir import Graph, Node, Op, Value, Vertex, digraph
from ....ir.ops.activation import Elementwise
from ....ir.ops.binary import Binary
from ....ir.ops.convert import Cast
from ....ir.ops.embedding import Take
from ....ir.ops.pad import Pad
from ....ir.ops.prelu import Prelu
from ....ir.ops.quantize import Dequantize, OffsetBinary, Quantize, Requantize
from ....ir.ops.reorder import Flip, Roll
from ....ir.ops.shape import Copy, Permute
from ....ir.ops.slicing import Concat, Slice, Split
from ....ir.ops.softmax import LogSoftmax, Softmax
from .layout import Layout, channels_last, contiguous

IMAGE_RANK, SEQUENCE_RANK = 4, 3
_CHANNELS, _LAST = 1, 3
_Words = Mapping[str, str]

# dimension i of the result is dimension i of each operand with as many dimensions
_KEEPING_DIMENSIONS: tuple[type[Op], ...] = (
    Elementwise, Binary, Cast, Quantize, Dequantize, Requantize, OffsetBinary, Copy, Slice, Split, Concat, Pad, Flip,
    Roll, Take, Prelu, Softmax, LogSoftmax,
)  # fmt: skip
_OF_IMAGES = frozenset(
    {"conv", "conv_transpose", "max_pool", "avg_pool", "adaptive_avg_pool", "batch_norm", "group_norm"}
    | {"instance_norm", "resize_nearest", "resize_linear"}
)


def input_layouts(graph: Graph, words: _Words) -> tuple[Layout, ...]:
    """Layouts of the graph's inputs."""
    return tuple(_layout(v, words.get(v.name), _takes_channels_last(graph, v)) for v in graph.inputs)


def output_layouts(graph: Graph, words: _Words) -> tuple[Layout, ...]:
    """Layouts of the graph's outputs."""
    named = zip(graph.output_names, graph.outputs, strict=True)
    return tuple(_layout(v, words.get(name), _gives_channels_last(graph, v)) for name, v in named)


def layout_notes(graph: Graph, words: _Words) -> Iterator[str]:
    """Notes on ports that are stored channels last although no layer of images reads an input or leads to an output."""
    ports = [("input", v.name, v, _leads_to_images(graph, v)) for v in graph.inputs]
    named = zip(graph.output_names, graph.outputs, strict=True)
    ports += [("output", name, v, _comes_from_images(graph, v)) for name, v in named]
    layouts = (*input_layouts(graph, words), *output_layouts(graph, words))
    for (role, name, value, is_image), layout in zip(ports, layouts, strict=True):
        if name not in words and not is_image and layout != contiguous(value.type.shape):
            n, c, h, w = value.type.shape
            yield (
                f"{role} {name}: C stores the model's {[n, c, h, w]} channels last, as {[n, h, w, c]}, but it belongs"
                f" to no layer of images; `outputs.c.layouts: {{{name}: model}}` keeps the model's order"
            )


def _leads_to_images(graph: Graph, value: Value) -> bool:
    return _has_images(graph, nx.descendants(digraph(graph), value.name))


def _comes_from_images(graph: Graph, value: Value) -> bool:
    return _has_images(graph, nx.ancestors(digraph(graph), value.name))


def _has_images(graph: Graph, vertices: Iterable[Vertex]) -> bool:
    return any(isinstance(v, int) and graph.nodes[v].op.name in _OF_IMAGES for v in vertices)


def _layout(value: Value, word: str | None, is_channels_last: bool) -> Layout:
    if value.type.rank == SEQUENCE_RANK and word == "ntc":
        return channels_last(value.type.shape)
    if value.type.rank != IMAGE_RANK or word in ("nchw", "model") or (word is None and is_channels_last):
        return contiguous(value.type.shape)
    return channels_last(value.type.shape)


def _takes_channels_last(graph: Graph, value: Value) -> bool:
    """True if all readers of an input have its last dimension as channels."""
    todo, seen = [(value, _LAST)], set()
    while todo:
        at, place = todo.pop()
        if place == _CHANNELS or (at, place) in seen:
            continue
        seen.add((at, place))
        readers = graph.users.get(at.name, ())
        if len(readers) < graph.use_count(at) or not readers or not all(map(_keeps_dimensions, readers)):
            return False
        for node in readers:
            moved = node.op.order.index(place) if isinstance(node.op, Permute) else place
            todo += [(result, moved) for result in node.outputs]
    return True


def _gives_channels_last(graph: Graph, value: Value) -> bool:
    """True if the last dimension of an output is the channels of all values that it is computed from."""
    todo, seen = [(value, _LAST)], set()
    while todo:
        at, place = todo.pop()
        if place == _CHANNELS or (at, place) in seen:
            continue
        seen.add((at, place))
        node = graph.producers.get(at.name)
        if node is None or not _keeps_dimensions(node):
            return False
        origin = node.op.order[place] if isinstance(node.op, Permute) else place
        operands = [v for v in node.operands if not graph.is_constant(v)]
        todo += [(v, origin) for v in operands if v.type.rank == IMAGE_RANK]
    return True


def _keeps_dimensions(node: Node) -> bool:
    """True if the node permutes, or keeps each dimension in its place."""
    of_images = all(v.type.rank == IMAGE_RANK for v in node.outputs)
    return of_images and isinstance(node.op, (Permute, *_KEEPING_DIMENSIONS))
