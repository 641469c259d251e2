"""Parts of a graph that a single value joins, such as the attention and feed-forward layers of a transformer."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from ..ir import Graph, Node, Value


def split_blocks(graph: Graph, wanted: Collection[str]) -> list[Graph]:
    """Consecutive parts that each read a constant of `wanted`, joined by one value that depends on such constants.

    Nodes whose results depend on none of them, such as those of masks and rotary embeddings, are a separate first
    part. The inputs of a part are the values that it reads from the graph's inputs and from earlier parts; its
    outputs are the value that joins it to the next part and the graph's outputs that it computes. The last part has
    all other outputs, too.
    """
    before, after = list[Node](), list[Node]()
    weighted = set(wanted)
    for node in graph.nodes:
        depends = any(v.name in weighted for v in node.operands)
        (after if depends else before).append(node)
        weighted |= {v.name for v in node.outputs if depends}
    last = {v.name: index for index, node in enumerate(after) for v in node.operands}
    parts = (
        [_part(graph, before, [v for node in before for v in node.outputs if v.name in last])]
        if before
        else []
    )
    nodes, live = list[Node](), dict[str, Value]()
    for index, node in enumerate(after):
        nodes.append(node)
        live |= {v.name: v for v in node.outputs}
        live = {name: value for name, value in live.items() if last.get(name, -1) > index}
        if len(live) == 1 and any(v.name in wanted for n in nodes for v in n.operands):
            parts.append(_part(graph, nodes, [*live.values()]))
            nodes = []
    given = {v.name for part in parts for v in part.outputs}
    rest = [at for at, value in enumerate(graph.outputs) if value.name not in given]
    if nodes or rest:
        names = tuple(graph.output_names[at] for at in rest)
        parts.append(_graph(graph, nodes, [graph.outputs[at] for at in rest], names))
    return parts


def _part(graph: Graph, nodes: Sequence[Node], joins: Sequence[Value]) -> Graph:
    made = {v.name for node in nodes for v in node.outputs}
    outputs = {v.name: v for v in (*joins, *(v for v in graph.outputs if v.name in made))}
    return _graph(graph, nodes, [*outputs.values()])


def _graph(
    graph: Graph, nodes: Sequence[Node], outputs: Sequence[Value], names: tuple[str, ...] = ()
) -> Graph:
    made = {v.name for node in nodes for v in node.outputs}
    read = {v.name: v for v in (*(v for node in nodes for v in node.operands), *outputs)}
    inputs = tuple(v for v in read.values() if v.name not in made and not graph.is_constant(v))
    return Graph(inputs, tuple(outputs), tuple(nodes), graph.params.only(read), names)
