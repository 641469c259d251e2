"""Channel coupling: sets of channels that can only be removed together.

Every dimension of every value is an axis. Every operator declares in `couple` which axes have the same channels and
which channels of different axes are coupled; data movement declares the indices that it moves. The connected
components are the units of structured pruning. A unit with a channel of an input, of an output, or of an operator
without a rule cannot be removed.

    coupling = couple(graph)
    coupling.units(weight, 0)      # the unit of each row of a weight, -1 for one that cannot be removed

Linear in the size of the graph; channels are stored in arrays.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from .branches import Branch, find_branches
from .coupling_axes import AxisTable, Indices, NodeCall, Reason, as_index
from .graph import Graph, Node, check_graph
from .ops.channels import Axes, Cut
from .tensor_type import Value, kept_sizes

STAYS = -1


@dataclass(frozen=True, eq=False)
class Coupling:
    """The units of a graph. Units and groups are numbered from 0; `groups` has the group of each unit.

    Units of one group have channels on the same axes, equally many on each, and so are interchangeable: if one unit
    of each group is kept, every axis keeps a channel.
    """

    graph: Graph
    count: int
    groups: np.ndarray  # group of each unit
    pooled: Mapping[str, Axes]  # axes over which a node takes statistics, by its first result's name
    summed: Mapping[str, Axes]  # axes over which a node sums, by its first result's name
    whole_heads: bool  # True: attentions lose whole heads; False: the same positions of each head
    heads: frozenset[int]  # axes that index the heads of attentions
    _axes: Mapping[str, Axes]
    _starts: np.ndarray  # start of each axis in `_units`
    _sizes: np.ndarray
    _units: np.ndarray
    _reasons: Mapping[int, Reason]  # reason why channels of constants' axes cannot be removed

    def axes(self, value: Value) -> Axes:
        """The axes of a value; dimensions with the same channels have the same axis."""
        return self._axes[value.name]

    def units(self, value: Value, dimension: int) -> np.ndarray:
        """The unit of each index of a dimension, -1 for an index that cannot be removed."""
        return self.on_axis(self._axes[value.name][dimension])

    def on_axis(self, axis: int) -> np.ndarray:
        """The unit of each channel of an axis, -1 for a channel that cannot be removed."""
        start = self._starts[axis]
        return self._units[start : start + self._sizes[axis]]

    def mixed(self, node: Node) -> np.ndarray:
        """Units with a channel that changes other channels of the node's results, because the node sums or averages
        over it.
        """
        name = node.outputs[0].name
        return self._units_on((*self.summed.get(name, ()), *self.pooled.get(name, ())))

    def touched(self, node: Node) -> np.ndarray:
        """The units that have channels among the node's operands and results."""
        return self._units_on(axis for value in (*node.operands, *node.outputs) for axis in self.axes(value))

    def _units_on(self, axes: Iterable[int]) -> np.ndarray:
        found = [self.on_axis(axis) for axis in dict.fromkeys(axes)]
        units = np.unique(np.concatenate(found)) if found else np.zeros(0, dtype=np.int64)
        return np.asarray(units[units != STAYS])

    def reason(self, value: Value, dimension: int) -> Reason | None:
        """Reason why channels of a constant's dimension cannot be removed; None if all can be removed."""
        return self._reasons.get(self._axes[value.name][dimension])

    @property
    def refusals(self) -> tuple[Reason, ...]:
        """Operators without a rule that keep channels of constants from removal, in the graph's order."""
        found = {r: None for r in self._reasons.values() if r.is_refusal}
        order = {node.outputs[0].name: i for i, node in enumerate(self.graph.nodes)}
        return tuple(sorted(found, key=lambda reason: order.get(reason.name, -1)))

    @cached_property
    def members(self) -> tuple[tuple[Value, int, np.ndarray], ...]:
        """Dimensions of constants that can shrink: constant, dimension, unit of each index."""
        found = [
            (value, d, self.units(value, d)) for value in self.graph.constants for d in range(value.type.rank)
        ]
        return tuple((value, d, units) for value, d, units in found if (units != STAYS).any())

    @cached_property
    def head_groups(self) -> np.ndarray:
        """Boolean per group: True if its units are whole attention heads."""
        found = np.zeros(int(self.groups.max()) + 1 if self.count else 0, dtype=bool)
        for axis in sorted(self.heads):
            units = self.on_axis(axis)
            found[self.groups[units[units != STAYS]]] = True
        return found

    @cached_property
    def branches(self) -> tuple[Branch, ...]:
        """Residual branches that can be removed as a whole: all units of their groups at once."""
        named = np.append(
            self.groups, STAYS
        )  # the last entry, index -1, is for channels that cannot be removed
        return find_branches(self.graph, self._axes, lambda axis: named[self.on_axis(axis)])

    def kept(self, removed: np.ndarray) -> Kept:
        """Kept indices of every axis after removal of the units marked in `removed` (bool)."""
        return Kept(self, removed)


