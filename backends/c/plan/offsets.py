"""Offsets for blocks that live for an interval of steps: blocks that live together share no bytes.

A result may follow an operand that dies in its step: it begins some bytes below, and overwrites what has been read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random

_TRIES = 400
_LARGEST_SEARCH = 300
_WORK = 60_000  # nodes of the exact search times blocks: less than a second

Follows = Mapping[tuple[int, int], int]
"""By (result, operand), both numbers of blocks: the operand begins at least so many bytes behind the result."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A block of `bytes` that is in use from step `start` to step `end`, both included."""

    bytes: int
    start: int
    end: int

    def meets(self, other: Interval) -> bool:
        """Whether both are in use at one step."""
        return self.start <= other.end and other.start <= self.end


@dataclass(frozen=True, slots=True)
class Offsets:
    """Offset of each block, where the highest of them ends, and whether no other offsets end lower."""

    at: tuple[int, ...]
    peak: int
    is_least: bool


def live_bytes(intervals: Sequence[Interval], follows: Follows) -> dict[int, int]:
    """Bytes that the blocks in use take at least, by step.

    A result that follows an operand adds to it the bytes that it begins below, and those that it ends behind it.
    """
    changes: dict[int, int] = {}
    for i in intervals:
        changes[i.start] = changes.get(i.start, 0) + i.bytes
        changes[i.end + 1] = changes.get(i.end + 1, 0) - i.bytes
    saved, found, total = _saved_bytes(intervals, follows), {}, 0
    for step in range(min(changes, default=0), max(changes, default=0)):
        total += changes.get(step, 0)
        found[step] = total - saved.get(step, 0)
    return found


def live_bound(intervals: Sequence[Interval], follows: Follows) -> int:
    """The largest of `live_bytes`: no assignment is smaller."""
    return max(live_bytes(intervals, follows).values(), default=0)


def assign_offsets(intervals: Sequence[Interval], follows: Follows) -> Offsets:
    """Offsets with the lowest peak that is found: the least, if `is_least`.

    Blocks are placed one by one, each at the lowest gap that fits, in several orders. Where none reaches the bound,
    blocks are moved to other places in the order, those at the peak more often, again and again; then it is proven that
    there is no lower peak, or all orders are searched, as far as a limit of steps allows.
    """
    problem = Interference.of(intervals, follows)
    count = len(intervals)
    orders = [
        sorted(range(count), key=lambda i: (-intervals[i].bytes, intervals[i].start, i)),
        sorted(range(count), key=lambda i: (intervals[i].start - intervals[i].end, -intervals[i].bytes, i)),
        sorted(range(count), key=lambda i: (intervals[i].start, -intervals[i].bytes, i)),
        sorted(range(count), key=lambda i: (-intervals[i].end, -intervals[i].bytes, i)),
    ]
    found = min(((problem.placed(order), order) for order in orders), key=lambda pair: pair[0].peak)
    if found[0].is_least or count > _LARGEST_SEARCH:
        return found[0]
    best = _improve(problem, *found)
    while not best.is_least:
        floors = problem.floors(best.peak - 1)
        if floors is None:
            return problem.offsets(best.at, is_least=True)
        lower = _Search(problem, best, floors).best()
        if lower.peak == best.peak:
            return lower
        best = lower
    return best


@dataclass(frozen=True)
class Interference:
    """Blocks, their neighbours (in use at one step), and the distances that neighbours keep.

    `above[i][j]`: the bytes by which j begins behind i, if it begins there.
    """

    intervals: Sequence[Interval]
    above: Sequence[Mapping[int, int]]
    saved: Mapping[int, int]
    bound: int

    @staticmethod
    def of(intervals: Sequence[Interval], follows: Follows) -> Interference:
        above: list[dict[int, int]] = [{} for _ in intervals]
        live: list[int] = []
        for index in sorted(range(len(intervals)), key=lambda index: intervals[index].start):
            live = [other for other in live if intervals[other].end >= intervals[index].start]
            for other in live:
                for low, high in ((index, other), (other, index)):
                    size = intervals[low].bytes
                    above[low][high] = min(follows.get((low, high), size), size)
            live.append(index)
        saved = _saved_bytes(intervals, follows)
        return Interference(intervals, above, saved, live_bound(intervals, follows))

    def placed(self, order: Sequence[int]) -> Offsets:
        """Each block of an order at the least offset that those before it allow."""
        at: dict[int, int] = {}
        for index in order:
            at[index] = self.lowest(index, at)
        return self.offsets([at[index] for index in range(len(at))])

    def lowest(self, index: int, at: Mapping[int, int]) -> int:
        """The least offset of a block that those with an offset in `at` allow."""
        taken = sorted(
            (at[other] - distance, at[other] + self.above[other][index])
            for other, distance in self.above[index].items()
            if other in at
        )
        lowest = 0
        for low, high in taken:  # strictly between the two no block can begin
            if low >= lowest:
                break
            lowest = max(lowest, high)
        return lowest

    def floors(self, peak: int) -> list[int] | None:
        """The least offset of each block below a peak; None if no offsets end there.

        Two blocks in use at one step have one of two orders: the first below the second, or the other way round. If one
        order would end above the peak, the other one must hold, and gives the upper block a least offset.
        """
        floors = [0] * len(self.intervals)
        waiting = set(range(len(floors)))
        while waiting:
            low = waiting.pop()
            for high in self.above[low]:
                if floors[high] + self.above[high][low] + self.intervals[low].bytes <= peak:
                    continue  # `low` may lie above `high`
                least = floors[low] + self.above[low][high]
                if least + self.intervals[high].bytes > peak:
                    return None
                if least > floors[high]:
                    floors[high] = least
                    waiting |= {high, *self.above[high]}
        return floors

    def offsets(self, at: Sequence[int], *, is_least: bool = False) -> Offsets:
        peak = max((offset + i.bytes for offset, i in zip(at, self.intervals, strict=True)), default=0)
        return Offsets(tuple(at), peak, is_least or peak == self.bound)


