"""Disjoint sets of names, for values that must share something."""

from __future__ import annotations

from collections.abc import Iterable


class UnionFind:
    """Disjoint sets of names; the representative of a set is its oldest member.

    For sets of equal size `networkx.utils.UnionFind` chooses a representative in the order of a Python set, which
    differs between runs for strings; here the representative determines which of two equal joints comes first.
    """

    def __init__(self) -> None:
        self._parent: dict[str, str] = {}
        self._age: dict[str, int] = {}

    def find(self, name: str) -> str:
        """The representative of the set that contains `name`."""
        self._age.setdefault(name, len(self._age))
        path = []
        while (parent := self._parent.get(name, name)) != name:
            path.append(name)
            name = parent
        for passed in path:
            self._parent[passed] = name
        return name

    def unite(self, names: Iterable[str]) -> None:
        """Merges the sets of all these names."""
        roots = sorted({self.find(name) for name in names}, key=self._age.__getitem__)
        for root in roots[1:]:
            self._parent[root] = roots[0]
