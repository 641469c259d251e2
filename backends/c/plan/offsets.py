"""Offsets of blocks with lifetimes in steps: blocks that are in use at the same step do not overlap.

A result may follow an operand that dies in its step: it begins some bytes below the operand, and overwrites bytes
that its kernel has already read.

The least peak is found by bisection. For each peak, a search as in disjunctive scheduling (Carlier and Pinson, 1989)
decides if offsets exist: of two blocks in use at the same step, one is below the other. Each chosen order of a pair
raises least offsets and lowers largest ones; a pair with a single remaining order is decided next.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

_MOST_WORK = 3_000_000  # pairs of blocks examined by a search: about a second

Follows = Mapping[tuple[int, int], int]
"""By (result, operand), the numbers of two blocks: the operand begins at least that many bytes after the result."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A block of `bytes` that is in use from step `start` to step `end`, both included."""

    bytes: int
    start: int
    end: int

    def meets(self, other: Interval) -> bool:
        """True if both are in use at the same step."""
        return self.start <= other.end and other.start <= self.end


@dataclass(frozen=True, slots=True)
class Offsets:
    """Offset of each block, the peak (highest end), whether no other offsets have a lower peak, and the work."""

    at: tuple[int, ...]
    peak: int
    is_least: bool
    work: int = 0


@dataclass(frozen=True, slots=True)
class Decision:
    """Offsets that end below a limit, None if there are none, or none are found, the search `is_cut`; and its work."""

    at: tuple[int, ...] | None
    is_cut: bool
    work: int


def live_bytes(intervals: Sequence[Interval], follows: Follows) -> dict[int, int]:
    """Lower bound on the bytes of the blocks in use, by step.

    A result that follows an operand adds to the operand's bytes the bytes by which it begins before the operand, and
    those by which it ends after it.
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
    """The largest of `live_bytes`: no assignment has a lower peak."""
    return max(live_bytes(intervals, follows).values(), default=0)


def assign_offsets(intervals: Sequence[Interval], follows: Follows) -> Offsets:
    """Offsets with the lowest peak that is found; `is_least` if it is proven to be the minimum.

    Blocks are placed one by one, each at the lowest gap that fits, in several orders. If none of these reaches the
    bound, the peaks in between are searched: the result is proven unless a search is cut off by its limit of work. The
    last results are cached: the search for an order and the choice of kernels ask for the same blocks again.
    """
    return _assigned(tuple(intervals), tuple(sorted(follows.items())))


@lru_cache(maxsize=64)
def _assigned(intervals: tuple[Interval, ...], follows: tuple[tuple[tuple[int, int], int], ...]) -> Offsets:
    problem = Interference.of(intervals, dict(follows))
    count = len(intervals)
    orders = [
        _by_size(intervals),
        sorted(range(count), key=lambda i: (intervals[i].start - intervals[i].end, -intervals[i].bytes, i)),
        sorted(range(count), key=lambda i: (intervals[i].start, -intervals[i].bytes, i)),
        sorted(range(count), key=lambda i: (-intervals[i].end, -intervals[i].bytes, i)),
    ]
    best = min((problem.placed(order) for order in orders), key=lambda found: found.peak)
    is_proven, work = True, _MOST_WORK
    lowest = peak = problem.bound
    while lowest < best.peak:
        search = _Search(problem, peak, work // 2)
        at = search.offsets()
        work -= search.work
        if at is None:
            lowest, is_proven = peak + 1, is_proven and not search.is_cut
        else:
            best = problem.offsets(at)
        peak = (lowest + best.peak) // 2
    return replace(best, is_least=is_proven, work=_MOST_WORK - work)


def offsets_below(problem: Interference, limit: int, most_work: int = _MOST_WORK) -> Decision:
    """Whether blocks have offsets that end below a limit."""
    if problem.bound >= limit:
        return Decision(None, is_cut=False, work=0)
    placed = problem.placed(_by_size(problem.intervals))
    if placed.peak < limit:
        return Decision(placed.at, is_cut=False, work=0)
    search = _Search(problem, limit - 1, most_work)
    at = search.offsets()
    return Decision(None if at is None else tuple(at), search.is_cut, search.work)


def _by_size(intervals: Sequence[Interval]) -> list[int]:
    """Numbers of blocks, the largest first."""
    return sorted(range(len(intervals)), key=lambda i: (-intervals[i].bytes, intervals[i].start, i))


@dataclass(frozen=True)
class Interference:
    """Blocks, their neighbours (in use at the same step), and the distances between neighbours.

    `above[i][j]`: the bytes by which j begins after i, if it is above i.
    """

    intervals: Sequence[Interval]
    above: Sequence[Mapping[int, int]]
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
        return Interference(intervals, above, live_bound(intervals, follows))

    def placed(self, order: Sequence[int]) -> Offsets:
        """Each block of an order at the least offset that the blocks before it allow."""
        at: dict[int, int] = {}
        for index in order:
            at[index] = self.lowest(index, at)
        return self.offsets([at[index] for index in range(len(at))])

    def lowest(self, index: int, at: Mapping[int, int]) -> int:
        """The least offset of a block that the placed blocks, those in `at`, allow."""
        taken = sorted(
            (at[other] - distance, at[other] + self.above[other][index])
            for other, distance in self.above[index].items()
            if other in at
        )
        lowest = 0
        for low, high in taken:  # a block cannot begin strictly between the two
            if low >= lowest:
                break
            lowest = max(lowest, high)
        return lowest

    def offsets(self, at: Sequence[int]) -> Offsets:
        """The offsets with their peak, which is known to be minimal only if it equals the bound."""
        peak = max((offset + i.bytes for offset, i in zip(at, self.intervals, strict=True)), default=0)
        return Offsets(tuple(at), peak, peak == self.bound)


def _saved_bytes(intervals: Sequence[Interval], follows: Follows) -> dict[int, int]:
    """Bytes by which a step's blocks may need less than their sum, since some follow others."""
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


