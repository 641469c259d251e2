"""Order of execution with the least memory: an exact search over the sets of executed steps.

The memory in use after some steps depends only on the set of these steps, not on their order. The search extends sets
step by step, always the set with the lowest peak so far, so that the first complete order has the least peak of all
(Dijkstra's algorithm for the bottleneck of a path). A step that neither raises the peak nor leaves more memory in use
can run next without loss, and other orders are not examined. A step that reads only constants can run without loss
just before its first reader. Steps that every order runs at the same point divide the program into parts, which are
searched one after the other.

The memory of a step is a lower bound on that of the plan: results that overwrite operands, views, and operands at
their position in a concatenation cost nothing more. So the least peak of the search is a bound for every plan in
every order. A search that is cut off keeps the given order, and returns the bound that it has proven.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from .memory import arena_alignment
from .program import Program, Step, Stored

_SET_BITS = 1000
ORDER_WORK = 500_000  # steps that are tried or stored as ready: about a second


@dataclass(frozen=True)
class Ordered:
    """A program in the order that was found, the peak of its bytes in use, and the least peak of any order.

    Both are lower bounds for plans; `is_least` is True if no order has a lower peak. `parts` are runs of steps that
    every order completes before it begins the next one.
    """

    program: Program
    peak_bytes: int
    bound_bytes: int
    parts: tuple[range, ...]
    ports_in_arena: bool

    @property
    def is_least(self) -> bool:
        """True if the order is proven to have the least peak."""
        return self.peak_bytes <= self.bound_bytes


def order_steps(program: Program, *, ports_in_arena: bool, most_work: int = ORDER_WORK) -> Ordered:
    """The program in an order with the least peak; unchanged if its order is one, or if none is found.

    States in place are not supported: their new values must not be written before the old ones are read.
    """
    memory = Memory.of(program, ports_in_arena=ports_in_arena)
    most_work //= width_of(len(program.steps))
    given = list(range(len(program.steps)))
    peak = memory.peak(given)
    least = max(map(memory.least_at, given), default=0)
    parts = tuple(_parts(memory.steps))
    if peak <= least:
        return Ordered(program, peak, least, parts, ports_in_arena)
    order: list[int] = []
    bound, work, live = least, most_work, memory.start
    for part in parts:
        search = _Search(memory, part, live, bound, work)
        order += search.order()
        bound, work, live = max(bound, search.bound), work - search.work, search.left
    reached = memory.peak(order)
    if reached >= peak:
        return Ordered(program, peak, min(bound, peak), parts, ports_in_arena)
    steps = tuple(program.steps[number] for number in order)
    return Ordered(replace(program, steps=steps), reached, bound, parts, ports_in_arena)


def width_of(steps: int) -> int:
    """Factor by which a step takes longer to try: a set of steps is a number of so many bits."""
    return 1 + steps // _SET_BITS


@dataclass
class _Group:
    """Memory of a value and its views: bytes, the steps that read it, and those that move it into their result.

    Sets of steps are the bits of an integer; a group that lives to the end has a reader after the last step. `made`
    is the step that computes it, none for an input.
    """

    root: Stored
    bytes: int
    made: int = 0
    readers: int = 0
    movers: int = 0


@dataclass
class _StepMemory:
    """Groups that a step reads and writes, its working memory, and the steps whose results it needs.

    `saves` are the bytes by which its result needs less if a group dies in it; `moves` are groups that become part of
    it.
    """

    reads: tuple[int, ...]
    makes: tuple[int, ...]
    scratch: int
    needs: frozenset[int]
    moves: tuple[int, ...]
    saves: Mapping[int, int]

    @property
    def is_source(self) -> bool:
        """True if the step reads only constants, and needs no memory but that of its results."""
        return not self.reads and not self.scratch


@dataclass(frozen=True)
class _Lent:
    """A buffer of the caller that can hold one of some groups at a time."""

    bytes: int
    groups: frozenset[int]


@dataclass(frozen=True)
class Memory:
    """Memory of the steps of a program; `start` is the number of bytes in use before the first step (inputs)."""

    groups: Sequence[_Group]
    steps: Sequence[_StepMemory]
    lent: Sequence[_Lent]
    start: int

    @staticmethod
    def of(program: Program, *, ports_in_arena: bool) -> Memory:
        reader = _Reader(program, ports_in_arena=ports_in_arena)
        for number, step in enumerate(program.steps):
            reader.read(number, step)
        reader.give_outputs()
        start = sum(group.bytes for group in reader.groups[: len(program.inputs)] if group.readers)
        steps = [replace(it, saves=reader.saves(number)) for number, it in enumerate(reader.steps)]
        return Memory(reader.groups, steps, reader.lent, start)

    def during(self, step: int, ran: int, live: int) -> int:
        """Bytes in use during a step, after the steps `ran`, which leave `live` bytes in use."""
        it = self.steps[step]
        saved = max((size for group, size in it.saves.items() if self._dies(group, step, ran)), default=0)
        moved = sum(self._counted(group, ran) for group in it.moves)
        made = sum(self.groups[group].bytes for group in it.makes)
        return live + made + it.scratch - saved - moved - self._lent_bytes(step, ran)

    def after(self, step: int, ran: int, live: int) -> int:
        """Bytes in use after a step."""
        it = self.steps[step]
        for group in it.reads:
            if self.groups[group].movers >> step & 1 or self._dies(group, step, ran):
                live -= self._counted(group, ran)
        return live + sum(self.groups[group].bytes for group in it.makes if self.groups[group].readers)

    def peak(self, order: Sequence[int]) -> int:
        """Peak of the bytes in use in an order."""
        ran, live, peak = 0, self.start, self.start
        for step in order:
            peak = max(peak, self.during(step, ran, live))
            live = self.after(step, ran, live)
            ran |= 1 << step
        return peak

    def least_at(self, step: int) -> int:
        """Lower bound of the bytes in use during a step, in any order: those of its operands, results and working
        memory.
        """
        it = self.steps[step]
        read = sum(self.groups[group].bytes for group in it.reads if not self.groups[group].movers)
        made = sum(self.groups[group].bytes for group in it.makes)
        lent = sum(lent.bytes for lent in self.lent)
        return read + made + it.scratch - max(it.saves.values(), default=0) - lent

    def is_monotone(self, step: int) -> bool:
        """True if a step that leaves no more memory in use also does so after further steps.

        This does not hold if a step moves its operands into its result, or if the caller's memory holds one of
        several groups.
        """
        it = self.steps[step]
        if any(self.groups[group].movers for group in it.reads):
            return False
        return not any(lent.groups & {*it.reads, *it.makes} for lent in self.lent)

    def _dies(self, group: int, step: int, ran: int) -> bool:
        return self.groups[group].readers & ~ran == 1 << step

    def _lent_bytes(self, step: int, ran: int) -> int:
        """Bytes of the groups in use that the caller's memory can hold."""
        return sum(lent.bytes for lent in self.lent if any(self._in_use(g, step, ran) for g in lent.groups))

    def _in_use(self, group: int, step: int, ran: int) -> bool:
        it = self.groups[group]
        return bool(it.made & (ran | 1 << step)) and bool(it.readers & ~ran or it.made >> step & 1)

    def _counted(self, group: int, ran: int) -> int:
        return 0 if self.groups[group].movers & ran else self.groups[group].bytes


