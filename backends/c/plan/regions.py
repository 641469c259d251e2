"""Regions of RAM, and the assignment of blocks to them.

Each access to a block costs the wait states of its region. The blocks in use at one step must fit their region, and
the cost of the accesses is minimized by an integer program,

    minimize    sum of cost[b, r] * x[b, r]                                       over blocks b and regions r
    subject to  sum over r of x[b, r] = 1                                         for each b
                sum over b in use at t of bytes[b] * x[b, r] - saved[t, r] <= bytes[r]    for each step t and r

which is solved by branch and bound on its linear relaxation (Land and Doig, 1960); the relaxation is a lower bound. An
assignment is valid only if offsets that fit are found, which the program does not include.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from scipy.optimize import linprog
from scipy.sparse import coo_array, csr_array

from ....specs.target import RamRegion, Target
from .offsets import Follows, Interference, Interval, Offsets, assign_offsets, live_bound

STATE_BLOCK = "state"
"""Name of the block of states, which is in no region of the plan."""

_NODES = 60  # nodes of the branch and bound: less than a second
_LARGEST_SEARCH = 200
_PREFERENCE = 1 / 64
"""Wait states that an access counts for each earlier region of the same speed."""
_UNUSED = 1 / 1024
"""Accesses counted for a block without any."""
_WHOLE = 1e-6


@dataclass(frozen=True, slots=True)
class Region:
    """A region of RAM: its C parameter, its size (None without a limit), and the wait cycles of an access."""

    name: str = "arena"
    bytes: int | None = None
    wait_states: int = 0

    def missing(self, peak: int) -> int:
        """Bytes that the region lacks for blocks with a peak of `peak`."""
        return 0 if self.bytes is None else max(peak - self.bytes, 0)


def regions_of(target: Target) -> tuple[Region, ...]:
    """The regions of a target: one, `arena`, if it names none."""
    if target.regions is None:
        return (Region(bytes=target.ram),)
    return tuple(
        Region(name, region.bytes, region.wait_states)
        if isinstance(region, RamRegion)
        else Region(name, region)
        for name, region in target.regions.items()
    )


@dataclass(frozen=True, slots=True)
class Placement:
    """Region and offset of each block, the peak of each region, and the cost of the accesses.

    `missing` are the bytes that the regions lack. No placement costs less than `bound`. `is_least`: no other one
    needs fewer bytes; `is_cheapest`: no other one that fits waits less.
    """

    regions: tuple[int, ...]
    at: tuple[int, ...]
    peaks: tuple[int, ...]
    missing: int
    cost: float
    bound: float
    is_least: bool
    is_cheapest: bool


def place_blocks(
    intervals: Sequence[Interval], follows: Follows, accesses: Sequence[int], regions: Sequence[Region]
) -> Placement:
    """The cheapest placement that is found; if it does not fit, few bytes are missing.

    `accesses` are the loads and stores of each block. The result is deterministic.
    """
    program = _Program(intervals, follows, accesses, regions)
    if len(regions) == 1:
        return program.placed((0,) * len(intervals))
    found = program.placed(*min(map(program.first_fit, program.orders), key=program.worth))
    return program.search(found) if 0 < len(intervals) <= _LARGEST_SEARCH else found


@dataclass(frozen=True)
class _Relaxation:
    """Optimum of the linear program, and the share of each block, by row, in each region."""

    cost: float
    shares: np.ndarray


_FirstFit = tuple[tuple[int, ...], Sequence[Mapping[int, int]]]
"""The region of each block, and by region the offsets of its blocks."""


@dataclass(frozen=True)
class _Program:
    """Blocks and regions."""

    intervals: Sequence[Interval]
    follows: Follows
    accesses: Sequence[int]
    regions: Sequence[Region]

    @cached_property
    def costs(self) -> np.ndarray:
        """Cost of each block, by row, in each region."""
        waits = [region.wait_states for region in self.regions]
        prices = [wait + _PREFERENCE * waits[:number].count(wait) for number, wait in enumerate(waits)]
        return np.outer([max(count, _UNUSED) for count in self.accesses], prices)

    @property
    def is_by_waits(self) -> bool:
        """True if costs are only wait cycles, or only preferences, and not a sum of both."""
        speeds = len({region.wait_states for region in self.regions})
        return speeds in (1, len(self.regions))

    @property
    def orders(self) -> list[list[int]]:
        """Orders in which blocks are placed one by one: by accesses per byte and step in use, by size."""
        numbers = range(len(self.intervals))

        def density(index: int) -> float:
            block = self.intervals[index]
            return self.accesses[index] / (max(block.bytes, 1) * (block.end - block.start + 1))

        return [
            sorted(numbers, key=lambda index: (-density(index), index)),
            sorted(numbers, key=lambda index: (-self.accesses[index], index)),
            sorted(numbers, key=lambda index: (-self.intervals[index].bytes, index)),
        ]

    def first_fit(self, order: Sequence[int]) -> _FirstFit:
        """Each block of an order in the cheapest region that has room for it; else in the one that lacks the fewest
        bytes.
        """
        gaps = Interference.of(self.intervals, self.follows)
        at: list[dict[int, int]] = [{} for _ in self.regions]
        chosen = [0] * len(order)
        for index in order:
            size = self.intervals[index].bytes
            lowest = [gaps.lowest(index, taken) for taken in at]
            chosen[index] = min(
                range(len(self.regions)),
                key=lambda r: (self.regions[r].missing(lowest[r] + size), self.costs[index, r], r),
            )
            at[chosen[index]][index] = lowest[chosen[index]]
        return tuple(chosen), at

    def worth(self, fit: _FirstFit) -> tuple[int, float]:
        """Bytes that the regions lack, and the cost; smaller is better."""
        chosen, at = fit
        peaks = [max((o + self.intervals[i].bytes for i, o in taken.items()), default=0) for taken in at]
        return self._missing(peaks), self._cost(chosen)

    def placed(self, chosen: tuple[int, ...], known: Sequence[Mapping[int, int]] | None = None) -> Placement:
        """The blocks in these regions, at the lowest offsets that are found, with those in `known`."""
        at = [0] * len(chosen)
        found: list[Offsets] = []
        for number in range(len(self.regions)):
            own = [index for index, region in enumerate(chosen) if region == number]
            offsets = self._offsets(own)
            if known is not None:
                peak = max((known[number][i] + self.intervals[i].bytes for i in own), default=0)
                if peak < offsets.peak:
                    offsets = Offsets(tuple(known[number][i] for i in own), peak, is_least=False)
            found.append(offsets)
            for index, offset in zip(own, offsets.at, strict=True):
                at[index] = offset
        peaks = tuple(offsets.peak for offsets in found)
        cost = self._cost(chosen)
        is_only = len(self.regions) == 1
        return Placement(
            chosen,
            tuple(at),
            peaks,
            self._missing(peaks),
            cost,
            cost if is_only else 0.0,
            found[0].is_least if is_only else sum(peaks) == live_bound(self.intervals, self.follows),
            is_cheapest=is_only,
        )

    def _missing(self, peaks: Sequence[int]) -> int:
        return sum(region.missing(peak) for region, peak in zip(self.regions, peaks, strict=True))

    def _cost(self, chosen: Sequence[int]) -> float:
        return float(sum(self.costs[index, region] for index, region in enumerate(chosen)))

    def _offsets(self, own: Sequence[int]) -> Offsets:
        """Offsets of some blocks in one region."""
        numbers = {index: number for number, index in enumerate(own)}
        follows = {
            (numbers[result], numbers[operand]): distance
            for (result, operand), distance in self.follows.items()
            if result in numbers and operand in numbers
        }
        return assign_offsets([self.intervals[index] for index in own], follows)

    def search(self, best: Placement) -> Placement:
        """The cheapest placement that fits, or `best`, with the bound."""
        root = self._relaxed({})
        if root is None:  # not even fractional blocks fit
            return best
        waiting: list[dict[int, int]] = [{}]
        is_exact = True
        for _ in range(_NODES):
            if not waiting:
                break
            fixed = waiting.pop()
            relaxed = self._relaxed(fixed) if fixed else root
            if relaxed is None or (not best.missing and relaxed.cost >= best.cost - _WHOLE):
                continue
            divided = int(np.argmin(relaxed.shares.max(axis=1)))
            if relaxed.shares[divided].max() >= 1 - _WHOLE:
                found = self.placed(tuple(int(r) for r in relaxed.shares.argmax(axis=1)))
                if not found.missing:
                    best = found
                    continue
                free = [index for index in range(len(self.intervals)) if index not in fixed]
                if not free:
                    is_exact = False  # offsets that fit may exist, but were not found
                    continue
                divided = max(free, key=lambda index: (self.intervals[index].bytes, -index))
            shares = relaxed.shares[divided]
            waiting += [fixed | {divided: int(r)} for r in np.argsort(shares, kind="stable")]
        is_cheapest = is_exact and not waiting and not best.missing
        bound = best.cost if is_cheapest else min(root.cost, best.cost)
        return replace(best, bound=bound, is_cheapest=is_cheapest and self.is_by_waits)

    def _relaxed(self, fixed: Mapping[int, int]) -> _Relaxation | None:
        """The linear program; None if it has no solution."""
        count, width = len(self.intervals), len(self.regions)
        sizes = [max(region.bytes or 1, 1) for region in self.regions]
        free = np.array([[block.bytes <= size for size in sizes] for block in self.intervals], dtype=float)
        low, high = np.zeros((count, width)), free.reshape(count, width)
        for index, region in fixed.items():
            low[index], high[index] = 0.0, 0.0
            if free[index, region]:
                low[index, region] = high[index, region] = 1.0
        if (high.max(axis=1, initial=0.0) < 1.0).any():
            return None
        pairs = len(self.follows) * width
        bounds = np.stack(
            [
                np.concatenate([low.ravel(), np.zeros(pairs)]),
                np.concatenate([high.ravel(), np.ones(pairs)]),
            ],
            axis=1,
        )
        matrix, most = self._limits
        found = linprog(
            np.concatenate([self.costs.ravel(), np.zeros(pairs)]),
            A_ub=matrix,
            b_ub=most,
            A_eq=self._sums,
            b_eq=np.ones(count),
            bounds=bounds,
            method="highs",
        )
        if found.status != 0:
            return None
        return _Relaxation(float(found.fun), found.x[: count * width].reshape(count, width))

    @cached_property
    def _sums(self) -> csr_array:
        """Rows whose sum is 1: the shares of each block."""
        count, width = len(self.intervals), len(self.regions)
        columns = np.arange(count * width)
        shape = (count, (count + len(self.follows)) * width)
        return coo_array((np.ones(count * width), (columns // width, columns)), shape=shape).tocsr()

    @cached_property
    def _limits(self) -> tuple[csr_array, np.ndarray]:
        """Limited rows: the bytes in use at each step in each region, and the bytes saved by blocks that follow others.

        A pair of blocks saves bytes in a region in proportion to the shares of both; of the operands that a result
        follows, only one is counted.
        """
        count, width = len(self.intervals), len(self.regions)
        rows: list[tuple[dict[int, float], float]] = []
        saved = self._saved()
        for step in sorted({interval.start for interval in self.intervals}):
            for number, region in enumerate(self.regions):
                size = max(region.bytes or 1, 1)
                row = {
                    index * width + number: interval.bytes / size
                    for index, interval in enumerate(self.intervals)
                    if interval.start <= step <= interval.end
                }
                for pair, (result, operand) in enumerate(self.follows):
                    if self.intervals[result].start <= step <= self.intervals[operand].end:
                        row[(count + pair) * width + number] = -saved[pair] / size
                rows.append((row, 1.0))
        for number in range(width):
            together: dict[int, dict[int, float]] = {}
            for pair, (result, operand) in enumerate(self.follows):
                column = (count + pair) * width + number
                rows.append(({column: 1.0, operand * width + number: -1.0}, 0.0))
                together.setdefault(result, {result * width + number: -1.0})[column] = 1.0
            rows += [(row, 0.0) for row in together.values()]
        at = [(number, column) for number, (row, _) in enumerate(rows) for column in row]
        values = [value for row, _ in rows for value in row.values()]
        shape = (len(rows), (count + len(self.follows)) * width)
        places = np.array(at, dtype=np.int64).reshape(-1, 2).T
        matrix = coo_array((values, (places[0], places[1])), shape=shape).tocsr()
        return matrix, np.array([most for _, most in rows])

    def _saved(self) -> list[int]:
        """Bytes by which the two blocks of each pair need less than their sum."""
        found = []
        for (result, operand), distance in self.follows.items():
            low, high = self.intervals[result].bytes, self.intervals[operand].bytes
            found.append(max(low + high - max(low, distance + high), 0))
        return found
