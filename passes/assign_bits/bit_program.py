"""Integer program over the bit width of each layer, solved to proven optimality by HiGHS.

    minimize    sum_l sum_k loss[l, k] x[l, k]
    subject to  sum_k x[l, k] = 1                                    for each layer l
                fixed_r + sum_l sum_k cost_r[l, k] x[l, k] <= r      for each limit r
                x in {0, 1}, and tied layers agree on their bits

Loss and resources can be exchanged: a resource is then minimized under a limit of the loss. Rows are scaled by their
budget, the objective by the optimum of the linear relaxation. The relaxation also gives each choice a reduced cost, a
lower bound on the distance of any solution with this choice from the relaxed optimum. So the program over the choices
with the least reduced costs is solved; its optimum is that of the whole program if no omitted choice could be as near
(core problems, Balas and Zemel 1980).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain, pairwise
from typing import Literal

import numpy as np

from ..errors import InfeasibleError, PassError
from ..integer_program import SLACK, IntegerProgram, Relaxation, Solution

LOSS = "loss"
GAP = 1e-6  # relative gap at which a solution counts as proven
CORE = 1e-4  # share of the relaxed optimum: columns with a smaller reduced cost are tried first
SMALL = 200  # number of columns that are solved without a core
_TOLERANCE = 1e-7  # tolerance of the solver, relative to the scale


@dataclass(frozen=True, slots=True)
class Choice:
    """One storage of a layer: bits of its weights and operand, loss increase, and cost by resource."""

    weights: int
    activations: int
    loss: float
    costs: Mapping[str, float] = field(default_factory=dict)

    def amount(self, name: str) -> float:
        """The loss, or the cost of a resource."""
        return self.loss if name == LOSS else self.costs.get(name, 0.0)


@dataclass(frozen=True, slots=True)
class LayerChoices:
    """A layer and its choices."""

    layer: str
    choices: tuple[Choice, ...]


@dataclass(frozen=True, slots=True)
class Limit:
    """Upper limit `most` of a resource, or of `loss`; `fixed` is the amount independent of the choice."""

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
    """Layers with their choices, under limits and ties. The order of layers is irrelevant."""

    layers: tuple[LayerChoices, ...]
    limits: tuple[Limit, ...] = ()
    ties: tuple[Tie, ...] = ()


@dataclass(frozen=True)
class Assignment:
    """A choice for each layer. `gap`: no other assignment reduces the loss by more than this share of it."""

    chosen: Mapping[str, Choice]
    loss: float
    gap: float

    @property
    def widths(self) -> dict[str, tuple[int, int]]:
        """Bit widths of the weights and of the operand of each layer."""
        return {name: (choice.weights, choice.activations) for name, choice in self.chosen.items()}

    def amount(self, name: str) -> float:
        """Total loss, or total cost of a resource, over all layers; fixed costs excluded."""
        return sum(choice.amount(name) for choice in self.chosen.values())


def solve_bits(program: BitProgram, *, objective: str = LOSS) -> Assignment:
    """The assignment with the least loss, or the least of another resource, within the limits.

    InfeasibleError, with the nearest feasible assignment, if there is none.
    """
    model = _Model.of(program)
    solved = model.solve(objective, program.limits)
    if solved is None:
        raise InfeasibleError(_why_infeasible(model, program.limits))
    return solved


def front(program: BitProgram, resource: str, *, points: int = 16) -> tuple[Assignment, ...]:
    """Assignments from the cheapest in `resource` to the least loss, none of which is dominated by another.

    The program's own limits hold, except that of `resource`, for which `points` evenly spaced budgets are solved.
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
            raise PassError(f"no bit widths for {', '.join(empty)}")
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
        """The optimum; None if infeasible, PassError if time runs out before any solution is found."""
        excess = self.excess(objective)
        relaxed, scale = self._relax(excess, limits)
        if relaxed is None:
            return None
        tolerance = _TOLERANCE * scale
        width = CORE * relaxed.objective if len(excess) > SMALL else np.inf
        while True:
            core = np.flatnonzero(relaxed.reduced <= width * (1 + GAP) + tolerance)
            program, groups = self._program(core, limits)
            try:
                solution = program.solve(excess[core], gap=GAP, scale=scale)
            except InfeasibleError:
                if len(core) == len(excess):
                    return None
                width = max(width, tolerance) * 100
                continue
            picked = core[_chosen(solution, groups)]
            above = float(excess[picked].sum()) - relaxed.objective
            if above <= width or len(core) == len(excess):
                return self._assignment(picked, solution.gap)
            width = above

    def excess(self, objective: str) -> np.ndarray:
        """Objective of each column above the minimum of its layer."""
        amounts = self.amounts(objective)
        least = np.minimum.reduceat(amounts, self.starts[:-1]) if len(amounts) else amounts
        above: np.ndarray = amounts - np.repeat(least, np.diff(self.starts))
        return above

    def overrun(self, limits: Sequence[Limit]) -> tuple[float, Assignment]:
        """The least share by which all limits must be raised together to be feasible, and the assignment for it."""
        program, groups = self._program(np.arange(len(self.columns)), ())
        (share,) = program.variables(1, most=np.inf)
        self._add_budgets(program, np.arange(len(self.columns)), limits, raised=share)
        solution = program.solve({share: 1.0}, gap=GAP, scale=1.0)
        return float(solution.values[share]), self._assignment(_chosen(solution, groups), 0.0)

    def _relax(self, excess: np.ndarray, limits: Sequence[Limit]) -> tuple[Relaxation | None, float]:
        """The program with fractional choices (None if infeasible), and its scale: its optimum."""
        program, _ = self._program(np.arange(len(excess)), limits)
        scale = float(excess.sum()) or 1.0
        relaxed = program.relax(excess, scale=scale)
        if relaxed is not None and 1e-12 * scale < relaxed.objective < scale / 4:
            scale = relaxed.objective
            relaxed = program.relax(excess, scale=scale)
        return relaxed, scale

    def _program(self, core: np.ndarray, limits: Sequence[Limit]) -> tuple[IntegerProgram, list[range]]:
        """The program over the columns in `core`, and the choices of each layer."""
        program = IntegerProgram()
        groups = [program.choose(end - start) for start, end in pairwise(np.searchsorted(core, self.starts))]
        place = {column: index for index, column in enumerate(core.tolist())}
        for row in chain.from_iterable(self._tie_rows(tie) for tie in self.ties):
            inside = {place[column]: sign for column, sign in row.items() if column in place}
            program.row(list(inside), inside.values(), low=0.0, high=0.0)
        self._add_budgets(program, core, limits)
        return program, groups

    def _add_budgets(
        self, program: IntegerProgram, core: np.ndarray, limits: Sequence[Limit], *, raised: int | None = None
    ) -> None:
        for limit in limits:
            costs = self.amounts(limit.resource)[core]
            program.budget(range(len(core)), costs, limit.most, fixed=limit.fixed, raised=raised)

    def _assignment(self, picked: np.ndarray, gap: float) -> Assignment:
        chosen = {item.layer: self.columns[c] for item, c in zip(self.layers, picked, strict=True)}
        return Assignment(chosen, float(self.amounts(LOSS)[picked].sum()), gap)

    def _tie_rows(self, tie: Tie) -> Iterable[Mapping[int, float]]:
        """For each width and each pair of neighbours: chosen equally often in both."""
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


def _chosen(solution: Solution, groups: Sequence[range]) -> np.ndarray:
    """The chosen column of each group."""
    return np.array([group.start + solution.choice(group) for group in groups], dtype=np.int64)


def _bits(choice: Choice, tie: Tie) -> int:
    return choice.weights if tie.kind == "weights" else choice.activations


def _why_infeasible(model: _Model, limits: Sequence[Limit]) -> str:
    """Minimum of each resource alone, or of all together if each limit alone is feasible."""
    alone = []
    for limit in limits:
        cheapest = model.solve(limit.resource, ())
        if cheapest is None:
            raise PassError("tied layers have no bit widths in common")
        needed = cheapest.amount(limit.resource) + limit.fixed
        if needed > limit.most * (1 + SLACK):
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
        "no bits meet these budgets together, although each could be met alone; the nearest assignment needs "
        f"{100 * share:.2g} % more: {', '.join(binding)}"
    )


def _shown(amount: float) -> str:
    return f"{amount:,.0f}" if abs(amount) >= 1000 or amount == int(amount) else f"{amount:.4g}"
