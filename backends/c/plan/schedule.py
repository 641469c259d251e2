"""The order of execution: among branches, the one first that leaves the least memory in use."""

from __future__ import annotations

from dataclasses import replace

from ....ir import Graph, Node


def schedule(graph: Graph) -> Graph:
    """The graph with its nodes in an order of lower peak memory, or in the order given where none is found.

    The order is greedy: of the nodes whose operands are there, the next is the one after which the least bytes are
    live; of equals, the one that stood first. That rank changes with what is live, so it is no key for
    `networkx.lexicographical_topological_sort`, which ranks each node once.
    """
    order = _greedy(graph)
    return replace(graph, nodes=order) if peak_bytes(graph, order) < peak_bytes(graph, graph.nodes) else graph


def peak_bytes(graph: Graph, order: tuple[Node, ...]) -> int:
    """Largest sum of values that are live at once, each from its making to its last reader; inputs do not count."""
    left = _readers(graph)
    live = peak = 0
    for node in order:
        live += _made_bytes(graph, node)
        peak = max(peak, live)
        live -= _freed_bytes(graph, node, left)
        for value in node.operands:
            left[value.name] = left.get(value.name, 0) - 1
    return peak


def _greedy(graph: Graph) -> tuple[Node, ...]:
    left = _readers(graph)
    waiting: dict[int, int] = {}
    waiters: dict[str, list[int]] = {}
    for index, node in enumerate(graph.nodes):
        needed = {v.name for v in node.operands if v.name in graph.producers}
        waiting[index] = len(needed)
        for name in needed:
            waiters.setdefault(name, []).append(index)
    ready = [index for index, count in waiting.items() if not count]
    order: list[Node] = []
    while ready:
        chosen = min(ready, key=lambda index: (_growth(graph, graph.nodes[index], left), index))
        ready.remove(chosen)
        node = graph.nodes[chosen]
        order.append(node)
        for value in node.operands:
            left[value.name] = left.get(value.name, 0) - 1
        for value in node.outputs:
            for index in waiters.get(value.name, ()):
                waiting[index] -= 1
                if not waiting[index]:
                    ready.append(index)
    return tuple(order)


def _growth(graph: Graph, node: Node, left: dict[str, int]) -> int:
    return _made_bytes(graph, node) - _freed_bytes(graph, node, left)


def _readers(graph: Graph) -> dict[str, int]:
    """Remaining number of reads of each value."""
    return {name: len(users) for name, users in graph.users.items()}


def _made_bytes(graph: Graph, node: Node) -> int:
    return sum(v.type.storage_bytes for v in node.outputs if v.name in graph.users)


def _freed_bytes(graph: Graph, node: Node, left: dict[str, int]) -> int:
    read = [v.name for v in node.operands]
    freed = {
        v.name: v for v in node.operands if v.name in graph.producers and left[v.name] == read.count(v.name)
    }
    return sum(v.type.storage_bytes for v in freed.values())
