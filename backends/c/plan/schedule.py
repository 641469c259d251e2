"""Greedy order of execution: among branches, first the one that leaves the least memory in use; `order` improves it."""

from __future__ import annotations

import heapq
from dataclasses import replace

from ....ir import Graph, Node


def schedule(graph: Graph) -> Graph:
    """The graph with its nodes in an order of lower peak memory, or in the given order if none is found.

    The order is greedy: of the nodes whose operands are available, the next is the one after which the fewest bytes
    are live; of equals, the first in the given order. A rank changes when a node becomes the last reader of an
    operand, so it cannot be a key for `networkx.lexicographical_topological_sort`, which ranks each node once.
    """
    order = _greedy(graph)
    return replace(graph, nodes=order) if peak_bytes(graph, order) < peak_bytes(graph, graph.nodes) else graph


def peak_bytes(graph: Graph, order: tuple[Node, ...]) -> int:
    """Largest sum of values that are live at once, each from its node to its last reader; inputs are not counted."""
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
    waiting, consumers = list[int](), dict[str, list[int]]()
    for index, node in enumerate(graph.nodes):
        names = {v.name for v in node.operands if v.name in graph.producers}
        waiting.append(len(names))
        for name in names:
            consumers.setdefault(name, []).append(index)
    remaining = {name: len(indices) for name, indices in consumers.items()}
    has_run = [False] * len(graph.nodes)
    ready: list[tuple[int, int]] = []

    def rank(index: int) -> None:
        heapq.heappush(ready, (_growth(graph, graph.nodes[index], left), index))

    for index, count in enumerate(waiting):
        if not count:
            rank(index)
    order: list[Node] = []
    while ready:
        _, chosen = heapq.heappop(ready)
        if has_run[chosen]:  # ranked again in the meantime
            continue
        has_run[chosen] = True
        node = graph.nodes[chosen]
        order.append(node)
        for value in node.operands:
            left[value.name] = left.get(value.name, 0) - 1
        for name in {v.name for v in node.operands if v.name in remaining}:
            remaining[name] -= 1
            if remaining[name] == 1:  # the last reader will free it
                last = next(index for index in consumers[name] if not has_run[index])
                if not waiting[last]:
                    rank(last)
        for value in node.outputs:
            for index in consumers.get(value.name, ()):
                waiting[index] -= 1
                if not waiting[index]:
                    rank(index)
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
