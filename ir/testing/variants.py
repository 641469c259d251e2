"""Variants of a graph that mean the same but look different. A rewrite must treat them alike."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..builder import Builder, rewrite
from ..element_type import DType
from ..graph import Graph, Node
from ..ops.activation import Relu
from ..ops.binary import Add, Mul
from ..ops.shape import Permute, Reshape
from ..tensor_type import Value


def renamed(graph: Graph, rename: Callable[[str], str]) -> Graph:
    """`graph` with other names for all values but its inputs; output names are kept."""
    kept = {v.name for v in graph.inputs}

    def value(old: Value) -> Value:
        return old if old.name in kept else Value(rename(old.name), old.type)

    nodes = tuple(node.with_values(value) for node in graph.nodes)
    outputs = tuple(value(v) for v in graph.outputs)
    return Graph(graph.inputs, outputs, nodes, graph.params.renamed(rename), graph.output_names)


def canonical(graph: Graph) -> Graph:
    """`graph` with names by position, without unread constants and sources, for comparison."""
    names: dict[str, str] = {}
    for value in (*graph.constants, *graph.results):
        names.setdefault(value.name, f"#{len(names)}")
    used = {v.name for v in graph.constants}
    bare = Graph(
        graph.inputs,
        graph.outputs,
        tuple(Node(node.op, node.inputs, node.outputs) for node in graph.nodes),
        graph.params.only(used),
        graph.output_names,
    )
    return renamed(bare, lambda name: names.get(name, name))


def exposed(graph: Graph) -> Graph:
    """`graph` with every intermediate as a further output, after its own."""
    names = (*graph.output_names, *(f"intermediate {v.name}" for v in graph.results))
    return Graph(graph.inputs, (*graph.outputs, *graph.results), graph.nodes, graph.params, names)


def with_dead_branches(graph: Graph) -> Graph:
    """`graph` with a ReLU after every float value without readers."""
    nodes: list[Node] = []
    for node in graph.nodes:
        nodes.append(node)
        for value in node.outputs:
            if value.type.dtype.is_floating:
                nodes.append(Node(Relu(), (value,), (Value(f"dead {value.name}", value.type),)))
    return Graph(graph.inputs, graph.outputs, tuple(nodes), graph.params, graph.output_names)


def with_no_ops(graph: Graph) -> Graph:
    """`graph` with no-ops after its nodes: x + 0, x * 1, a double transpose, a reshape."""
    count = 0

    def visit(
        builder: Builder, node: Node, operands: tuple[Value | None, ...]
    ) -> Value | tuple[Value, ...] | None:
        nonlocal count
        results = builder.keep(node, operands)
        if len(results) != 1 or results[0].type.dtype is not DType.F32:
            return results
        count += 1
        return _INSERTIONS[count % len(_INSERTIONS)](builder, results[0])

    return rewrite(graph, visit)


def _add_zero(builder: Builder, x: Value) -> Value:
    return builder.add(Add(), x, builder.constant("zero", torch.zeros(())))


def _multiply_by_one(builder: Builder, x: Value) -> Value:
    return builder.add(Mul(), x, builder.constant("one", torch.ones(())))


def _transpose_twice(builder: Builder, x: Value) -> Value:
    order = tuple(reversed(range(x.type.rank)))
    return builder.add(Permute(order), builder.add(Permute(order), x))


def _reshape_to_itself(builder: Builder, x: Value) -> Value:
    return builder.add(Reshape(x.type.shape), x)


_INSERTIONS = (_add_zero, _multiply_by_one, _transpose_twice, _reshape_to_itself)
