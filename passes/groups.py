"""Values that share one grid: what data movement joins, as sets of names."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from ..ir import Graph, Node


class UnionFind:
    """Disjoint sets of names; the representative of a set is its oldest member."""

    def __init__(self) -> None:
        self._parent: dict[str, str] = {}
        self._age: dict[str, int] = {}

    def find(self, name: str) -> str:
        """The representative of the set that holds `name`."""
        self._age.setdefault(name, len(self._age))
        path = []
        while (parent := self._parent.get(name, name)) != name:
            path.append(name)
            name = parent
        for passed in path:
            self._parent[passed] = name
        return name

    def unite(self, names: Iterable[str]) -> None:
        """Make one set of the sets of all these names."""
        roots = sorted({self.find(name) for name in names}, key=self._age.__getitem__)
        for root in roots[1:]:
            self._parent[root] = roots[0]


def moved_values(node: Node) -> list[str]:
    """Names of the operands and results that a data movement puts on one grid."""
    return [v.name for v in (*node.operands, *node.outputs) if v.type.dtype.is_floating]


def movement_groups(graph: Graph, moves: Collection[str]) -> UnionFind:
    """Sets of the values that the nodes named in `moves`, by first result, put on one grid."""
    groups = UnionFind()
    for node in graph.nodes:
        if node.outputs[0].name in moves:
            groups.unite(moved_values(node))
    return groups
