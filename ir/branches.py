"""Residual branches that can be removed as a whole, leaving only the shortcut.

    sum = around + branch(around)        ->        sum = around + constant

A branch can be removed if its last layer reads only channels that exist only inside the branch: without these channels
the result of that layer is its bias, for every input. So depth is pruned with the same units as width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import networkx as nx
import numpy as np

from .digraph import digraph
from .graph import Graph, Node
from .ops.binary import Add
from .ops.channels import Axes
from .ops.layer import Layer
from .tensor_type import Value

_END = -1
"""Vertex after all outputs; nodes are numbered from 0."""


@dataclass(frozen=True, eq=False)
class Branch:
    """Nodes that only one operand of a sum depends on, and the groups of units whose channels are all among them."""

    sum: Node
    place: int  # index of the operand of the sum that is the branch
    joint: Value  # operand of the last layer: zero once the branch is removed
    before: tuple[Node, ...]  # nodes that compute `joint`
    tail: tuple[Node, ...]  # nodes from the last layer to the sum
    groups: tuple[int, ...]

    @property
    def around(self) -> Value:
        """The other operand of the sum."""
        return self.sum.operands[1 - self.place]

    @property
    def result(self) -> Value:
        """Result of the branch, an operand of the sum."""
        return self.sum.operands[self.place]


def find_branches(
    graph: Graph, axes: Mapping[str, Axes], groups_on: Callable[[int], np.ndarray]
) -> tuple[Branch, ...]:
    """The innermost branches that can be removed, in the order of their sums.

    `axes` has the axes of each value; `groups_on(axis)` returns the group of each channel of an axis, -1 for a
    channel that cannot be removed.
    """
    exclusive = _Exclusive(graph)
    homes = _Homes(graph, axes, groups_on)
    found = [b for node in graph.nodes if (b := _branch_of(graph, node, exclusive, homes)) is not None]
    sums = {branch.sum.output.name for branch in found}
    return tuple(b for b in found if sums.isdisjoint(n.outputs[0].name for n in (*b.before, *b.tail)))


class _Homes:
    """Groups whose channels occur only in the values of given nodes."""

    def __init__(
        self, graph: Graph, axes: Mapping[str, Axes], groups_on: Callable[[int], np.ndarray]
    ) -> None:
        self._graph, self._axes, self._groups_on = graph, axes, groups_on
        self._values: dict[int, set[str]] = {}  # by group: all values that have channels of the group
        present: dict[int, tuple[int, ...]] = {}
        for name, listed in axes.items():
            for axis in listed:
                if axis not in present:
                    present[axis] = tuple(g for g in np.unique(groups_on(axis)).tolist() if g >= 0)
                for group in present[axis]:
                    self._values.setdefault(group, set()).add(name)
        self._present = present

    def inside(self, nodes: Sequence[Node]) -> frozenset[int]:
        """Groups whose channels occur only in results of the nodes, or in constants that only these nodes read."""
        own = {value.name for node in nodes for value in node.outputs}
        results = {node.outputs[0].name for node in nodes}
        for node in nodes:
            for value in node.operands:
                users = self._graph.users[value.name]
                if self._graph.is_constant(value) and all(u.outputs[0].name in results for u in users):
                    own.add(value.name)
        met = {group for name in own for axis in self._axes[name] for group in self._present[axis]}
        return frozenset(group for group in met if self._values[group] <= own)

    def reads_only(self, value: Value, dimension: int, groups: frozenset[int]) -> bool:
        """True if all channels of a value belong to these groups."""
        return set(self._groups_on(self._axes[value.name][dimension]).tolist()) <= groups


def _branch_of(graph: Graph, node: Node, exclusive: _Exclusive, homes: _Homes) -> Branch | None:
    """The larger removable branch of a sum; None if no branch can be removed."""
    if not isinstance(node.op, Add) or len({v.name for v in node.operands}) != 2:
        return None
    if any(graph.is_constant(v) or v.type.shape != node.output.type.shape for v in node.operands):
        return None
    own = [exclusive.nodes(value) for value in node.operands]
    entries = [_entries(graph, nodes) for nodes in own]
    for place in sorted((0, 1), key=lambda place: -len(own[place])):
        shares_its_input = node.operands[1 - place].name in entries[place] or entries[0] & entries[1]
        if shares_its_input:
            for branch in _ways_to_go(graph, node, place, own[place], homes):
                return branch
    return None


class _Exclusive:
    """Nodes that only one value depends on, from the tree of post-dominators: every path from them to an output
    contains it.
    """

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        view = digraph(graph)
        view.add_edges_from((value.name, _END) for value in graph.outputs)
        found = nx.immediate_dominators(view.reverse(copy=False), _END)
        self._tree = nx.DiGraph((above, below) for below, above in found.items() if below != _END)

    def nodes(self, value: Value) -> list[Node]:
        """Nodes that only this value depends on, in the graph's order; empty for values with several uses."""
        if self._graph.use_count(value) != 1:
            return []
        below = nx.descendants(self._tree, value.name)
        return [self._graph.nodes[index] for index in sorted(v for v in below if isinstance(v, int))]


def _entries(graph: Graph, nodes: Sequence[Node]) -> set[str]:
    """Values that the nodes read, without their own results and constants."""
    own = {value.name for node in nodes for value in node.outputs}
    return {v.name for node in nodes for v in node.operands if not graph.is_constant(v)} - own


def _ways_to_go(graph: Graph, sum: Node, place: int, nodes: list[Node], homes: _Homes) -> Iterator[Branch]:
    """Removable branches of a sum, with each layer of the branch as its last layer, from the end."""
    groups = homes.inside(nodes)
    for layer in reversed(nodes):
        if not isinstance(layer.op, Layer) or graph.is_constant(layer.operand("x")):
            continue
        joint = layer.operand("x")
        channels = layer.op.channel_axis(joint.type)
        tail = _tail(nodes, layer)
        made = {value.name for node in tail for value in node.outputs}
        reads_itself = _entries(graph, tail[1:]) <= made
        if homes.reads_only(joint, channels, groups) and reads_itself and sum.operands[place].name in made:
            later = {id(node) for node in tail}
            before = tuple(node for node in nodes if id(node) not in later)
            yield Branch(sum, place, joint, before, tuple(tail), tuple(sorted(groups)))


def _tail(nodes: Sequence[Node], layer: Node) -> list[Node]:
    """The layer, and the nodes that depend on it."""
    made, tail = {value.name for value in layer.outputs}, [layer]
    for node in nodes:
        if not made.isdisjoint(v.name for v in node.operands):
            made |= {value.name for value in node.outputs}
            tail.append(node)
    return tail