class Kept:
    """The indices kept along each axis after the removal of some units."""

    def __init__(self, coupling: Coupling, removed: np.ndarray) -> None:
        self.coupling = coupling
        self.removed = removed
        self._stays = np.append(
            ~removed, True
        )  # the last entry, index -1, is for channels that cannot be removed
        self._cache: dict[int, Tensor] = {}

    @cached_property
    def dropped(self) -> tuple[Branch, ...]:
        """The residual branches that are removed as a whole."""
        groups = self.coupling.groups
        gone = set(np.flatnonzero(np.bincount(groups, weights=~self.removed) == 0).tolist())
        return tuple(b for b in self.coupling.branches if gone.issuperset(b.groups)) if gone else ()

    def axis(self, axis: int) -> Tensor:
        """Kept indices of an axis, ascending."""
        if axis not in self._cache:
            self._cache[axis] = as_index(np.flatnonzero(self._stays[self.coupling.on_axis(axis)]))
        return self._cache[axis]

    def value(self, value: Value) -> tuple[Tensor, ...]:
        """Kept indices of each dimension of a value."""
        return tuple(self.axis(axis) for axis in self.coupling.axes(value))

    def size(self, axis: int) -> int:
        """Number of kept channels of an axis."""
        return len(self.axis(axis))

    def shape(self, value: Value) -> tuple[int, ...]:
        """Sizes of a value after the removal."""
        return kept_sizes(value.type.shape, [self.axis(axis) for axis in self.coupling.axes(value)])

    def cut(self, node: Node) -> Cut:
        """Kept indices of a node's operands and results."""
        operands = tuple(None if value is None else self.value(value) for value in node.inputs)
        results = tuple(self.value(value) for value in node.outputs)
        return Cut(node.op, operands, results, node.operand_types, node.output_types)


def couple(graph: Graph, *, whole_heads: bool = False, follows: tuple[Value, int] | None = None) -> Coupling:
    """Finds the units of channels of a graph of floats or integers.

    In an attention, a unit has the same position of each head, or with `whole_heads` a whole head. Channels of inputs
    and outputs are kept. For a part of a graph, `follows` is the dimension of one of its inputs whose channels are
    coupled with those of the outputs instead.
    """
    check_graph(graph, "couple(graph)")
    table = AxisTable(whole_heads=whole_heads)
    axes: dict[str, Axes] = {}
    pooled: dict[str, Axes] = {}
    summed: dict[str, Axes] = {}
    for value in graph.constants:
        axes[value.name] = tuple(table.add(n) for n in value.type.shape)
    for value in graph.inputs:
        reason = Reason("it is a dimension of an input", value.name)
        axes[value.name] = tuple(
            table.add(n, reason=None if (value, d) == follows else reason)
            for d, n in enumerate(value.type.shape)
        )
    for node in graph.nodes:
        call = NodeCall(table, node, [None if v is None else axes[v.name] for v in node.inputs])
        for value, own in zip(node.outputs, node.op.couple(call), strict=True):
            axes[value.name] = own
        if call.pooled:
            pooled[node.outputs[0].name] = call.pooled
        if call.summed:
            summed[node.outputs[0].name] = call.summed
    for value in () if follows else graph.outputs:
        for axis in axes[value.name]:
            table.fix(axis, Reason("it is a dimension of an output", value.name))
    table.settle()
    moving = {axis for value in graph.constants for axis in axes[value.name]}
    if follows is not None:
        moving.add(axes[follows[0].name][follows[1]])
    return _components(graph, table, moving, axes, pooled, summed)


