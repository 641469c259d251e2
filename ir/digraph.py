"""Conversion of a graph to networkx, for custom analyses."""

from __future__ import annotations

from typing import TypeAlias

import networkx as nx

from .graph import Graph, check_graph

Vertex: TypeAlias = str | int
"""A value by its name, or a node by its index in the graph."""


def digraph(graph: Graph) -> nx.DiGraph[Vertex]:
    """Values and nodes with an edge from each operand to its node, and from each node to its results.

    A vertex that is a text is the value of that name, with the attributes `value` and `constant`; a whole number is the
    index of a node, with the attribute `node`. Edges have `places`: the positions among the node's inputs or outputs.
    """
    check_graph(graph, "digraph(graph)")
    found: nx.DiGraph[Vertex] = nx.DiGraph()
    for value in (*graph.inputs, *graph.constants, *graph.results):
        found.add_node(value.name, value=value, constant=graph.is_constant(value))
    for index, node in enumerate(graph.nodes):
        found.add_node(index, node=node)
        for place, operand in enumerate(node.inputs):
            if operand is not None:
                _connect(found, operand.name, index, place)
        for place, result in enumerate(node.outputs):
            _connect(found, index, result.name, place)
    return found


def _connect(graph: nx.DiGraph[Vertex], start: Vertex, end: Vertex, place: int) -> None:
    before = graph.edges[start, end]["places"] if graph.has_edge(start, end) else ()
    graph.add_edge(start, end, places=(*before, place))