class _Reader:
    """Reads groups and steps from a program: buffers as the plan may assign them, each with its fewest bytes."""

    def __init__(self, program: Program, *, ports_in_arena: bool) -> None:
        self._program, self._ports_in_arena = program, ports_in_arena
        self._alignment = arena_alignment(program, ports_in_arena=ports_in_arena)
        self._group_of: dict[Stored, int] = {}
        self._made_by: dict[Stored, int] = {}
        self.groups: list[_Group] = []
        self.steps: list[_StepMemory] = []
        self.lent: list[_Lent] = []
        for stored in program.inputs:
            self._new(stored, stored.bytes if ports_in_arena else 0)

    def read(self, number: int, step: Step) -> None:
        """Adds a step."""
        operands = [stored for stored in step.operands if stored is not None and stored in self._group_of]
        reads = tuple(dict.fromkeys(self._group_of[stored] for stored in operands))
        needs = frozenset(self._made_by[stored] for stored in operands if stored in self._made_by)
        for group in reads:
            self.groups[group].readers |= 1 << number
        if step.offer.views is not None:
            viewed = step.operands[0]
            assert viewed is not None
            if viewed not in self._group_of:  # a constant
                self._new(viewed, 0)
            self._group_of |= dict.fromkeys(step.results, self._group_of[viewed])
            makes: tuple[int, ...] = ()
        else:
            makes = tuple(self._new(stored, stored.bytes, made=1 << number) for stored in step.results)
        self._made_by |= dict.fromkeys(step.results, number)
        moves = tuple(dict.fromkeys(self._moved(step)))
        for group in moves:
            self.groups[group].movers |= 1 << number
        self.steps.append(
            _StepMemory(reads, makes, self._aligned(step.offer.working_bytes), needs, moves, {})
        )

    def give_outputs(self) -> None:
        """Outputs live to the end, or are the caller's memory, with the operands that their results may overwrite."""
        for stored in self._program.outputs:
            group = self._group_of.get(stored)
            if group is None:
                continue
            if self._ports_in_arena or not self._is_whole(stored, group):
                self.groups[group].readers |= 1 << len(self._program.steps)
            else:
                self._leave(group)

    def saves(self, number: int) -> dict[int, int]:
        """Bytes by which the first result of a step needs less if an operand dies in it, by the operand's group."""
        step, it = self._program.steps[number], self.steps[number]
        if not it.makes:
            return {}
        result, found = self.groups[it.makes[0]].bytes, dict[int, int]()
        for index in step.offer.overwrites:
            operand = step.operands[index]
            group = None if operand is None else self._group_of.get(operand)
            if group is None or operand is None or operand.bytes < step.results[0].bytes:
                continue
            if self._is_whole(operand, group) and self.groups[group].bytes:
                found[group] = result
        for index, distance in step.offer.follows.items():
            operand = step.operands[index]
            group = None if operand is None else self._group_of.get(operand)
            if group is not None:
                size = self.groups[group].bytes
                saved = result + size - max(result, self._aligned(distance) + size)
                found[group] = max(found.get(group, 0), saved)
        return {group: saved for group, saved in found.items() if saved > 0}

    def _new(self, stored: Stored, size: int, *, made: int = 0) -> int:
        self._group_of[stored] = len(self.groups)
        self.groups.append(_Group(stored, self._aligned(size), made))
        return self._group_of[stored]

    def _moved(self, step: Step) -> Iterator[int]:
        """Groups whose memory may become a part of the result, so that a call copies nothing."""
        for call in step.calls:
            operand = None if call.places is None else step.operands[call.places]
            group = None if operand is None else self._group_of.get(operand)
            if operand is not None and group is not None and self._is_whole(operand, group):
                yield group

    def _is_whole(self, stored: Stored, group: int) -> bool:
        return stored.bytes == self.groups[group].root.bytes

    def _leave(self, group: int) -> None:
        """Moves a group to the caller's memory, with the operands that it overwrites or consists of."""
        if not self.groups[group].bytes or not self.groups[group].made:
            return
        size, self.groups[group].bytes = self.groups[group].bytes, 0
        below, moved = self._below(group)
        for part in (*moved, *(below if len(below) == 1 else ())):
            self._leave(part)
        if len(below) > 1:
            found = set[int]()
            for one in below:
                self._lend(one, found)
            self.lent.append(_Lent(size, frozenset(found)))

    def _lend(self, group: int, found: set[int]) -> None:
        """Collects a group and those that it may overwrite or consist of."""
        if group not in found and self.groups[group].bytes:
            found.add(group)
            below, moved = self._below(group)
            for part in (*below, *moved):
                self._lend(part, found)

    def _below(self, group: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Groups which the step of a group may all overwrite, and groups of which it may consist."""
        root = self.groups[group].root
        number = self._made_by.get(root)
        if number is None or self._program.steps[number].results[0] != root:
            return (), ()
        step = self._program.steps[number]
        operands = [step.operands[index] for index in step.offer.overwrites]
        whole = [s for s in operands if s is not None and s in self._group_of and s.bytes == root.bytes]
        below = tuple(dict.fromkeys(self._group_of[stored] for stored in whole))
        return tuple(g for g in below if self.groups[g].bytes), self.steps[number].moves

    def _aligned(self, size: int) -> int:
        return -(-size // self._alignment) * self._alignment


def _parts(steps: Sequence[_StepMemory]) -> Iterator[range]:
    """Runs of steps that every order completes before it begins the next one, in linear time.

    A run ends with a step that no dependency skips: all steps before it lead to it, and all steps after it depend on
    it or on sources, which run as late as possible.
    """
    count = len(steps)
    read = {needed for step in steps for needed in step.needs}
    opened = [0] * (count + 1)
    for number, step in enumerate(steps):
        ends = [(needed, number) for needed in step.needs] or [(-1, number)] * (not step.is_source)
        for first, last in ends if number in read else [*ends, (number, count)]:
            if last > first + 1:
                opened[first + 1] += 1
                opened[last] -= 1
    start = covering = 0
    for number in range(count):
        covering += opened[number]
        if not covering:
            yield range(start, number + 1)
            start = number + 1
    if start < count:
        yield range(start, count)


class _Search:
    """Search for an order of a part that runs after all steps before it; `left` is the number of bytes in use after
    it.
    """

    def __init__(self, memory: Memory, part: range, live: int, bound: int, most_work: int) -> None:
        self._memory, self._part, self._live = memory, part, live
        self._most_work = most_work
        self.bound, self.work = bound, 0
        ran, peak = (1 << part.start) - 1, bound
        for step in part:
            peak = max(peak, memory.during(step, ran, live))
            live = memory.after(step, ran, live)
            ran |= 1 << step
        self.left = live
        self._peak = peak

    def order(self) -> list[int]:
        """The order with the least peak above the bound, which the search raises; the given order if the search is
        cut off.
        """
        if self._peak <= self.bound:
            return list(self._part)
        return self._found() or list(self._part)

    def _found(self) -> list[int] | None:
        memory, part = self._memory, self._part
        readers: dict[int, list[int]] = {}
        for step in part:
            for needed in memory.steps[step].needs:
                readers.setdefault(needed, []).append(step)
        start = (1 << part.start) - 1
        first = tuple(step for step in part if all(n < part.start for n in memory.steps[step].needs))
        came: dict[int, tuple[int, int]] = {}
        lowest, closed = {start: self.bound}, set[int]()
        heap = [(self.bound, len(part), self._live, start, first)]
        while heap:
            peak, left, live, ran, ready = heapq.heappop(heap)
            if ran in closed:
                continue
            closed.add(ran)
            self.bound = peak
            if not left:
                return self._way(came, ran, start)
            if self.work >= self._most_work:
                return None
            for step, during, after in self._choices(peak, live, ran, ready):
                reached, highest = ran | 1 << step, max(peak, during)
                if highest >= min(self._peak, lowest.get(reached, self._peak)):
                    continue
                lowest[reached], came[reached] = highest, (ran, step)
                freed = (s for s in readers.get(step, ()) if self._is_ready(s, reached))
                following = (*(s for s in ready if s != step), *freed)
                self.work += len(following)
                heapq.heappush(heap, (highest, left - 1, after, reached, following))
        self.bound = self._peak
        return None

    def _choices(self, peak: int, live: int, ran: int, ready: Sequence[int]) -> list[tuple[int, int, int]]:
        """Steps that may run next, with the bytes in use during and after them; a single one if it can run without
        loss.
        """
        found = []
        for step in ready:
            self.work += 1
            during, after = self._memory.during(step, ran, live), self._memory.after(step, ran, live)
            if during <= peak and after <= live and self._memory.is_monotone(step):
                return [(step, during, after)]
            found.append((step, during, after))
        return found

    def _is_ready(self, step: int, ran: int) -> bool:
        return all(ran >> needed & 1 for needed in self._memory.steps[step].needs)

    def _way(self, came: Mapping[int, tuple[int, int]], ran: int, start: int) -> list[int]:
        order = []
        while ran != start:
            ran, step = came[ran]
            order.append(step)
        return order[::-1]