def _components(
    graph: Graph,
    table: AxisTable,
    moving: set[int],
    axes: Mapping[str, Axes],
    pooled: Mapping[str, Axes],
    summed: Mapping[str, Axes],
) -> Coupling:
    roots = np.array([table.root(axis) for axis in range(len(table))], dtype=np.int64)
    sizes = np.array([table.size(axis) for axis in range(len(table))], dtype=np.int64)
    own = np.where(roots == np.arange(len(roots)), sizes, 0)
    starts = np.concatenate([[0], np.cumsum(own)])[:-1][roots] if len(roots) else roots
    labels = _connected(int(own.sum()), [(starts[t.a] + t.in_a, starts[t.b] + t.in_b) for t in table.ties])
    reasons = {axis: r for axis in map(int, np.unique(roots)) if (r := table.reason(axis)) is not None}
    rooted = {name: tuple(int(roots[axis]) for axis in listed) for name, listed in axes.items()}
    able = {int(roots[axis]) for axis in moving}

    held = {axis: reasons[axis] for axis in able & reasons.keys()}
    stays = np.ones(int(labels.max()) + 1 if len(labels) else 0, dtype=bool)
    for axis in sorted(able):
        stays[labels[starts[axis] : starts[axis] + sizes[axis]]] = False
    held_by = np.full(len(stays), -1, dtype=np.int64)
    for axis in sorted(
        reasons, key=lambda axis: reasons[axis].is_refusal
    ):  # a refusal takes precedence over other reasons
        stays[labels[starts[axis] : starts[axis] + sizes[axis]]] = True
        held_by[labels[starts[axis] : starts[axis] + sizes[axis]]] = axis
    for axis in sorted(able - reasons.keys()):
        holders = np.unique(held_by[labels[starts[axis] : starts[axis] + sizes[axis]]])
        found = [reasons[holder] for holder in holders.tolist() if holder >= 0]
        held |= {axis: max(found, key=lambda reason: reason.is_refusal)} if found else {}
    units, count = _numbered(labels, stays)
    groups = _grouped(units, count, np.repeat(np.arange(len(own)), own))
    pools, sums = (
        {name: tuple(int(roots[axis]) for axis in listed) for name, listed in found.items()}
        for found in (pooled, summed)
    )
    return Coupling(
        graph, count, groups, pools, sums, table.whole_heads, table.heads, rooted, starts, sizes, units, held
    )


def _connected(count: int, pairs: Sequence[tuple[Indices, Indices]]) -> np.ndarray:
    """The connected component of each of `count` labels.

    Labels are arrays, for which scipy needs a fiftieth of the time of networkx (benchmarks/graph_algorithms.py).
    """
    if not pairs:
        return np.arange(count)
    rows, columns = (np.concatenate(side) for side in zip(*pairs, strict=True))
    edges = coo_array((np.ones(len(rows), dtype=np.int8), (rows, columns)), shape=(count, count))
    _, components = connected_components(edges, directed=False)
    return np.asarray(components, dtype=np.int64)


def _numbered(labels: np.ndarray, stays: np.ndarray) -> tuple[np.ndarray, int]:
    """Units, numbered in the order of their first label."""
    moving = np.flatnonzero(~stays[labels]) if len(labels) else labels
    found, first, inverse = np.unique(labels[moving], return_index=True, return_inverse=True)
    rank = np.empty(len(found), dtype=np.int64)
    rank[np.argsort(first)] = np.arange(len(found))
    units = np.full(len(labels), STAYS, dtype=np.int64)
    units[moving] = rank[inverse]
    return units, len(found)


def _grouped(units: np.ndarray, count: int, axis_of: np.ndarray) -> np.ndarray:
    """The group of each unit. A random number for each axis, summed over a unit's channels, identifies its axes."""
    moving = units != STAYS
    if not count:
        return np.zeros(0, dtype=np.int64)
    numbers = np.random.default_rng(0).integers(0, 2**63, size=int(axis_of.max()) + 1, dtype=np.uint64)
    names = np.zeros(count, dtype=np.uint64)
    np.add.at(names, units[moving], numbers[axis_of[moving]])
    _, first, inverse = np.unique(names, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    return rank[inverse]
