"""Groups of values that share an encoding: all values that data movement joins, except at concats of very different
ranges.

The results of a recurrent layer and its last state share an encoding, too. The first states share one with the last
states, unless the group of the first states has another imposed encoding, or a larger range.

The operands of a magnitude share an encoding, because its 16-bit integer form requires that.

A concat can rescale an operand. The two have different encodings if one range is less than half the other, and if a
value benefits: for a finer operand, a reader of its group (all values that other movement joins with it); for a finer
result, another operand.
"""

from __future__ import annotations

from collections.abc import Mapping

from ...ir import Encoding, Graph, Node
from ...ir.ops.magnitude import Magnitude
from ...ir.ops.recurrent import Recurrent
from ...ir.ops.recurrent_form import UNIT
from ...ir.ops.slicing import Concat
from ..calibration.observers import Range, Statistics, min_max
from .groups import UnionFind
from .quantization_plan import Plan

_NEAR = 2.0  # ranges that differ by no more than this factor share an encoding


def join_moved(
    graph: Graph, plan: Plan, statistics: Mapping[str, Statistics], fixed: Mapping[str, Encoding]
) -> UnionFind:
    """Groups of values with one encoding; `fixed` contains the encodings that operators impose on their results."""
    groups = UnionFind()
    for before, after in plan.states:
        groups.unite((before.name, after.name))
    joints: list[tuple[str, str]] = []
    for node in graph.nodes:
        if isinstance(node.op, Magnitude) and node.output.name in plan.computing:
            groups.unite(v.name for v in node.operands if not graph.is_constant(v))
        if node.outputs[0].name not in plan.moving:
            continue
        moved = [v for v in node.operands if v.type.dtype.is_floating]
        if isinstance(node.op, Concat):
            joints += [(v.name, node.output.name) for v in moved if not graph.is_constant(v)]
        else:
            groups.unite(v.name for v in (*moved, *node.outputs))
    _join_states(graph, plan, statistics, fixed, groups)
    _Concats(graph, plan, statistics, fixed, groups).join(joints)
    return groups


def _join_states(
    graph: Graph,
    plan: Plan,
    statistics: Mapping[str, Statistics],
    fixed: Mapping[str, Encoding],
    groups: UnionFind,
) -> None:
    for node in graph.nodes:
        if not isinstance(node.op, Recurrent) or node.outputs[0].name not in plan.computing:
            continue
        y, *last = node.outputs
        groups.unite((y.name, last[0].name))
        for before, after in zip(node.op.states_of(node.inputs), last, strict=True):
            if before is None or graph.is_constant(before):
                continue
            members = [name for name in statistics if groups.find(name) == groups.find(before.name)]
            theirs = {fixed[name] for name in members if name in fixed}
            own, seen = fixed.get(after.name), [min_max(statistics[name]) for name in members]
            is_alike = all(own and e.bits == own.bits and (e == UNIT) == (own == UNIT) for e in theirs)
            if is_alike and (own is None or all(_represents(own, r) for r in seen)):
                groups.unite((before.name, after.name))


def _represents(encoding: Encoding, covered: Range) -> bool:
    low, high = _ends(encoding)
    step = encoding.scale[0]
    return low - step <= covered.low and covered.high <= high + step


class _Concats:
    """Joins operands of concats to results, the nearest ranges first, and updates the properties of each group."""

    def __init__(
        self,
        graph: Graph,
        plan: Plan,
        statistics: Mapping[str, Statistics],
        fixed: Mapping[str, Encoding],
        groups: UnionFind,
    ) -> None:
        self._groups = groups
        self._ranges: dict[str, Range] = {}
        self._limits: dict[str, set[Encoding]] = {}
        self._read: set[str] = (
            set()
        )  # groups with a value that a node computes with, or that leaves the integers
        self._made: set[str] = set()  # groups with a value that is not a result of movement
        outputs = {v.name for v in graph.outputs}
        for value in (*graph.inputs, *(v for node in graph.nodes for v in node.outputs)):
            group = groups.find(value.name)
            producer = graph.producers.get(value.name)
            if producer is None or not _moves(plan, producer):
                self._made.add(group)
            if value.name in statistics:
                seen = min_max(statistics[value.name])
                self._ranges[group] = self._ranges.get(group, seen).union(seen)
            if value.name in fixed:
                self._limits.setdefault(group, set()).add(fixed[value.name])
            readers = graph.users.get(value.name, ())
            if value.name in outputs or not all(_moves(plan, reader) for reader in readers):
                self._read.add(group)

    def join(self, joints: list[tuple[str, str]]) -> None:
        """Decides for each pair of operand and result of a concat."""
        while True:
            apart = {(self._groups.find(x), self._groups.find(y)) for x, y in joints}
            free = sorted((x, y) for x, y in apart if x != y and self._may_share(x, y))
            near = [pair for pair in free if 1 / _NEAR <= self._ratio(*pair) <= _NEAR]
            useless = [pair for pair in free if not self._gains(*pair)]
            if near:
                self._unite(*min(near, key=lambda pair: abs(self._ratio(*pair) - 1)))
            elif useless:
                self._unite(*min(useless, key=lambda pair: self._width(pair[1])))
            else:
                return

    def _gains(self, x: str, y: str) -> bool:
        """True if different encodings benefit a reader of the operand, or another operand."""
        return x in self._read if self._ratio(x, y) > 1 else y in self._made

    def _unite(self, x: str, y: str) -> None:
        self._groups.unite((x, y))
        group = self._groups.find(x)
        covered = self._joint_range(x, y)
        if covered is not None:
            self._ranges[group] = covered
        self._limits[group] = self._limits.get(x, set()) | self._limits.get(y, set())
        for marked in (self._read, self._made):
            if not marked.isdisjoint((x, y)):
                marked.add(group)

    def _may_share(self, x: str, y: str) -> bool:
        """True if the encoding that an operator imposes on one of them, if any, represents both."""
        limits, covered = self._limits.get(x, set()) | self._limits.get(y, set()), self._joint_range(x, y)
        if not limits or covered is None:
            return len(limits) < 2
        (low, high), one = _ends(next(iter(limits))), len(limits) == 1
        step = (high - low) / 256
        return one and low - step <= covered.low and covered.high <= high + step

    def _joint_range(self, x: str, y: str) -> Range | None:
        found = [self._ranges[group] for group in (x, y) if group in self._ranges]
        return None if not found else found[0].union(found[-1])

    def _ratio(self, x: str, y: str) -> float:
        """Ratio of the result's range to the operand's; 1 for an operand that was always zero."""
        return self._width(y) / self._width(x) if self._width(x) else 1.0

    def _width(self, group: str) -> float:
        return self._ranges[group].width if group in self._ranges else 0.0


def _moves(plan: Plan, node: Node) -> bool:
    return node.outputs[0].name in plan.moving


def _ends(encoding: Encoding) -> tuple[float, float]:
    """Reals that the smallest and the largest integer represent."""
    zero, scale = encoding.zero_point[0], encoding.scale[0]
    return (encoding.qmin - zero) * scale, (encoding.qmax - zero) * scale
