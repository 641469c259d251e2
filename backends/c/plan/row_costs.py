"""Cost of steps. The cost of a step by rows includes all its calls, and the rows that it moves."""

from __future__ import annotations

from ..kernels.base import Offer
from ..kernels.costs import CoreCosts, Cost
from ..kernels.portable.copying import Place, copy
from .program import LineBuffer, Program, Step

_AROUND_A_CALL = 30.0
"""Instructions of a call by rows in addition to those of its kernel, as counted on a Cortex-M4."""


def step_cost(program: Program, step: Step, costs: CoreCosts) -> Cost:
    """The cost of a step, with all its calls if there are several."""
    if step.rows is None:
        return costs.cost(step.offer, step.form)
    return rows_cost(step.offer, step.form, step.rows.count, program.buffers.get(step.results[0]), costs)


def rows_cost(offer: Offer, form: str, calls: int, buffer: LineBuffer | None, costs: CoreCosts) -> Cost:
    """Cost of `calls` calls of a kernel; `buffer` is the line buffer of its result, None if the result is whole."""
    around = Cost(_AROUND_A_CALL, _AROUND_A_CALL if costs.has_cycles else None)
    cost = (costs.cost(offer, form) + around).times(calls)
    return cost if buffer is None or not buffer.moves else cost + _moving(buffer, costs)


def _moving(buffer: LineBuffer, costs: CoreCosts) -> Cost:
    dense, type = Place((1,)), buffer.stored.value.type
    call, work = copy(type.dtype, (buffer.moved // buffer.moves,), dense, dense)
    offer = Offer.of_calls("rows", (buffer.stored.layout,), (buffer.stored.layout,), work, call)
    return costs.cost(offer, type.dtype.value).times(buffer.moves)
