"""How many units of each group stay, by an exact integer program.

The program has a binary variable for each group and each number of units that it may keep. Costs are products of
the sizes of two axes: a size is split over the levels of one group,

    size_b = sum_l z_l,    least_b x_l <= z_l <= most_b x_l,    size_a * size_b = sum_l a_l z_l

which is exact at whole x. What is maximised is the sum over groups of log(share of the score that stays), so that no
group is emptied for being cheap, each weighed by the number of weights that hang on it. The groups of a residual
branch may all go at once; if a fraction e of the sum is not the branch's, theirs is log(e + (1 - e) * share).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import coo_array

from ..errors import PassError
from .cost import Costs
from .ranking import Ranked

LEVELS = 12
TIME_LIMIT_SECONDS = 60.0
GAP = 1e-3


class InfeasibleError(PassError):
    """No numbers of units keep to the limits."""


@dataclass(frozen=True, slots=True)
class Solution:
    """Units that stay of each group, what that is worth, and how far from it the best may be at most."""

    kept: np.ndarray
    worth: float
    gap: float


def solve(ranked: Ranked, costs: Costs, limits: Mapping[str, float]) -> Solution:
    """The numbers of units that keep the most score while each of `costs` stays within its limit."""
    return _Program(ranked, costs).solve(limits)


class _Program:
    """The integer program, as it is put together."""

    def __init__(self, ranked: Ranked, costs: Costs) -> None:
        self._ranked, self._costs = ranked, costs
        self._levels = [
            np.union1d(_levels(int(n), int(least), ranked.multiple), [fewest])
            for n, least, fewest in zip(ranked.sizes, ranked.least, ranked.fewest, strict=True)
        ]
        self._starts = np.concatenate([[0], np.cumsum([len(levels) for levels in self._levels])]).astype(int)
        self._columns = int(self._starts[-1])  # variables so far: first the binary ones, then the parts z
        self._upper = [1.0] * self._columns
        self._rows: list[tuple[Mapping[int, float], float, float]] = []
        self._parts: dict[tuple[int, int], int] = {}
        for group, levels in enumerate(self._levels):
            first = self._starts[group]
            self._rows.append(({int(first) + i: 1.0 for i in range(len(levels))}, 1.0, 1.0))
        for drop in ranked.droppable:
            for a, b in pairwise(drop.groups):
                self._rows.append(({int(self._starts[a]): 1.0, int(self._starts[b]): -1.0}, 0.0, 0.0))

    def solve(self, limits: Mapping[str, float]) -> Solution:
        """The numbers of units that keep the most score within the limits."""
        for name, limit in limits.items():
            self._rows.append(self._limit(name, limit))
        rest = np.zeros(len(self._levels))
        for drop in self._ranked.droppable:
            rest[list(drop.groups)] = drop.rest
        gain = np.zeros(self._columns)
        for group, levels in enumerate(self._levels):
            summed = np.cumsum([0.0, *np.maximum(self._ranked.values[group], 1e-9)])
            share = np.maximum(rest[group] + (1 - rest[group]) * summed[levels] / summed[-1], 1e-9)
            gain[self._starts[group] : self._starts[group + 1]] = self._ranked.weights[group] * np.log(share)
        whole = np.arange(self._columns) < self._starts[-1]
        result = milp(
            -1e3 * gain / max(np.abs(gain).sum(), 1e-12),
            integrality=whole.astype(int),
            bounds=Bounds(0.0, np.array(self._upper)),
            constraints=self._constraints(),
            options={"time_limit": TIME_LIMIT_SECONDS, "mip_rel_gap": GAP},
        )
        if result.x is None:
            raise InfeasibleError(
                f"the integer program found no channels within the budget: {result.message}"
            )
        chosen = [
            levels[int(np.argmax(result.x[self._starts[g] : self._starts[g + 1]]))]
            for g, levels in enumerate(self._levels)
        ]
        return Solution(np.array(chosen, dtype=np.int64), -float(result.fun), float(result.mip_gap or 0.0))

    def _limit(self, name: str, limit: float) -> tuple[Mapping[int, float], float, float]:
        """A row: the cost in units of its budget, at most one."""
        row: dict[int, float] = {}
        fixed = 0.0
        if name == "channels":
            for group in range(len(self._levels)):
                self._add_size(row, {group: 1}, 0, 1.0 / limit)
        for term in self._costs.terms.get(name, ()):
            fixed += self._add_term(row, term.coefficient / limit, term.axes)
        return row, -np.inf, 1.0 - fixed + 1e-9

    def _add_term(self, row: dict[int, float], factor: float, axes: Sequence[int]) -> float:
        """Add a product of sizes to a row; what is constant of it is returned."""
        if not axes:
            return factor
        if len(axes) == 1:
            return self._add_size(row, self._costs.per_unit[axes[0]], self._costs.fixed[axes[0]], factor)
        a, b = sorted(axes, key=lambda axis: len(self._costs.per_unit[axis]))
        fixed = self._add_size(
            row, self._costs.per_unit[b], self._costs.fixed[b], factor * self._costs.fixed[a]
        )
        for group, count in self._costs.per_unit[a].items():
            start = self._split(group, b)
            for i, level in enumerate(self._levels[group]):
                row[start + i] = row.get(start + i, 0.0) + factor * count * float(level)
        return fixed

    def _add_size(self, row: dict[int, float], held: Mapping[int, int], fixed: int, factor: float) -> float:
        for group, count in held.items():
            for i, level in enumerate(self._levels[group]):
                column = int(self._starts[group]) + i
                row[column] = row.get(column, 0.0) + factor * count * float(level)
        return factor * fixed

    def _split(self, group: int, axis: int) -> int:
        """Variables z_l that hold the size of `axis` at the level that `group` takes; the first one's column."""
        if (group, axis) in self._parts:
            return self._parts[group, axis]
        start = self._parts[group, axis] = self._columns
        levels = self._levels[group]
        self._columns += len(levels)
        least, most = (self._costs.size(axis, kept) for kept in (self._ranked.fewest, self._ranked.sizes))
        self._upper += [float(most)] * len(levels)
        total: dict[int, float] = {start + i: 1.0 for i in range(len(levels))}
        fixed = self._add_size(total, self._costs.per_unit[axis], self._costs.fixed[axis], -1.0)
        self._rows.append((total, -fixed, -fixed))
        for i in range(len(levels)):
            x = int(self._starts[group]) + i
            self._rows.append(({start + i: 1.0, x: -float(most)}, -np.inf, 0.0))
            self._rows.append(({start + i: 1.0, x: -float(least)}, 0.0, np.inf))
        return start

    def _constraints(self) -> LinearConstraint:
        entries = [(r, c, v) for r, (row, _, _) in enumerate(self._rows) for c, v in row.items()]
        rows, columns, values = (np.array(part) for part in zip(*entries, strict=True))
        matrix = coo_array((values, (rows, columns)), shape=(len(self._rows), self._columns)).tocsr()
        low, high = (np.array([row[i] for row in self._rows], dtype=np.float64) for i in (1, 2))
        return LinearConstraint(matrix, low, high)


def _levels(size: int, least: int, multiple: int) -> np.ndarray:
    """At most LEVELS numbers of units, evenly spread, each a multiple or all."""
    steps = np.unique([*range(-(-least // multiple) * multiple, size, multiple), size])
    steps = steps[(steps >= least) & (steps <= size)]
    if len(steps) > LEVELS:
        steps = steps[np.unique(np.linspace(0, len(steps) - 1, LEVELS).round().astype(int))]
    return np.asarray(steps, dtype=np.int64)
