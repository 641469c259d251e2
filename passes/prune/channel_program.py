"""Integer program over the number of kept units of each group and, optionally, the bit width of each layer.

The program has a binary variable for each group and each number of units that it may keep. Costs are products of
the sizes of two axes: a size is split over the levels of one group,

    size_b = sum_l z_l,    least_b x_l <= z_l <= most_b x_l,    size_a * size_b = sum_l a_l z_l

which is exact at integer x. A cost that depends on the bits of a layer is split over its widths in the same way.

The objective is the utility of the kept units. `LogShare` is the sum over groups of log(kept share of the score), so
that no group is emptied because it is expensive; each group is weighted by the number of weights that depend on it.
The groups of a residual branch may all be removed together; if a share e of the sum's energy remains without the
branch, their utility is log(e + (1 - e) * share). `Measured` is the loss of pruning a group alone, to which the
rounding loss of each layer is added.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np

from ..integer_program import IntegerProgram
from .channel_costs import Bits, Costs, Term
from .ranking import Ranked

LEVELS = 12
GAP = 1e-3
ROUNDING = "rounding"
"""Name of the cost of rounding: its loss increase."""


class Utility(Protocol):
    """Objective: value of the kept units."""

    def of(self, group: int, count: int) -> float:
        """Utility of a group with `count` kept units, those with the highest scores; at most 0."""


class LogShare:
    """The logarithm of the kept share of the score."""

    def __init__(self, ranked: Ranked) -> None:
        self._weights = ranked.weights
        self._summed = [np.cumsum([0.0, *np.maximum(values, 1e-9)]) for values in ranked.values]
        self._rest = np.zeros(len(ranked.values))
        for drop in ranked.droppable:
            self._rest[list(drop.groups)] = drop.rest

    def of(self, group: int, count: int) -> float:
        """The weighted logarithm."""
        rest, summed = self._rest[group], self._summed[group]
        share = max(rest + (1 - rest) * summed[count] / summed[-1], 1e-9)
        return float(self._weights[group] * np.log(share))


@dataclass(frozen=True)
class Measured:
    """Losses at some numbers of units of each group, linearly interpolated between them."""

    levels: tuple[np.ndarray, ...]
    losses: tuple[np.ndarray, ...]

    def of(self, group: int, count: int) -> float:
        """The negative loss."""
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
    """The integer program during construction: numbers of units, bit widths, and the parts of products."""

    def __init__(self, ranked: Ranked, costs: Costs) -> None:
        self._ranked, self._costs = ranked, costs
        self._program = IntegerProgram()
        self._levels = levels_of(ranked)
        self._groups = [self._program.choose(len(levels)) for levels in self._levels]
        for drop in ranked.droppable:
            for a, b in pairwise(drop.groups):
                self._program.row([self._groups[a][0], self._groups[b][0]], (1.0, -1.0), low=0.0, high=0.0)
        self._widths = {layer: self._program.choose(len(widths)) for layer, widths in costs.widths.items()}
        self._stored = {
            (layer, width): column
            for layer, columns in self._widths.items()
            for width, column in zip(costs.widths[layer], columns, strict=True)
        }
        self._parts: dict[tuple[int, int], range] = {}
        self._shares: dict[tuple[str, tuple[int, ...]], Mapping[int, int]] = {}

    def solve(self, limits: Mapping[str, float], utility: Utility) -> Solution:
        """Numbers of units, and bit widths, with the highest total utility within the limits."""
        for name, limit in limits.items():
            row, fixed = self._cost(name)
            self._program.budget(list(row), row.values(), limit, fixed=fixed)
        loss: dict[int, float] = {}
        for group, (columns, levels) in enumerate(zip(self._groups, self._levels, strict=True)):
            loss.update(
                (column, -utility.of(group, int(level)))
                for column, level in zip(columns, levels, strict=True)
            )
        fixed = sum(self._add_term(loss, term) for term in self._costs.terms.get(ROUNDING, ()))
        solved = self._program.solve(loss, gap=GAP)
        kept = [
            levels[solved.choice(columns)] for columns, levels in zip(self._groups, self._levels, strict=True)
        ]
        bits = {
            layer: self._costs.widths[layer][solved.choice(columns)]
            for layer, columns in self._widths.items()
        }
        return Solution(np.array(kept, dtype=np.int64), bits, -solved.objective - fixed, solved.gap)

    def _cost(self, name: str) -> tuple[dict[int, float], float]:
        """A cost as a row of the program, and its constant part."""
        row: dict[int, float] = {}
        if name == "channels":
            for group in range(len(self._levels)):
                self._add_size(row, {group: 1}, 0, 1.0)
        fixed = sum(self._add_term(row, term) for term in self._costs.terms.get(name, ()))
        return row, fixed

    def _add_term(self, row: dict[int, float], term: Term) -> float:
        """Adds a term to a row; returns its constant part."""
        if term.when is None:
            return self._add_product(row, term.coefficient, term.axes)
        layer, width = term.when
        column = self._share(layer, term.axes)[width] if term.axes else self._stored[layer, width]
        row[column] = row.get(column, 0.0) + term.coefficient
        return 0.0

    def _add_product(self, row: dict[int, float], factor: float, axes: Sequence[int]) -> float:
        """Adds a product of sizes to a row; returns its constant part."""
        if not axes:
            return factor
        if len(axes) == 1:
            return self._add_size(row, self._costs.per_unit[axes[0]], self._costs.fixed[axes[0]], factor)
        a, b = sorted(axes, key=lambda axis: len(self._costs.per_unit[axis]))
        fixed = self._add_size(
            row, self._costs.per_unit[b], self._costs.fixed[b], factor * self._costs.fixed[a]
        )
        for group, count in self._costs.per_unit[a].items():
            for part, level in zip(self._split(group, b), self._levels[group], strict=True):
                row[part] = row.get(part, 0.0) + factor * count * float(level)
        return fixed

    def _add_size(self, row: dict[int, float], held: Mapping[int, int], fixed: int, factor: float) -> float:
        for group, count in held.items():
            for column, level in zip(self._groups[group], self._levels[group], strict=True):
                row[column] = row.get(column, 0.0) + factor * count * float(level)
        return factor * fixed

    def _share(self, layer: str, axes: tuple[int, ...]) -> Mapping[int, int]:
        """Variables with a product of sizes at the selected width of the layer, and zero at others: columns."""
        if (layer, axes) not in self._shares:
            total: dict[int, float] = {}
            fixed = self._add_product(total, -1.0, axes)
            most, least = (
                float(np.prod([self._costs.size(axis, kept) for axis in axes]))
                for kept in (self._ranked.sizes, self._ranked.fewest)
            )
            widths = self._costs.widths[layer]
            parts = self._program.variables(len(widths), most=most)
            for part, column in zip(parts, self._widths[layer], strict=True):
                self._between(part, column, least, most)
            total.update(dict.fromkeys(parts, 1.0))
            self._program.row(list(total), total.values(), low=-fixed, high=-fixed)
            self._shares[layer, axes] = dict(zip(widths, parts, strict=True))
        return self._shares[layer, axes]

    def _split(self, group: int, axis: int) -> range:
        """Variables z_l with the size of `axis` at the selected level of `group`."""
        if (group, axis) not in self._parts:
            least, most = (
                float(self._costs.size(axis, n)) for n in (self._ranked.fewest, self._ranked.sizes)
            )
            parts = self._parts[group, axis] = self._program.variables(len(self._levels[group]), most=most)
            total = dict.fromkeys(parts, 1.0)
            fixed = self._add_size(total, self._costs.per_unit[axis], self._costs.fixed[axis], -1.0)
            self._program.row(list(total), total.values(), low=-fixed, high=-fixed)
            for part, column in zip(parts, self._groups[group], strict=True):
                self._between(part, column, least, most)
        return self._parts[group, axis]

    def _between(self, part: int, column: int, least: float, most: float) -> None:
        """The variable `part` is 0 if `column` is not chosen, else between the two ends."""
        self._program.row((part, column), (1.0, -most), high=0.0)
        self._program.row((part, column), (1.0, -least), low=0.0)


def _levels(size: int, least: int, multiple: int) -> np.ndarray:
    """At most LEVELS numbers of units, evenly spread, each a multiple or all."""
    steps = np.unique([*range(-(-least // multiple) * multiple, size, multiple), size])
    steps = steps[(steps >= least) & (steps <= size)]
    if len(steps) > LEVELS:
        steps = steps[np.unique(np.linspace(0, len(steps) - 1, LEVELS).round().astype(int))]
    return np.asarray(steps, dtype=np.int64)
