"""Preparation of a graph before kernel selection: copies avoided by renumbered weights, equal constants merged."""

from __future__ import annotations

from dataclasses import replace

import torch

from ....ir import Graph, Node, Params, TensorType, Value, rewrite
from ....ir.builder import Content, content
from ....ir.ops.linear import Linear
from ....ir.ops.shape import Permute, Reshape

_IMAGE_RANK = 4
_IMAGE_OPERATORS = frozenset({"conv", "conv_transpose", "max_pool", "avg_pool", "adaptive_avg_pool"})


def _without_dead_nodes(graph: Graph) -> Graph:
    return rewrite(graph, lambda builder, node, operands: None)


def renumber_flattened(graph: Graph) -> Graph:
    """Linear layers on a flattened image read its elements channels last, in the order of the memory.

    flatten(x) W = flatten(channels_last(x)) W', where W' has its columns in the other order, so nothing is copied.
    """
    nodes: list[Node] = []
    params = dict(graph.params)
    for node in graph.nodes:
        image = _flattened_image(graph, node)
        if image is None:
            nodes.append(node)
        else:
            nodes += _reading_channels_last(node, image, params)
    return _without_dead_nodes(replace(graph, nodes=tuple(nodes), params=Params(params)))


def join_equal_constants(graph: Graph) -> Graph:
    """Merges constants of one type with the same elements, so that shared weights are visible to kernels."""
    first: dict[tuple[TensorType, Content], Value] = {}
    joined: dict[str, Value] = {}
    for value in graph.constants:
        joined[value.name] = first.setdefault((value.type, content(graph.tensor(value))), value)
    nodes = tuple(node.with_values(lambda value: joined.get(value.name, value)) for node in graph.nodes)
    return replace(graph, nodes=nodes)


def _flattened_image(graph: Graph, node: Node) -> Value | None:
    """The image [n, c, spatial...] whose flattened elements a linear layer with constant weight reads."""
    if not isinstance(node.op, Linear) or not graph.is_constant(node.operand("weight")):
        return None
    rows, weight = node.operand("x"), node.operand("weight")
    flatten = graph.producers.get(rows.name)
    if flatten is None or not isinstance(flatten.op, Reshape) or rows.type.rank not in (1, 2):
        return None
    batch = rows.type.shape[0] if rows.type.rank == 2 else 1
    image = flatten.operand("x")
    grouped = weight.type.quantization is not None and weight.type.quantization.group_size is not None
    flat = image.type.rank > 2 and image.type.shape[0] == batch
    if not flat or grouped or image.type.numel == image.type.shape[0] * image.type.shape[1]:
        return None
    return image if image.type.rank == _IMAGE_RANK or _is_channels_last(graph, image) else None


def _is_channels_last(graph: Graph, value: Value) -> bool:
    producer = graph.producers.get(value.name)
    return producer is not None and producer.op.name in _IMAGE_OPERATORS


def _reading_channels_last(
    node: Node, image: Value, params: dict[str, torch.Tensor]
) -> tuple[Node, Node, Node]:
    rows, weight = node.operand("x"), node.operand("weight")
    order = (0, *range(2, image.type.rank), 1)
    permute = Permute(order)
    moved = Value(f"{node.output.name}@permuted", permute.infer(image.type)[0])
    reshape = Reshape(rows.type.shape)
    flat = Value(f"{node.output.name}@rows", reshape.infer(moved.type)[0])
    renumbered = Value(f"{node.output.name}@weight", weight.type)
    columns = params[weight.name].reshape(-1, *image.type.shape[1:])
    params[renumbered.name] = columns.permute(order).reshape(weight.type.shape).contiguous()
    return (
        Node(permute, (image,), (moved,), node.source),
        Node(reshape, (moved,), (flat,), node.source),
        node.with_operands(x=flat, weight=renumbered),
    )
