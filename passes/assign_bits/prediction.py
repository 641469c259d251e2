"""The best mix whose prediction on the target meets the budget.

The program over bits has the cost of each layer, but not that of code that several layers share. So the chosen mix is
predicted as a whole, and the program is corrected by the difference until the prediction fits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import combinations

from ..base import Cost
from ..errors import InfeasibleError
from .bit_program import Assignment, BitProgram, Limit, solve_bits

ROUNDS = 8
Predict = Callable[[Assignment], Cost]


def meet(program: BitProgram, objective: str, predict: Predict | None) -> tuple[Assignment, Cost | None]:
    """The mix and its prediction, which is None without a cost model; InfeasibleError if no mix was found.

    If corrections do not converge, each set of widths is tried separately: its shared code is nearly constant.
    """
    if predict is None:
        return solve_bits(program, objective=objective), None
    try:
        return _meet_within(program, objective, predict)
    except InfeasibleError as err:
        found = []
        for part in _parts(program):
            with suppress(InfeasibleError):
                found.append(_meet_within(part, objective, predict))
        if not found:
            raise err
        return min(found, key=lambda pair: pair[0].amount(objective))


def _meet_within(program: BitProgram, objective: str, predict: Predict) -> tuple[Assignment, Cost]:
    """Solves, predicts the mix, and solves again with the missing costs until the prediction fits."""
    for _ in range(ROUNDS):
        solved = solve_bits(program, objective=objective)
        cost = predict(solved)
        found = [_excess(limit, solved, cost) for limit in program.limits]
        if all(excess.over <= 0 for excess in found):
            return solved, cost
        limits = (replace(e.limit, fixed=e.limit.fixed + e.error) if e.over > 0 else e.limit for e in found)
        program = replace(program, limits=tuple(limits))
    missed = "; ".join(f"{e.limit.resource} by {e.over:,.0f}" for e in found if e.over > 0)
    raise InfeasibleError(f"no mix was found whose prediction meets the budget; the last one misses {missed}")


@dataclass(frozen=True)
class _Excess:
    """Difference between predicted cost and the program's cost of an assignment, for one limit."""

    limit: Limit
    over: float
    error: float


def _parts(program: BitProgram) -> Iterator[BitProgram]:
    """The program with fewer widths of weights; layers without these widths keep all of theirs."""
    widths = sorted({choice.weights for item in program.layers for choice in item.choices})
    for count in range(1, len(widths)):
        for allowed in combinations(widths, count):
            items = []
            for item in program.layers:
                left = tuple(choice for choice in item.choices if choice.weights in allowed)
                items.append(replace(item, choices=left or item.choices))
            yield replace(program, layers=tuple(items))


def _excess(limit: Limit, solved: Assignment, cost: Cost) -> _Excess:
    real = {
        "flash": cost.flash_bytes,
        "instructions": cost.instructions,
        "cycles": cost.cycles,
    }.get(limit.resource)
    if limit.resource.startswith("ram"):
        real = cost.arena_bytes
    taken = solved.amount(limit.resource) + limit.fixed
    return _Excess(limit, 0.0, 0.0) if real is None else _Excess(limit, real - limit.most, real - taken)