def _saved_bytes(intervals: Sequence[Interval], follows: Follows) -> dict[int, int]:
    """Bytes by which a step's blocks may take less than their sum, since some follow others."""
    most: dict[tuple[int, int], int] = {}
    for (result, operand), distance in follows.items():
        low, high = intervals[result], intervals[operand]
        together = max(low.bytes, distance + high.bytes)
        for step in range(low.start, high.end + 1):
            most[step, result] = max(most.get((step, result), 0), low.bytes + high.bytes - together)
    saved: dict[int, int] = {}
    for (step, _), size in most.items():
        saved[step] = saved.get(step, 0) + size
    return saved


def _improve(problem: Interference, best: Offsets, order: Sequence[int]) -> Offsets:
    random = Random(0)
    intervals = problem.intervals
    kept = current = list(order)
    found = best
    for _ in range(_TRIES):
        at_peak = [i for i in current if found.at[i] + intervals[i].bytes >= best.peak]
        moved = random.choice(at_peak if at_peak and random.random() < 0.5 else current)
        current.remove(moved)
        current.insert(random.randrange(len(current) + 1), moved)
        found = problem.placed(current)
        if found.peak <= best.peak:
            best, kept = found, list(current)
            if best.is_least:
                break
        else:
            current, found = list(kept), best
    return best


class _Search:
    """Branch and bound over orders of rising offsets: the next block begins nowhere below the one before it.

    Every assignment can be pushed together to one of these. A branch ends where a step cannot hold the blocks that
    are left below the best peak.
    """

    def __init__(self, problem: Interference, best: Offsets, floors: list[int]) -> None:
        self._problem, self._best, self._nodes = problem, best, 0
        self._most = _WORK // len(floors)
        intervals = problem.intervals
        steps = {step for i in intervals for step in (i.start, i.end)}
        self._steps = [[step for step in steps if i.start <= step <= i.end] for i in intervals]
        self._at: list[int | None] = [None] * len(intervals)
        self._floor = floors
        self._left = dict.fromkeys(steps, 0)
        self._members: dict[int, list[int]] = {step: [] for step in steps}
        for index, mine in enumerate(self._steps):
            for step in mine:
                self._left[step] += intervals[index].bytes
                self._members[step].append(index)

    def best(self) -> Offsets:
        """The best that is found; the least if the search came to its end."""
        self._extend(0, 0)
        is_whole = self._nodes < self._most
        return self._problem.offsets(self._best.at, is_least=is_whole)

    def _extend(self, count: int, last: int) -> None:
        self._nodes += 1
        if self._nodes >= self._most or self._best.is_least:
            return
        at, intervals = self._at, self._problem.intervals
        if count == len(at):
            self._best = self._problem.offsets([offset or 0 for offset in at])
            return
        starts = {i: max(self._floor[i], last) for i, offset in enumerate(at) if offset is None}
        lowest_end = min(start + intervals[i].bytes for i, start in starts.items())
        if any(start + intervals[i].bytes >= self._best.peak for i, start in starts.items()):
            return
        chosen = [i for i, start in starts.items() if start < lowest_end]
        chosen.sort(key=lambda i: (starts[i], -intervals[i].bytes * len(self._steps[i]), i))
        for index in chosen:
            self._place(index, starts[index], count)

    def _place(self, index: int, start: int, count: int) -> None:
        size, floor = self._problem.intervals[index].bytes, self._floor
        raised = [
            (other, floor[other])
            for other, distance in self._problem.above[index].items()
            if self._at[other] is None and start + distance > floor[other]
        ]
        self._at[index] = start
        for other, _ in raised:
            floor[other] = start + self._problem.above[index][other]
        for step in self._steps[index]:
            self._left[step] -= size
        if all(self._fits(step, start) for step in self._steps[index]):
            self._extend(count + 1, start)
        for step in self._steps[index]:
            self._left[step] += size
        for other, before in raised:
            floor[other] = before
        self._at[index] = None

    def _fits(self, step: int, start: int) -> bool:
        """Whether the blocks left at a step can end below the best peak."""
        left = [self._floor[i] for i in self._members[step] if self._at[i] is None]
        if not left:
            return True
        lowest = max(min(left), start)
        return lowest + self._left[step] - self._problem.saved.get(step, 0) < self._best.peak
