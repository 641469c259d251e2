"""Order of execution by the offsets of blocks, where few orders are possible.

What the search for an order counts are bytes in use, which blocks in one piece cannot always reach. Parts of a program
run one after the other in every order, so blocks that are made and last read in some of them are the same in all orders
of the others. Of such a window of parts, the orders are listed in which less than the arena is in use at each step: if
the blocks of none of them have offsets below the arena, no order of the program has. Else the best one is taken.

Orders whose blocks meet as those of an order without such offsets, and perhaps more of them, are not searched again.
Views run just behind what they view, and steps that read constants alone just before their first reader: there they
lengthen no life.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, product
from math import prod

from .memory import arena_alignment, arena_blocks
from .offsets import Follows, Interference, Interval, assign_offsets, offsets_below
from .order import Memory, Ordered, width_of
from .program import Program

_MOST_ORDERS = 2000
OFFSETS_WORK = 6_000_000  # pairs of blocks, see `offsets`: some two seconds
_STEP_WORK = 60  # pairs in whose time the blocks of a step are found
_RUN_WORK = 20  # pairs in whose time a step of an order is listed
_WIDTHS = (1, 2, 3, 4)

_Orders = Sequence[tuple[int, ...]]
"""Numbers of steps in each order of a part, or in the order of each part."""
_Meetings = frozenset[tuple[tuple[int, ...], tuple[int, ...], int, int]]
"""Pairs of blocks that are in use at one step, and the distances that they keep; a block is its bytes and its maker."""


def refine_order(ordered: Ordered, *, most_work: int = OFFSETS_WORK) -> Ordered:
    """The order of the least offsets that is found, and the bytes that no order takes less than with any offsets."""
    found = assign_offsets(*arena_blocks(ordered.program, ports_in_arena=ordered.ports_in_arena))
    if found.peak <= ordered.bound_bytes:
        return ordered
    return _Refinement(ordered, found.peak, most_work).refined()


class _Refinement:
    """The order of each part as far as it is improved, its arena, and the bytes that no order takes less than."""

    def __init__(self, ordered: Ordered, peak: int, most_work: int) -> None:
        self._ordered, self._program, self._parts = ordered, ordered.program, ordered.parts
        self._work = most_work
        self._alignment = arena_alignment(self._program, ports_in_arena=ordered.ports_in_arena)
        self._chosen: _Orders = [tuple(part) for part in self._parts]
        self._bound, self._peak = ordered.bound_bytes, peak
        self._memory = Memory.of(self._program, ports_in_arena=ordered.ports_in_arena)
        self._steps = range(len(self._program.steps))
        self._made = {stored: n for n in self._steps for stored in self._program.steps[n].results}
        self._last_read = {
            s: n for n in self._steps for s in self._program.steps[n].operands if s is not None
        }
        self._last_read |= dict.fromkeys(self._program.outputs, len(self._steps))
        self._readers: dict[int, list[int]] = {}
        for step in self._steps:
            for needed in self._memory.steps[step].needs:
                self._readers.setdefault(needed, []).append(step)
        self._live = [self._memory.start]
        for step in self._steps:
            self._live.append(self._memory.after(step, (1 << step) - 1, self._live[-1]))
        self._listed: dict[int, tuple[int, _Orders | None]] = {}
        self._impossible: list[_Meetings] = []

    def refined(self) -> Ordered:
        """The result of passes over all windows, as long as they improve it."""
        given, before = self._chosen, 0
        while self._peak != before and self._peak > self._bound and self._work > 0:
            before = self._peak
            for window in self._windows():
                if self._peak <= self._bound or self._work <= 0:
                    break
                self._improve(window)
        program = self._program if self._chosen is given else self._in_order(self._chosen)
        return replace(self._ordered, program=program, bound_bytes=self._bound)

    def _windows(self) -> Iterator[range]:
        """A few parts at a time, then the longest runs of parts that have few orders."""
        count = len(self._parts)
        for width in _WIDTHS:
            yield from (range(first, first + width) for first in range(count - width + 1))
        counts = [len(self._orders(part) or ()) or _MOST_ORDERS + 1 for part in range(count)]
        start = 0
        for stop in range(count):
            if prod(counts[start : stop + 1]) > _MOST_ORDERS and stop - start > _WIDTHS[-1]:
                yield range(start, stop)
            while prod(counts[start : stop + 1]) > _MOST_ORDERS:
                start += 1
        if count - start > _WIDTHS[-1]:
            yield range(start, count)

    def _improve(self, window: range) -> None:
        """Take the best order that is found of the parts of a window, or prove that none has a smaller arena."""
        within = slice(window.start, window.stop)
        limit = self._peak
        least, is_proven = self._below(window, self._chosen[within], limit)
        if least is not None or not is_proven:  # other windows decide
            return
        listed = [orders for part in window if (orders := self._orders(part)) is not None]
        if len(listed) < len(window) or prod(map(len, listed)) > _MOST_ORDERS:
            return
        best: _Orders | None = None
        for some in product(*listed):
            least, is_exact = self._below(window, some, limit)
            is_proven = is_proven and is_exact
            if least is not None:
                best, limit = some, least
            if limit <= self._bound or self._work <= 0:
                is_proven = False
                break
        if is_proven:
            self._bound = max(self._bound, limit)
        if best is not None:
            tried = [*self._chosen[: window.start], *best, *self._chosen[window.stop :]]
            arena = self._arena(tried)
            if arena <= self._peak:
                self._chosen, self._peak = tried, arena

    def _arena(self, orders: _Orders) -> int:
        """The arena of the program with its parts in these orders."""
        program = self._in_order(orders)
        found = assign_offsets(*arena_blocks(program, ports_in_arena=self._ordered.ports_in_arena))
        self._work -= found.work + _STEP_WORK * len(program.steps)
        return found.peak

    def _in_order(self, orders: _Orders) -> Program:
        return replace(self._program, steps=tuple(self._program.steps[number] for number in chain(*orders)))

    def _below(self, window: range, orders: _Orders, limit: int) -> tuple[int | None, bool]:
        """The least peak below a limit of the blocks of some parts, None if none is found, and whether that is proven.

        `orders` are those of the parts of the window.
        """
        intervals, follows, names = self._blocks(window, tuple(chain(*orders)))
        problem = Interference.of(intervals, follows)
        self._work -= len(intervals) ** 2
        meetings = frozenset(
            (names[i], names[j], distance, problem.above[j].get(i, 0))
            for i, above in enumerate(problem.above)
            for j, distance in [(i, 0), *above.items()]
            if i <= j
        )
        if any(known <= meetings for known in self._impossible):
            return None, True
        found = offsets_below(problem, limit, self._work)
        self._work -= found.work
        if found.at is None:
            if not found.is_cut:
                self._impossible.append(meetings)
            return None, not found.is_cut
        least = assign_offsets(intervals, follows)
        self._work -= least.work
        return least.peak, least.is_least

    def _blocks(
        self, window: range, order: Sequence[int]
    ) -> tuple[Sequence[Interval], Follows, Sequence[tuple[int, ...]]]:
        """The blocks that are made and last read in a window, which follow others, and numbers that tell them apart.

        The parts are a program of their own: what enters and leaves them are its inputs and outputs.
        """
        first, stop = self._parts[window.start].start, self._parts[window.stop - 1].stop
        begins, ends = window.start == 0, window.stop == len(self._parts)
        steps = tuple(self._program.steps[number] for number in order)
        read = dict.fromkeys(stored for step in steps for stored in step.operands if stored is not None)
        outside = {*self._program.inputs, *(s for s in read if self._made.get(s, first) < first)}
        inputs = tuple(s for s in read if s in outside)
        made = [stored for step in steps for stored in step.results]
        outputs = tuple(s for s in (*inputs, *made) if self._last_read.get(s, -1) >= stop)
        part = replace(self._program, steps=steps, inputs=inputs, outputs=outputs)
        in_arena = self._ordered.ports_in_arena
        intervals, follows = arena_blocks(
            part, ports_in_arena=in_arena or not begins, alignment=self._alignment
        )
        self._work -= _STEP_WORK * len(steps)
        keeps_end = ends and (in_arena or begins)
        kept = [
            number
            for number, it in enumerate(intervals)
            if (it.start >= 0 or begins) and (it.end < len(steps) or keeps_end)
        ]
        at = {number: position for position, number in enumerate(kept)}
        followed = {(at[i], at[j]): distance for (i, j), distance in follows.items() if i in at and j in at}
        inside = [intervals[number] for number in kept]
        numbers = [-1, *(number - first for number in order), len(order)]  # of steps, by time
        names: list[tuple[int, ...]] = [(it.bytes, numbers[it.start + 1]) for it in inside]
        seen: dict[tuple[int, ...], int] = {}
        for index, name in enumerate(names):
            seen[name] = seen.get(name, 0) + 1
            names[index] = (*name, seen[name])
        return inside, followed, names

    def _orders(self, number: int) -> _Orders | None:
        """The orders of a part in which less than the arena is in use at each step; None if they are many."""
        limit, found = self._listed.get(number, (-1, None))
        if limit != self._peak:
            found = self._list(self._parts[number])
            self._listed[number] = self._peak, found
        return found

    def _list(self, part: range) -> _Orders | None:
        ran = (1 << part.start) - 1
        ready = (n for n in part if not self._memory.steps[n].is_source and self._is_ready(n, ran))
        start = self._with_views(_Begun(part, (), ran, self._live[part.start], tuple(ready)))
        if start is None:
            return []
        found: list[tuple[int, ...]] = []
        dead = set[int]()  # sets of steps behind which no order is within the limit
        begun = [(start, iter(start.ready), 0)]
        while begun:
            state, left, before = begun[-1]
            step = next(left, None)
            if not state.ready:
                found.append((*state.order, *(number for number in part if not state.ran >> number & 1)))
            if step is None:
                begun.pop()
                if len(found) == before:
                    dead.add(state.ran)
            elif (following := self._after(state, step)) is not None and following.ran not in dead:
                begun.append((following, iter(following.ready), len(found)))
            if len(found) > _MOST_ORDERS or self._work <= 0:
                return None
        return found

    def _after(self, state: _Begun, step: int) -> _Begun | None:
        """A step run, the sources that it needs before it, and views behind it; None beyond the limit."""
        needed = (n for n in sorted(self._memory.steps[step].needs) if not state.ran >> n & 1)
        for number in (*needed, step):
            following = self._run(state, number)
            if following is None:
                return None
            state = following
        return self._with_views(state)

    def _with_views(self, state: _Begun) -> _Begun | None:
        views = [n for n in state.ready if self._program.steps[n].offer.views is not None]
        while views:
            following = self._run(state, views[0])
            if following is None:
                return None
            state = following
            views = [n for n in state.ready if self._program.steps[n].offer.views is not None]
        return state

    def _run(self, state: _Begun, step: int) -> _Begun | None:
        self._work -= _RUN_WORK * width_of(len(self._steps))
        if self._memory.during(step, state.ran, state.live) >= self._peak:
            return None
        ran = state.ran | 1 << step
        readers = [n for n in self._readers.get(step, ()) if n in state.part and n not in state.ready]
        freed = (n for n in readers if self._is_ready(n, ran))
        ready = (*(n for n in state.ready if n != step), *freed)
        live = self._memory.after(step, state.ran, state.live)
        return _Begun(state.part, (*state.order, step), ran, live, ready)

    def _is_ready(self, step: int, ran: int) -> bool:
        """Whether all that a step needs has run, or is made of constants alone."""
        steps = self._memory.steps
        return all(ran >> needed & 1 or steps[needed].is_source for needed in steps[step].needs)


@dataclass(frozen=True, slots=True)
class _Begun:
    """The beginning of an order of a part: its steps, all that have run, bytes in use, and what may run next."""

    part: range
    order: tuple[int, ...]
    ran: int
    live: int
    ready: tuple[int, ...]
