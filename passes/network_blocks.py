"""Parts of a graph that only one value joins, such as the attention and feed-forward layers of a transformer."""

from __future__ import annotations

from collections.abc import Collection

from ..ir import Graph, Node, Value


def split_blocks(graph: Graph, wanted: Collection[str]) -> list[Graph]:
    """Consecutive parts of the graph that read a constant of `wanted` each, the last one with the graph's outputs.

    A part takes the inputs of the graph that it reads, and one value of the part before it, as its inputs.
    """
    last = {v.name: index for index, node in enumerate(graph.nodes) for v in node.operands}
    last |= {v.name: len(graph.nodes) for v in graph.outputs}
    parts, nodes, live = list[Graph](), list[Node](), dict[str, Value]()
    for index, node in enumerate(graph.nodes):
        nodes.append(node)
        live |= {v.name: v for v in node.outputs}
        live = {name: value for name, value in live.items() if last.get(name, -1) > index}
        if index + 1 == len(graph.nodes):
            parts.append(_part(graph, nodes, graph.outputs, graph.output_names))
        elif len(live) == 1 and any(v.name in wanted for n in nodes for v in n.operands):
            parts.append(_part(graph, nodes, tuple(live.values()), ()))
            nodes = []
    return parts


def _part(graph: Graph, nodes: list[Node], outputs: tuple[Value, ...], names: tuple[str, ...]) -> Graph:
    made = {v.name for node in nodes for v in node.outputs}
    read = {v.name: v for v in (*(v for node in nodes for v in node.operands), *outputs)}
    inputs = tuple(v for v in read.values() if v.name not in made and not graph.is_constant(v))
    return Graph(inputs, outputs, tuple(nodes), graph.params.only(read), names)
