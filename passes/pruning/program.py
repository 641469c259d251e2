"""Integer program over the number of kept units of each group and, optionally, the bit width of each layer.

The program has a binary variable for each group and each number of units that it may keep. Costs are products of
the sizes of two axes: a size is split over the levels of one group,

    size_b = sum_l z_l,    least_b x_l <= z_l <= most_b x_l,    size_a * size_b = sum_l a_l z_l

which is exact at whole x. What counts only at some bits of a layer is split over its widths in the same way.

What is maximised is what the units that stay are utility. `LogShare` is the sum over groups of log(share of the score
that stays), so that no group is emptied for being cheap, each weighed by the number of weights that hang on it. The
groups of a residual branch may all go at once; if a fraction e of the sum is not the branch's, theirs is
log(e + (1 - e) * share). `Measured` is the loss that cutting a group alone causes, to which the loss of rounding each
layer adds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np
from scipy.optimize import Bounds, LinearConstraint
from scipy.sparse import coo_array

from ..errors import InfeasibleError
from ..solver import solve_integers
from .cost import Bits, Costs, Term
from .ranking import Ranked

LEVELS = 12
TIME_LIMIT_SECONDS = 60.0
GAP = 1e-3
ROUNDING = "rounding"
"""The cost that rounding is: what it adds to the loss."""


class Utility(Protocol):
    """Objective: value of the kept units."""

    def of(self, group: int, count: int) -> float:
        """Utility of a group with `count` kept units, those of the highest scores; at most 0."""


class LogShare:
    """The logarithm of the share of the score that stays."""

    def __init__(self, ranked: Ranked) -> None:
        self._weights = ranked.weights
        self._summed = [np.cumsum([0.0, *np.maximum(values, 1e-9)]) for values in ranked.values]
        self._rest = np.zeros(len(ranked.values))
        for drop in ranked.droppable:
            self._rest[list(drop.groups)] = drop.rest

    def of(self, group: int, count: int) -> float:
        """The weighed logarithm."""
        rest, summed = self._rest[group], self._summed[group]
        share = max(rest + (1 - rest) * summed[count] / summed[-1], 1e-9)
        return float(self._weights[group] * np.log(share))


@dataclass(frozen=True)
class Measured:
    """Losses at some numbers of units of each group, and on the line between them."""

    levels: tuple[np.ndarray, ...]
    losses: tuple[np.ndarray, ...]

    def of(self, group: int, count: int) -> float:
        """The loss, below zero."""
        return -float(np.interp(count, self.levels[group], self.losses[group]))


@dataclass(frozen=True, slots=True)
class Solution:
    """Kept units of each group, bit widths of free layers, total utility, and the optimality gap."""

    kept: np.ndarray
    bits: Bits
    utility: float
    gap: float


def solve(ranked: Ranked, costs: Costs, limits: Mapping[str, float], utility: Utility) -> Solution:
    """Numbers of kept units with the highest total utility, subject to a limit on each cost."""
    return _Program(ranked, costs).solve(limits, utility)


def levels_of(ranked: Ranked) -> tuple[np.ndarray, ...]:
    """The numbers of units that the program considers for each group."""
    return tuple(
        np.union1d(_levels(int(n), int(least), ranked.multiple), [fewest])
        for n, least, fewest in zip(ranked.sizes, ranked.least, ranked.fewest, strict=True)
    )


class _Program:
    """The integer program, as it is put together: binary variables first, then the parts of products."""

    def __init__(self, ranked: Ranked, costs: Costs) -> None:
        self._ranked, self._costs = ranked, costs
        self._levels = levels_of(ranked)
        self._starts = np.concatenate([[0], np.cumsum([len(levels) for levels in self._levels])]).astype(int)
        self._columns = int(self._starts[-1])
        self._stored: dict[tuple[str, int], int] = {}
        self._rows: list[tuple[Mapping[int, float], float, float]] = []
        for group, levels in enumerate(self._levels):
            first = int(self._starts[group])
            self._rows.append(({first + i: 1.0 for i in range(len(levels))}, 1.0, 1.0))
        for drop in ranked.droppable:
            for a, b in pairwise(drop.groups):
                self._rows.append(({int(self._starts[a]): 1.0, int(self._starts[b]): -1.0}, 0.0, 0.0))
        for layer, widths in costs.widths.items():
            self._stored |= {(layer, width): self._columns + i for i, width in enumerate(widths)}
            self._rows.append(({self._columns + i: 1.0 for i in range(len(widths))}, 1.0, 1.0))
            self._columns += len(widths)
        self._binaries = self._columns
        self._upper = [1.0] * self._columns
        self._parts: dict[tuple[int, int], int] = {}
        self._shares: dict[tuple[str, tuple[int, ...]], Mapping[int, int]] = {}

    def solve(self, limits: Mapping[str, float], utility: Utility) -> Solution:
        """Numbers of units, and bit widths, with the highest total utility within the limits."""
        for name, limit in limits.items():
            self._rows.append(self._limit(name, limit))
        loss: dict[int, float] = {}
        for group, levels in enumerate(self._levels):
            first = int(self._starts[group])
            loss.update((first + i, -utility.of(group, int(level))) for i, level in enumerate(levels))
        fixed = sum(self._add_term(loss, term, 1.0) for term in self._costs.terms.get(ROUNDING, ()))
        objective = np.zeros(self._columns)
        objective[list(loss)] = list(loss.values())
        scale = 1e3 / max(float((np.abs(objective) * np.array(self._upper)).sum()), 1e-12)
        result = solve_integers(
            scale * objective,
            integrality=(np.arange(self._columns) < self._binaries).astype(int),
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
        bits = {layer: width for (layer, width), at in self._stored.items() if result.x[at] > 0.5}
        gap = float(result.mip_gap or 0.0)
        return Solution(np.array(chosen, dtype=np.int64), bits, -float(result.fun) / scale - fixed, gap)

    def _limit(self, name: str, limit: float) -> tuple[Mapping[int, float], float, float]:
        """A row: the cost in units of its budget, at most one."""
        row: dict[int, float] = {}
        fixed = 0.0
        if name == "channels":
            for group in range(len(self._levels)):
                self._add_size(row, {group: 1}, 0, 1.0 / limit)
        for term in self._costs.terms.get(name, ()):
            fixed += self._add_term(row, term, 1.0 / limit)
        return row, -np.inf, 1.0 - fixed + 1e-9

    def _add_term(self, row: dict[int, float], term: Term, factor: float) -> float:
        """Add a term to a row; what is constant of it is returned."""
        factor *= term.coefficient
        if term.when is None:
            return self._add_product(row, factor, term.axes)
        layer, width = term.when
        column = self._share(layer, term.axes)[width] if term.axes else self._stored[layer, width]
        row[column] = row.get(column, 0.0) + factor
        return 0.0

    def _add_product(self, row: dict[int, float], factor: float, axes: Sequence[int]) -> float:
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

    def _share(self, layer: str, axes: tuple[int, ...]) -> Mapping[int, int]:
        """Variables that hold a product of sizes at the width that the layer takes, and zero at others: columns."""
        if (layer, axes) not in self._shares:
            total: dict[int, float] = {}
            fixed = self._add_product(total, -1.0, axes)
            most, least = (
                float(np.prod([self._costs.size(axis, kept) for axis in axes]))
                for kept in (self._ranked.sizes, self._ranked.fewest)
            )
            columns = {}
            for width in self._costs.widths[layer]:
                columns[width] = part = self._columns
                self._columns += 1
                self._upper.append(most)
                total[part] = 1.0
                at = self._stored[layer, width]
                self._rows.append(({part: 1.0, at: -most}, -np.inf, 0.0))
                self._rows.append(({part: 1.0, at: -least}, 0.0, np.inf))
            self._rows.append((total, -fixed, -fixed))
            self._shares[layer, axes] = columns
        return self._shares[layer, axes]

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
