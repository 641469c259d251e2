"""Integer programs: 0/1 variables, groups of them of which exactly one is chosen, budgets; solved by HiGHS.

    program = IntegerProgram()
    widths = program.choose(3)                            # three 0/1 variables, exactly one of them is 1
    program.budget(widths, (200.0, 400.0, 800.0), most=500.0)
    program.solve(losses).choice(widths)                  # index of the chosen one: the least loss within the budget

Budgets are scaled to thousands, and so is the objective, so that the solver's absolute tolerances are relative.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, linprog, milp
from scipy.sparse import coo_array, csr_array, vstack

from .errors import InfeasibleError, PassError

SLACK = 1e-9  # relative tolerance of a budget, for float sums
TIME_LIMIT_SECONDS = 60.0
_SCALE = 1e3
_INFEASIBLE = (
    2,
    4,
)  # statuses of scipy's milp; 4 is "unbounded or infeasible", and no program here is unbounded

Columns = Sequence[int] | np.ndarray
Values = Collection[float] | np.ndarray


@dataclass(frozen=True)
class Solution:
    """Value of each variable, the objective, and the proven relative gap to the optimum."""

    values: np.ndarray
    objective: float
    gap: float

    def choice(self, group: range) -> int:
        """Index within its group of the chosen variable."""
        return int(np.argmax(self.values[group.start : group.stop]))


@dataclass(frozen=True)
class Relaxation:
    """Optimum with fractional 0/1 variables, and the reduced cost of each: a lower bound on the cost of choosing it."""

    objective: float
    reduced: np.ndarray


class IntegerProgram:
    """Variables and rows during construction. A variable is identified by its column."""

    def __init__(self) -> None:
        self._most: list[float] = []
        self._is_whole: list[bool] = []
        self._rows: list[tuple[np.ndarray, np.ndarray]] = []
        self._ends: list[tuple[float, float]] = []

    def variables(self, count: int, *, most: float = 1.0, whole: bool = False) -> range:
        """New variables from 0 to `most`; with `whole` they are integers."""
        start = len(self._most)
        self._most += [most] * count
        self._is_whole += [whole] * count
        return range(start, start + count)

    def choose(self, count: int) -> range:
        """New 0/1 variables of which exactly one is 1."""
        group = self.variables(count, whole=True)
        self.row(group, np.ones(count), low=1.0, high=1.0)
        return group

    def row(self, columns: Columns, values: Values, *, low: float = -np.inf, high: float = np.inf) -> None:
        """A linear constraint: low <= sum of values times variables <= high."""
        self._rows.append((np.array(columns, dtype=np.int64), np.array([*values], dtype=np.float64)))
        self._ends.append((low, high))

    def budget(
        self, columns: Columns, costs: Values, most: float, *, fixed: float = 0.0, raised: int | None = None
    ) -> None:
        """Limits a cost to `most`, with `fixed` of it always used; the variable `raised` adds shares of `most`."""
        unit = _SCALE / max(abs(most), 1e-30)
        extra = () if raised is None else (raised,)
        values = np.concatenate([np.array([*costs], dtype=np.float64) * unit, [-_SCALE] * len(extra)])
        self.row([*columns, *extra], values, high=(most - fixed) * unit + SLACK * _SCALE)

    def solve(
        self, objective: Mapping[int, float] | np.ndarray, *, gap: float, scale: float | None = None
    ) -> Solution:
        """Minimum of the objective, within the relative `gap`; `scale` is its order of magnitude.

        InfeasibleError if no solution meets all rows, PassError if time runs out before any solution is found.
        """
        costs, scale = self._scaled(objective, scale)
        rows, (low, high) = self._matrix(range(len(self._rows))), np.array(self._ends).T
        with _nothing_printed():
            result = milp(
                costs,
                integrality=np.array(self._is_whole, dtype=np.int64),
                bounds=Bounds(0.0, np.array(self._most)),
                constraints=LinearConstraint(rows, low, high),
                options={"time_limit": TIME_LIMIT_SECONDS, "mip_rel_gap": gap},
            )
        if result.x is None and result.status in _INFEASIBLE:
            raise InfeasibleError("the integer program has no solution: no choice is within all limits")
        if result.x is None:
            raise PassError(f"the integer program was not solved: {result.message}")
        return Solution(result.x, float(result.fun) * scale / _SCALE, min(float(result.mip_gap or 0.0), 1.0))

    def relax(
        self, objective: Mapping[int, float] | np.ndarray, *, scale: float | None = None
    ) -> Relaxation | None:
        """The optimum with fractional variables; None if infeasible."""
        costs, scale = self._scaled(objective, scale)
        equal = [index for index, (low, high) in enumerate(self._ends) if low == high]
        below = [index for index, (low, high) in enumerate(self._ends) if low < high < np.inf]
        above = [index for index, (low, high) in enumerate(self._ends) if -np.inf < low < high]
        found = linprog(
            costs,
            A_ub=vstack([self._matrix(below), -self._matrix(above)]),
            b_ub=[*(self._ends[index][1] for index in below), *(-self._ends[index][0] for index in above)],
            A_eq=self._matrix(equal),
            b_eq=[self._ends[index][0] for index in equal],
            bounds=np.stack([np.zeros(len(costs)), self._most], axis=1),
            method="highs",
        )
        if found.status != 0:
            return None
        return Relaxation(float(found.fun) * scale / _SCALE, found.lower.marginals * scale / _SCALE)

    def _scaled(
        self, objective: Mapping[int, float] | np.ndarray, scale: float | None
    ) -> tuple[np.ndarray, float]:
        costs = np.zeros(len(self._most))
        if isinstance(objective, Mapping):
            costs[list(objective)] = list(objective.values())
        else:
            costs[:] = objective
        used = np.flatnonzero(costs)
        scale = scale or float((np.abs(costs[used]) * np.array(self._most)[used]).sum()) or 1.0
        return _SCALE * costs / scale, scale

    def _matrix(self, listed: Sequence[int]) -> csr_array:
        chosen = [self._rows[index] for index in listed]
        at = np.repeat(np.arange(len(chosen)), [len(columns) for columns, _ in chosen])
        columns = np.concatenate([np.zeros(0, dtype=np.int64), *(columns for columns, _ in chosen)])
        values = np.concatenate([np.zeros(0), *(values for _, values in chosen)])
        return coo_array((values, (at, columns)), shape=(len(chosen), len(self._most))).tocsr()


@contextmanager
def _nothing_printed() -> Iterator[None]:
    """Suppresses the line that HiGHS prints for some solutions, independent of its options."""
    sys.stdout.flush()
    kept = os.dup(1)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nowhere)
