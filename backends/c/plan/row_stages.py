"""Stages: runs of steps that compute some rows at a time, chosen so that the arena fits with little additional time.

The steps in their order are a path of cuts; a stage is an edge over several steps, with the bytes that are in use
during the stage and its additional time. For a limit of memory the least time is a shortest path. Its bytes are
estimates, since offsets in the arena are assigned later: if the planned arena exceeds the limit, the search is
repeated with a lower limit.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product

from ....ir.along_axis import Window
from ..kernels.base import Offer, aligned
from ..kernels.costs import CoreCosts
from ..target import Machine
from .memory import Block, MemoryPlan, Storage
from .program import Program, RowCalls, RowForm, Stage, Step, Stored
from .row_costs import rows_cost, step_cost
from .row_offers import RowOffer, RowOffers
from .row_order import RowOrder, row_order
from .row_steps import RowStep, row_elements, row_step
from .sharing import share_functions

_FACTORS = (1, 2, 3, 4, 6, 8)
"""Rows per call of the last step of a stage; earlier steps compute as many as it needs, or the same number."""
_MOST_STEPS = 48
_PATHS = 16
_STEP_BYTES = 16

Planned = Callable[[Program], MemoryPlan]
"""The memory plan of a program."""


def plan_within(
    programs: Sequence[Program],
    machine: Machine,
    limit: int | None,
    planned: Planned,
    *,
    smallest: bool = False,
) -> tuple[Program, MemoryPlan, tuple[str, ...], tuple[str, ...]]:
    """A program with the stages that it needs to fit its regions, of `limit` bytes, its plan, its stages in words if
    they are needed, and a note on them if they only save time.

    `programs` are orders of execution to choose from. One that fits without stages is returned unchanged, unless its
    accesses wait and stages are found with which it takes less time. So is the smallest one if no stages make one fit;
    with `smallest`, the one whose stages have the least arena.
    """
    plans = [planned(program) for program in programs]
    least = min(
        range(len(plans)),
        key=lambda number: (
            plans[number].missing_bytes,
            plans[number].wait_cycles,
            plans[number].arena_bytes,
        ),
    )
    program, plan = programs[least], plans[least]
    costs = CoreCosts.of(machine)
    fast = _fast_bytes(plan) if plan.wait_cycles else ()
    if limit is None or not (plan.missing_bytes or fast):
        return program, plan, (), ()
    stages = [RowStages(*pair, machine) for pair in zip(programs, plans, strict=True)]
    tried = [one.waiting_less(size, planned) for size in fast for one in stages]
    if plan.missing_bytes:
        tried += [one.smallest(limit, planned) if smallest else one.fitted(limit, planned) for one in stages]
    found = [staged for staged in tried if staged is not None]
    whole = _time(program, plan, costs)
    times = [_time(*staged, costs) for staged in found]
    fastest = min(range(len(found)), key=times.__getitem__, default=None)
    if fastest is None or (not plan.missing_bytes and times[fastest] >= whole):
        return program, plan, (), ()
    staged, smaller = found[fastest]
    by_rows = f"{'; '.join(_named(staged, stage) for stage in staged.stages)} compute some rows at a time"
    if plan.missing_bytes:
        return staged, smaller, (by_rows,), ()
    less = whole - times[fastest]
    unit = "cycles" if costs.has_cycles else "instructions and wait cycles"
    note = (
        f"{by_rows}: an arena of {smaller.arena_bytes:,} B in place of {plan.arena_bytes:,} B, for {round(less):,} "
        f"fewer predicted {unit} ({100 * less / max(whole, 1):.1f} %)"
    )
    return staged, smaller, (), (note,)


def _fast_bytes(plan: MemoryPlan) -> tuple[int, ...]:
    """Bytes of the regions that are faster than the slowest, than the next faster, and so on."""
    regions = [used.region for used in plan.regions]
    waits = sorted({region.wait_states for region in regions})[:-1]
    return tuple(sum(r.bytes or 0 for r in regions if r.wait_states <= most) for most in reversed(waits))


def _time(program: Program, plan: MemoryPlan, costs: CoreCosts) -> float:
    """The predicted time of a run, with the cycles that accesses wait; an instruction is a cycle of cores without
    published ones.
    """
    return sum(step_cost(program, step, costs).time for step in program.steps) + plan.wait_cycles


def _named(program: Program, stage: Stage) -> str:
    """The layers of a stage, for a note."""
    steps = program.steps[stage.first : stage.stop]
    first, last = (step.source.module or step.results[0].value.name for step in (steps[0], steps[-1]))
    return f"{len(steps)} layers ({first} to {last})"


@dataclass(frozen=True)
class Run:
    """Steps from `first` up to `stop` as a stage; for each its rows, the forms of its calls, and its offer.

    `results` are the values that are read after it.
    """

    first: int
    stop: int
    steps: tuple[RowStep, ...]
    rows: tuple[int, ...]
    forms: tuple[tuple[RowForm, ...], ...]
    offers: tuple[Offer, ...]
    order: RowOrder
    results: frozenset[Stored]

    @cached_property
    def bytes(self) -> int:
        """Bytes of the buffers, and of the working memory of the calls."""
        decoded = sum(offer.working_bytes for offer in self.offers if offer.coded)
        scratch = max((offer.working_bytes for offer in self.offers if not offer.coded), default=0)
        return (
            sum(aligned(buffer.bytes) for buffer in self.order.buffers.values()) + decoded + aligned(scratch)
        )


class RowStages:
    """The stages that a program can have on a machine, and the programs with some of them."""

    def __init__(self, program: Program, plan: MemoryPlan, machine: Machine) -> None:
        self._program, self._plan, self._machine = program, plan, machine
        self._costs = CoreCosts.of(machine)
        found = [row_step(program, number) for number in range(len(program.steps))]
        self._steps = [one if isinstance(one, RowStep) else None for one in found]
        self._reasons = [one if isinstance(one, str) else "" for one in found]
        self._readers: dict[Stored, list[int]] = {}
        for number, step in enumerate(program.steps):
            for stored in step.operands:
                if stored is not None:
                    self._readers.setdefault(stored, []).append(number)
        self._made = {s: number for number, step in enumerate(program.steps) for s in step.results}
        self._offers = RowOffers(program.graph, machine, self._costs)
        self._offered: dict[tuple[Stored, int, frozenset[int], int | None], RowOffer | None] = {}
        self._runs_tried: dict[tuple[int, int, int, bool, bool], Run | None] = {}

    def fitted(self, limit: int, planned: Planned) -> tuple[Program, MemoryPlan] | None:
        """The program with the least estimated time that fits regions of `limit` bytes; None if none is found."""
        bound = limit
        for _ in range(_PATHS):
            path = self._path(bound)
            if path is None:
                return None
            program = self.with_stages(path)
            plan = planned(program)
            if not plan.missing_bytes:
                return self._with_ends(program, path, bound), plan
            bound = min(
                bound - 1,
                max(map(self._peak, path) if path else self._plan.live_bytes.values(), default=bound) - 1,
                bound - (plan.bound - limit),
            )
        return None

    def smallest(self, limit: int, planned: Planned) -> tuple[Program, MemoryPlan] | None:
        """The program with the least estimated arena above a limit; None if no stages make it smaller."""
        low, high = limit, self._plan.arena_bytes
        while high - low > _STEP_BYTES:
            middle = (low + high) // 2
            low, high = (middle, high) if self._path(middle) is None else (low, middle)
        path = self._path(high)
        if not path:
            return None
        program = self.with_stages(path)
        plan = planned(program)
        is_smaller = plan.arena_bytes < self._plan.arena_bytes
        return (self._with_ends(program, path, high), plan) if is_smaller else None

    def waiting_less(self, fast: int, planned: Planned) -> tuple[Program, MemoryPlan] | None:
        """The program with stages that need no more than the `fast` bytes, where steps would wait for other memory.

        None if no stages save time, by estimate, or if the plan does not fit its regions.
        """
        path = self._path(fast, waits=self._plan.waits)
        if not path:
            return None
        program = self.with_stages(path)
        plan = planned(program)
        return None if plan.missing_bytes else (self._with_ends(program, path, fast), plan)

    def _with_ends(self, program: Program, path: Sequence[Run], limit: int) -> Program:
        """The program with the reason why each stage ends where it does."""
        pairs = zip(program.stages, path, strict=True)
        return replace(program, stages=tuple(replace(one, end=self._end(run, limit)) for one, run in pairs))

    def _end(self, run: Run, limit: int) -> str:
        """Why the step behind a run is no part of it."""
        if run.stop == len(self._steps):
            return "it is the last layer"
        following = self._steps[run.stop]
        if following is None:
            return self._reasons[run.stop]
        name = following.step.source.module or following.result.value.name
        if not {one.result for one in run.steps} & {*following.step.operands}:
            return f"{name} does not read its results"
        tried = [
            longer
            for factor, scaled, lean in (*product(_FACTORS, (False, True), (False,)), (1, False, True))
            if (longer := self.run(run.first, run.stop + 1, factor, scaled=scaled, lean=lean)) is not None
        ]
        if not tried:
            return f"no kernels compute {name} some rows at a time with the layers before it"
        fitting = [longer for longer in tried if self._peak(longer) <= limit]
        if not fitting:
            used = min(map(self._peak, tried))
            read = [s.value.name for s in tried[0].results - {following.result}]
            later = (
                f", since {', '.join(f'%{name}' for name in sorted(read))} is read later, too" if read else ""
            )
            return f"with {name} it would take {used:,} B of {limit:,} by estimate{later}"
        more = min(map(self._time, fitting)) - self._time(run)
        unit = "cycles" if self._costs.has_cycles else "instructions"
        return (
            f"with {name} it would take {round(more):,} more {unit}"
            if more > 0
            else f"{name} is faster with the layers behind it"
        )

    def _path(self, limit: int, *, waits: Mapping[int, int] | None = None) -> list[Run] | None:
        """The stages of least time with which every step is estimated to be within the limit.

        With `waits`, the wait cycles by step, single steps may exceed the limit; stages may not, and do not wait.
        """
        count = len(self._program.steps)
        used = [self._plan.live_bytes.get(number, 0) for number in range(count)]
        best: list[tuple[float, list[Run]] | None] = [(0.0, []), *[None] * count]
        for stop in range(1, count + 1):
            before = best[stop - 1]
            if before is not None and (used[stop - 1] <= limit or waits is not None):
                time, runs = before
                best[stop] = time + (waits or {}).get(stop - 1, 0), runs
            for run in self._runs(stop, limit, used):
                earlier, found = best[run.first], best[stop]
                if earlier is None:
                    continue
                time = earlier[0] + self._time(run)
                if found is None or time < found[0]:
                    best[stop] = time, [*earlier[1], run]
        return None if (last := best[count]) is None else last[1]

    def _runs(self, stop: int, limit: int, used: list[int]) -> Iterator[Run]:
        """The stages that end before a step, contain one that exceeds the limit, and are within it themselves."""
        crowded = False
        for first in range(stop - 1, max(-1, stop - 1 - _MOST_STEPS), -1):
            if self._steps[first] is None:
                return
            crowded |= used[first] > limit
            if stop - first < 2 or not crowded:
                continue
            least = self.run(first, stop, 1, scaled=False, lean=True)
            if least is None:
                continue
            if least.bytes > limit:
                return
            if self._peak(least) > limit:
                continue
            seen = set()
            for factor, scaled in product(_FACTORS, (False, True)):
                run = self.run(first, stop, factor, scaled=scaled)
                if run is not None and run.rows not in seen and self._peak(run) <= limit:
                    seen.add(run.rows)
                    yield run
            if least.rows not in seen:
                yield least

    def run(self, first: int, stop: int, factor: int, *, scaled: bool, lean: bool = False) -> Run | None:
        """Steps as a stage; None if they cannot be one.

        A call of the last step computes `factor` rows, or a divisor of all rows below that; calls of earlier steps
        compute the same number or, if `scaled`, as many as it needs. Kernels are the fastest or, if `lean`, the
        fastest with the least working memory.
        """
        key = first, stop, factor, scaled, lean
        if key not in self._runs_tried:
            self._runs_tried[key] = self._tried(first, stop, factor, scaled=scaled, lean=lean)
        return self._runs_tried[key]

    def _tried(self, first: int, stop: int, factor: int, *, scaled: bool, lean: bool) -> Run | None:
        found = [one for one in self._steps[first:stop] if one is not None]
        if len(found) < stop - first:
            return None
        made = {one.result for one in found}
        outputs = set(self._program.outputs)
        later = {s for s in made if s in outputs or any(n >= stop for n in self._readers.get(s, ()))}
        steps = [_between_lines(one, made - later) for one in found]
        if not _pads_alike(steps):
            return None
        rows = _rows(steps, factor, scaled=scaled)
        chosen = self._chosen(steps, rows, 0 if lean else None)
        if chosen is None:
            return None
        if lean:
            scratch_bytes = max(one.offer.scratch_bytes for one in chosen)
            chosen = self._chosen(steps, rows, scratch_bytes) or chosen
        kept = [one.offer for one in chosen]
        whole = set(later)
        for index, (one, offer) in enumerate(zip(steps, kept, strict=True)):
            taken = self._taken(one, offer, made) if one.result in later else {}
            kept[index] = replace(offer, overwrites=tuple(taken), follows={})
            whole |= set(taken.values())
        order = row_order(steps, rows, frozenset(later), frozenset(whole))
        for index, (one, made_by) in enumerate(zip(steps, chosen, strict=True)):
            if one.result in later and not kept[index].overwrites:
                entered = self._entered(one, made_by.offer, order, stop)
                kept[index] = replace(kept[index], overwrites=() if entered is None else (entered,))
        forms = tuple(one.forms for one in chosen)
        return Run(first, stop, tuple(steps), rows, forms, tuple(kept), order, frozenset(later))

    def _taken(self, one: RowStep, offer: Offer, made: Collection[Stored]) -> dict[int, Stored]:
        """The operand whose rows may be in the memory of a whole result: computed in the stage, only for this step."""
        return {
            index: stored
            for index, stored in _row_by_row(one, offer).items()
            if stored in made and len(self._readers[stored]) == 1
        }

    def _entered(self, one: RowStep, offer: Offer, order: RowOrder, stop: int) -> int | None:
        """The operand from before the stage whose rows the rows of a whole result may overwrite."""
        for index, stored in _row_by_row(one, offer).items():
            if (one.result, stored) in order.read_ahead and max(self._readers[stored]) < stop:
                return index
        return None

    def _chosen(
        self, steps: Sequence[RowStep], rows: Sequence[int], scratch_bytes: int | None
    ) -> list[RowOffer] | None:
        """An offer for each step, see `RowOffers.of`; None if one has none."""
        found = []
        for one, count in zip(steps, rows, strict=True):
            key = one.result, count, one.whole, scratch_bytes
            if key not in self._offered:
                self._offered[key] = self._offers.of(one, count, scratch_bytes)
            if (offered := self._offered[key]) is None:
                return None
            found.append(offered)
        return found

    def _time(self, run: Run) -> float:
        """The additional time of a stage compared with its steps one by one."""
        calls = zip(run.steps, run.rows, run.offers, strict=True)
        rows = sum(
            rows_cost(
                offer,
                one.step.form,
                one.height // count,
                run.order.buffers.get(one.result),
                self._costs,
            ).time
            for one, count, offer in calls
        )
        whole = self._program.steps[run.first : run.stop]
        return rows - sum(self._costs.cost(step.offer, step.form).time for step in whole)

    def _peak(self, run: Run) -> int:
        """The estimated bytes in use during a stage: whole values, the buffers and working memory."""
        blocks = [b for b in self._plan.blocks if b.value and b.start < run.stop and b.end >= run.first]
        whole = [b for b in blocks if b.start < run.first or b.end >= run.stop]
        saved = 0
        taken = [
            (one.result, one.step.operands[index])
            for one, offer in zip(run.steps, run.offers, strict=True)
            for index in offer.overwrites
        ]
        for (result, operand), behind in run.order.distances.items():
            distance = 0 if (result, operand) in taken else behind
            low, high = self._block(result), self._block(operand)
            if low and high and low.start >= run.first and high.end < run.stop:
                saved = max(saved, low.bytes + high.bytes - max(low.bytes, distance + high.bytes))
        return sum(b.bytes for b in whole) + run.bytes - saved

    def _block(self, stored: Stored) -> Block | None:
        """The block of the arena of a value in the plan without stages; None outside of the arena.

        Where a result follows its operand, two blocks are at its place in its step: its own is the later one.
        """
        location, number = self._plan.locations[stored], self._made.get(stored, -1)
        if location.storage is not Storage.ARENA:
            return None
        holding = [
            b
            for b in self._plan.blocks
            if b.value
            and b.region == location.index
            and b.start <= number <= b.end
            and b.offset <= location.offset < b.offset + b.bytes
        ]
        return max(holding, key=lambda block: block.start, default=None)

    def with_stages(self, path: Sequence[Run]) -> Program:
        """The program with these runs as stages."""
        steps: list[Step] = []
        stages: list[Stage] = []
        done = 0
        for run in path:
            steps += self._program.steps[done : run.first]
            calls = zip(run.steps, run.rows, run.forms, run.offers, strict=True)
            stage = [_step(one, count, forms, offer, run.order) for one, count, forms, offer in calls]
            stop = len(steps) + len(stage)
            stages.append(
                Stage(len(steps), stop, run.order.calls, run.order.buffers, run.order.distances, run.results)
            )
            steps += stage
            done = run.stop
        steps += self._program.steps[done:]
        built = tuple(replace(step, calls=step.offer.build()) for step in steps)
        return replace(self._program, steps=share_functions(built), stages=tuple(stages))


def _between_lines(one: RowStep, lines: Collection[Stored]) -> RowStep:
    """The step if only these values have line buffers."""
    whole = frozenset(index for index, stored in enumerate(one.step.operands) if stored not in lines)
    return replace(one, whole=whole)


def _row_by_row(one: RowStep, offer: Offer) -> dict[int, Stored]:
    """The operands whose memory the result may take in a call: they have its size and are read row by row."""
    return {
        index: stored
        for index in offer.overwrites
        if (stored := one.step.operands[index]) is not None
        and one.windows[index] == Window()
        and stored.bytes == one.result.bytes
    }


def _step(one: RowStep, rows: int, forms: tuple[RowForm, ...], offer: Offer, order: RowOrder) -> Step:
    """The step that computes this many rows per call."""
    starts: list[int | None] = []
    advances: list[int | None] = []
    for reading in one.readings(rows):
        if reading is None:
            starts.append(None)
            advances.append(None)
        else:
            row, buffer = row_elements(reading.stored), order.buffers.get(reading.stored)
            starts.append(row * (reading.start + (buffer.before if buffer else 0)))
            advances.append(row * reading.advance)
    written = rows * row_elements(one.result)
    calls = RowCalls(forms, tuple(starts), tuple(advances), written)
    return replace(one.step, offer=offer, rows=calls)


def _rows(steps: Sequence[RowStep], factor: int, *, scaled: bool) -> tuple[int, ...]:
    """Rows of each call: `factor`, if `scaled` times the strides after it, as far as they divide the number of all
    rows.

    More rows if otherwise several calls at an edge of a whole operand would have padding, unless that is more than
    twice as many, as with a prime number of rows.
    """
    wanted: dict[Stored, int] = {}
    rows: list[int] = []
    for one in reversed(steps):
        least, together = one.least_rows, one.step.offer.rows_together
        most = max(wanted.get(one.result, factor), together)
        divisors = [count for count in range(1, one.height + 1) if one.height % count == 0]
        counts = [count for count in divisors if count >= least]
        within = [count for count in counts if count <= most] or counts[:1]
        if within[0] > max(most, 2 * least):
            within = [count for count in divisors if count <= most]
        count = max([count for count in within if count % together == 0] or within)
        rows.append(count)
        for reading in one.readings(count):
            if reading is not None and scaled:
                wanted[reading.stored] = max(wanted.get(reading.stored, factor), reading.advance)
    return tuple(reversed(rows))


def _pads_alike(steps: Sequence[RowStep]) -> bool:
    """True if the padding around each value is the same for all its readers."""
    seen: dict[Stored, int] = {}
    for one in steps:
        for index, (stored, padding) in enumerate(zip(one.step.operands, one.paddings, strict=True)):
            if stored is None or padding is None or index in one.whole:
                continue
            if seen.setdefault(stored, padding) != padding:
                return False
    return True