class _Search:
    """Search for offsets with a given peak; `is_cut` if its limit of work ended it."""

    def __init__(self, problem: Interference, peak: int, most_work: int) -> None:
        self._above, self._most_work = problem.above, most_work
        self._least = [0] * len(problem.intervals)
        self._largest = [peak - i.bytes for i in problem.intervals]
        self._pairs = [(i, j) for i, above in enumerate(problem.above) for j in above if i < j]
        self._below: set[tuple[int, int]] = set()
        self._chosen: list[tuple[int, int]] = []  # in the order of choice, for backtracking
        self._changed: list[tuple[list[int], int, int]] = []
        self.work, self.is_cut = 0, False

    def offsets(self) -> list[int] | None:
        """Offsets of all blocks; None if there are none, or if none are found."""
        alternatives: list[tuple[int, int, tuple[int, int]]] = []
        is_open = min(self._largest, default=0) >= 0 and self._propagate(list(range(len(self._least))))
        while is_open and (pair := self._conflict()) is not None:
            if self.work > self._most_work:
                self.is_cut = True
                return None
            alternatives.append((len(self._chosen), len(self._changed), pair[::-1]))
            is_open = self._choose(*pair)
            while not is_open and alternatives:
                chosen, changed, other = alternatives.pop()
                self._take_back(chosen, changed)
                is_open = self._choose(*other)
        return self._least if is_open else None

    def _conflict(self) -> tuple[int, int] | None:
        """The pair with the least room among the pairs that overlap at their least offsets, with the order that has
        more room.
        """
        above, least, largest = self._above, self._least, self._largest
        found, tightest = None, 0
        self.work += len(self._pairs)
        for i, j in self._pairs:
            over_i, over_j = least[i] + above[i][j], least[j] + above[j][i]
            if least[j] >= over_i or least[i] >= over_j:
                continue
            room_i, room_j = largest[j] - over_i, largest[i] - over_j
            if found is None or min(room_i, room_j) < tightest:
                found, tightest = (i, j) if room_i >= room_j else (j, i), min(room_i, room_j)
        return found

    def _choose(self, low: int, high: int) -> bool:
        """Places a block below another one; False if no offsets remain for one of them."""
        changed: list[int] = []
        return self._place(low, high, changed) and self._propagate(changed)

    def _place(self, low: int, high: int, changed: list[int]) -> bool:
        if (low, high) not in self._below:
            self._below.add((low, high))
            self._chosen.append((low, high))
        distance, least, largest = self._above[low][high], self._least, self._largest
        if least[high] < least[low] + distance:
            self._set(least, high, least[low] + distance)
            changed.append(high)
        if largest[low] > largest[high] - distance:
            self._set(largest, low, largest[high] - distance)
            changed.append(low)
        return least[high] <= largest[high] and least[low] <= largest[low]

    def _propagate(self, changed: list[int]) -> bool:
        """Chooses all orders that are the only possible ones; False if a pair has none."""
        above, least, largest = self._above, self._least, self._largest
        while changed:
            i = changed.pop()
            self.work += len(above[i])
            for j, distance in above[i].items():
                is_below = (i, j) in self._below or least[j] + above[j][i] > largest[i]
                is_above = (j, i) in self._below or least[i] + distance > largest[j]
                if is_below and is_above:
                    return False
                if is_below and not self._place(i, j, changed):
                    return False
                if is_above and not self._place(j, i, changed):
                    return False
        return True

    def _set(self, offsets: list[int], index: int, value: int) -> None:
        self._changed.append((offsets, index, offsets[index]))
        offsets[index] = value

    def _take_back(self, chosen: int, changed: int) -> None:
        while len(self._chosen) > chosen:
            self._below.remove(self._chosen.pop())
        while len(self._changed) > changed:
            offsets, index, value = self._changed.pop()
            offsets[index] = value
