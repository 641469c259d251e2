"""Integer program over the bit width of each layer, solved to proven optimality by HiGHS.

    minimize    sum_l sum_k loss[l, k] x[l, k]
    subject to  sum_k x[l, k] = 1                                    for each layer l
                fixed_r + sum_l sum_k cost_r[l, k] x[l, k] <= r      for each limit r
                x in {0, 1}, and tied layers agree on their bits

Loss and resources may change places: the least of a resource under a limit of the loss. Rows are scaled by their
budget, the objective by the optimum of the linear relaxation. The relaxation also gives each choice a reduced cost:
no solution that takes the choice is nearer to the relaxed optimum. So the program over the nearest choices is solved,
and is the optimum of all once no choice left out could lie as near as what was found (core problems, Balas and Zemel
1980).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain, pairwise
from typing import Literal

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, OptimizeResult, linprog
from scipy.sparse import csr_array, hstack

from ..errors import InfeasibleError, PassError
from ..solver import solve_integers

LOSS = "loss"
TIME_LIMIT_SECONDS = 60.0
GAP = 1e-6  # relative, at which a solution counts as proven
CORE = 1e-4  # of the relaxed optimum: columns that lie nearer are tried first
SMALL = 200  # columns that need no core
_SCALE = 1e3
_SLACK = 1e-9  # of a budget, for sums of floats


@dataclass(frozen=True, slots=True)
class Choice:
    """One way to store a layer: bits of its weights and of its operand, the loss it adds, what it costs by resource."""

    weights: int
    activations: int
    loss: float
    costs: Mapping[str, float] = field(default_factory=dict)

    def amount(self, name: str) -> float:
        """The loss, or the cost of a resource."""
        return self.loss if name == LOSS else self.costs.get(name, 0.0)


@dataclass(frozen=True, slots=True)
class LayerChoices:
    """A layer and the ways to store it."""

    layer: str
    choices: tuple[Choice, ...]


@dataclass(frozen=True, slots=True)
class Limit:
    """At most `most` of a resource, or of `loss`; `fixed` of it is spent whatever is chosen."""

    resource: str
    most: float
    fixed: float = 0.0


@dataclass(frozen=True, slots=True)
class Tie:
    """Layers that share the bits of their weights, or of their operands."""

    kind: Literal["weights", "activations"]
    layers: tuple[str, ...]


@dataclass(frozen=True)
class BitProgram:
    """Layers with their choices, under limits and ties. The order of layers means nothing."""

    layers: tuple[LayerChoices, ...]
    limits: tuple[Limit, ...] = ()
    ties: tuple[Tie, ...] = ()


@dataclass(frozen=True)
class Assignment:
    """A choice for each layer. `gap`: no other one saves more than this share of the loss above the least."""

    chosen: Mapping[str, Choice]
    loss: float
    gap: float

    @property
    def widths(self) -> dict[str, tuple[int, int]]:
        """Bits of the weights and of the operand of each layer."""
        return {name: (choice.weights, choice.activations) for name, choice in self.chosen.items()}

    def amount(self, name: str) -> float:
        """Total loss, or total cost of a resource, over all layers; fixed costs excluded."""
        return sum(choice.amount(name) for choice in self.chosen.values())


def solve_bits(program: BitProgram, *, objective: str = LOSS) -> Assignment:
    """The assignment with the least loss, or the least of another resource, within the limits.

    InfeasibleError, with the nearest that is feasible, if there is none.
    """
    model = _Model.of(program)
    solved = model.solve(objective, program.limits)
    if solved is None:
        raise InfeasibleError(_why_infeasible(model, program.limits))
    return solved


def front(program: BitProgram, resource: str, *, points: int = 16) -> tuple[Assignment, ...]:
    """Assignments from the cheapest in `resource` to the least loss, none of which another one dominates.

    The program's own limits hold but the one of `resource`, of which `points` evenly spaced budgets are solved.
    """
    others = tuple(limit for limit in program.limits if limit.resource != resource)
    free = replace(program, limits=others)
    cheapest, best = solve_bits(free, objective=resource), solve_bits(free)
    budgets = np.linspace(cheapest.amount(resource), best.amount(resource), points)
    model = _Model.of(program)
    solved = [model.solve(LOSS, (*others, Limit(resource, float(budget)))) for budget in budgets]
    ordered = sorted(
        (a for a in (*solved, best) if a is not None), key=lambda a: (a.amount(resource), a.loss)
    )
    kept: list[Assignment] = []
    for assignment in ordered:
        if not kept or assignment.loss < kept[-1].loss - GAP * abs(kept[-1].loss):
            kept.append(assignment)
    return tuple(kept)


@dataclass(frozen=True)
class _Relaxed:
    """Optimum with shares of choices, and what each column adds to it at least: its reduced cost."""

    least: float
    reduced: np.ndarray
    scale: float

    @property
    def tolerance(self) -> float:
        """Numerical tolerance of the solver."""
        return 1e-7 * self.scale


@dataclass(frozen=True)
class _Model:
    """The program as arrays, a column for each choice; layers in the order of their names."""

    layers: tuple[LayerChoices, ...]
    ties: tuple[Tie, ...]

    @staticmethod
    def of(program: BitProgram) -> _Model:
        ordered = tuple(sorted(program.layers, key=lambda item: item.layer))
        if any(a.layer == b.layer for a, b in pairwise(ordered)):
            raise PassError("a layer occurs twice in the program")
        empty = [item.layer for item in ordered if not item.choices]
        if empty:
            raise PassError(f"no way to store {', '.join(empty)}")
        return _Model(ordered, program.ties)

    @cached_property
    def columns(self) -> tuple[Choice, ...]:
        return tuple(chain.from_iterable(item.choices for item in self.layers))

    @cached_property
    def starts(self) -> np.ndarray:
        return np.concatenate([[0], np.cumsum([len(item.choices) for item in self.layers])])

    def amounts(self, name: str) -> np.ndarray:
        """Loss, or cost of a resource, of each column."""
        return np.array([choice.amount(name) for choice in self.columns], dtype=np.float64)

    def solve(self, objective: str, limits: Sequence[Limit]) -> Assignment | None:
        """The optimum; None if nothing is feasible, PassError if time runs out before anything is found."""
        excess = self.excess(objective)
        relaxed = self._relax(excess, limits)
        if relaxed is None:
            return None
        width = CORE * relaxed.least if len(excess) > SMALL else np.inf
        while True:
            core = np.flatnonzero(relaxed.reduced <= width * (1 + GAP) + relaxed.tolerance)
            result = self._run(excess, core, limits, scale=relaxed.scale)
            if result.x is None and result.status not in (2, 4):
                raise PassError(f"the integer program was not solved: {result.message}")
            if result.x is not None:
                picked = core[self._picked(result.x, core)]
                above = float(excess[picked].sum()) - relaxed.least
                if above <= width or len(core) == len(excess):
                    return self._assignment(picked, min(float(result.mip_gap or 0.0), 1.0))
                width = above
            elif len(core) == len(excess):
                return None
            else:
                width = max(width, relaxed.tolerance) * 100

    def excess(self, objective: str) -> np.ndarray:
        """Objective of each column above the minimum of its layer."""
        amounts = self.amounts(objective)
        least = np.minimum.reduceat(amounts, self.starts[:-1]) if len(amounts) else amounts
        above: np.ndarray = amounts - np.repeat(least, np.diff(self.starts))
        return above

    def overrun(self, limits: Sequence[Limit]) -> tuple[float, Assignment]:
        """The least share by which all limits must rise together for something to be feasible, and what then is."""
        rows, upper = self._limit_rows(limits)
        equal, right = self._equations()
        count = len(self.columns)
        raised = csr_array(np.full((len(limits), 1), -_SCALE))
        result = solve_integers(
            np.append(np.zeros(count), _SCALE),
            integrality=np.append(np.ones(count), 0),
            bounds=Bounds(0.0, np.append(np.ones(count), np.inf)),
            constraints=[
                LinearConstraint(hstack([equal, csr_array((equal.shape[0], 1))]), right, right),
                LinearConstraint(hstack([rows, raised]), -np.inf, upper),
            ],
            options={"time_limit": TIME_LIMIT_SECONDS, "mip_rel_gap": GAP},
        )
        if result.x is None:
            raise PassError(f"the integer program was not solved: {result.message}")
        return float(result.x[-1]), self._assignment(self._picked(result.x[:count], np.arange(count)), 0.0)

    def _relax(self, excess: np.ndarray, limits: Sequence[Limit]) -> _Relaxed | None:
        """The program with shares of choices, scaled by its own optimum; None if even that has no solution."""
        rows, upper = self._limit_rows(limits)
        equal, right = self._equations()
        scale = float(excess.sum()) or 1.0
        for _ in range(2):
            found = linprog(
                _SCALE * excess / scale, A_ub=rows, b_ub=upper, A_eq=equal, b_eq=right, method="highs"
            )
            if found.status != 0:
                return None
            least = float(found.fun) * scale / _SCALE
            relaxed = _Relaxed(least, found.lower.marginals * scale / _SCALE, scale)
            if least >= scale / 4 or least <= 1e-12 * scale:
                break
            scale = least
        return relaxed

    def _run(
        self, excess: np.ndarray, core: np.ndarray, limits: Sequence[Limit], *, scale: float
    ) -> OptimizeResult:
        rows, upper = self._limit_rows(limits)
        equal, right = self._equations()
        return solve_integers(
            _SCALE * excess[core] / scale,
            integrality=np.ones(len(core)),
            bounds=Bounds(0.0, 1.0),
            constraints=[
                LinearConstraint(equal[:, core], right, right),
                LinearConstraint(rows[:, core], -np.inf, upper),
            ],
            options={"time_limit": TIME_LIMIT_SECONDS, "mip_rel_gap": GAP},
        )

    def _picked(self, x: np.ndarray, core: np.ndarray) -> np.ndarray:
        """The index within `core` of the chosen column of each layer."""
        starts = np.searchsorted(core, self.starts)
        return np.array([a + int(np.argmax(x[a:b])) for a, b in pairwise(starts)], dtype=np.int64)

    def _assignment(self, picked: np.ndarray, gap: float) -> Assignment:
        chosen = {item.layer: self.columns[c] for item, c in zip(self.layers, picked, strict=True)}
        return Assignment(chosen, float(self.amounts(LOSS)[picked].sum()), gap)

    def _limit_rows(self, limits: Sequence[Limit]) -> tuple[csr_array, np.ndarray]:
        """Costs in thousandths of their budgets."""
        units = [_SCALE / max(abs(limit.most), 1e-30) for limit in limits]
        costs = [self.amounts(limit.resource) * unit for limit, unit in zip(limits, units, strict=True)]
        upper = [
            (limit.most - limit.fixed) * unit + _SLACK * _SCALE
            for limit, unit in zip(limits, units, strict=True)
        ]
        return csr_array(np.array(costs).reshape(len(limits), len(self.columns))), np.array(upper)

    def _equations(self) -> tuple[csr_array, np.ndarray]:
        """One choice for each layer, and ties: matrix and right side."""
        owners = np.repeat(np.arange(len(self.layers)), np.diff(self.starts))
        at, columns, values = [owners], [np.arange(len(owners))], [np.ones(len(owners))]
        count = len(self.layers)
        for row in chain.from_iterable(self._tie_rows(tie) for tie in self.ties):
            at.append(np.full(len(row), count))
            columns.append(np.array(list(row), dtype=np.int64))
            values.append(np.array(list(row.values())))
            count += 1
        entries = np.concatenate(values), (np.concatenate(at), np.concatenate(columns))
        right = (np.arange(count) < len(self.layers)).astype(np.float64)
        return csr_array(entries, shape=(count, len(owners))), right

    def _tie_rows(self, tie: Tie) -> Iterable[Mapping[int, float]]:
        """For each width and each pair of neighbours: chosen there as often as here."""
        at = {item.layer: index for index, item in enumerate(self.layers)}
        members = [at[layer] for layer in tie.layers if layer in at]
        for one, other in pairwise(members):
            spans = [range(self.starts[i], self.starts[i + 1]) for i in (one, other)]
            widths = {_bits(self.columns[c], tie) for span in spans for c in span}
            for width in sorted(widths):
                row = {
                    c: sign
                    for span, sign in zip(spans, (1.0, -1.0), strict=True)
                    for c in span
                    if _bits(self.columns[c], tie) == width
                }
                yield row


def _bits(choice: Choice, tie: Tie) -> int:
    return choice.weights if tie.kind == "weights" else choice.activations


def _why_infeasible(model: _Model, limits: Sequence[Limit]) -> str:
    """Minimum of each resource alone, or of all together if each limit alone is feasible."""
    alone = []
    for limit in limits:
        cheapest = model.solve(limit.resource, ())
        if cheapest is None:
            raise PassError("the ties leave no bits that all tied layers can have")
        needed = cheapest.amount(limit.resource) + limit.fixed
        if needed > limit.most * (1 + _SLACK):
            alone.append(
                f"{limit.resource}: at least {_shown(needed)}, the budget is {_shown(limit.most)}, "
                f"{_shown(needed - limit.most)} too little"
            )
    if alone:
        return f"no bits meet the budget: {'; '.join(alone)}"
    share, nearest = model.overrun(limits)
    spent = {limit: nearest.amount(limit.resource) + limit.fixed for limit in limits}
    binding = [
        f"{limit.resource} {_shown(amount)} (budget {_shown(limit.most)})"
        for limit, amount in spent.items()
        if amount > limit.most
    ]
    return (
        "no bits meet these budgets together, though each alone could be met; "
        f"the nearest needs {100 * share:.2g} % more: {', '.join(binding)}"
    )


def _shown(amount: float) -> str:
    return f"{amount:,.0f}" if abs(amount) >= 1000 or amount == int(amount) else f"{amount:.4g}"
