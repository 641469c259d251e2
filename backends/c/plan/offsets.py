"""Offsets for blocks that live for an interval of steps: blocks that live together must not overlap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import networkx as nx

_TRIES = 400
_LARGEST_SEARCH = 300


@dataclass(frozen=True, slots=True)
class Interval:
    """A block of `bytes` that is in use from step `start` to step `end`, both included."""

    bytes: int
    start: int
    end: int


def live_bound(intervals: Sequence[Interval]) -> int:
    """The largest sum of blocks in use at one step: no assignment is smaller.

    It is the heaviest clique of the interference graph; in a graph of intervals one sweep finds it, where
    `networkx.max_weight_clique` takes exponential time.
    """
    changes: dict[int, int] = {}
    for i in intervals:
        changes[i.start] = changes.get(i.start, 0) + i.bytes
        changes[i.end + 1] = changes.get(i.end + 1, 0) - i.bytes
    largest = total = 0
    for step in sorted(changes):
        total += changes[step]
        largest = max(largest, total)
    return largest


def interference_graph(intervals: Sequence[Interval]) -> nx.Graph[int]:
    """The numbers of the blocks, with an edge between any two that are in use at the same step."""
    graph: nx.Graph[int] = nx.empty_graph(len(intervals))
    live: list[int] = []
    for index in sorted(range(len(intervals)), key=lambda index: intervals[index].start):
        live = [other for other in live if intervals[other].end >= intervals[index].start]
        graph.add_edges_from((index, other) for other in live)
        live.append(index)
    return graph


def assign_offsets(intervals: Sequence[Interval]) -> list[int]:
    """An offset for each block, with the peak as low as a greedy search with several orders gets.

    Blocks are placed one by one, each at the lowest gap that fits. Where no order of the usual ones reaches the
    bound, the blocks at the peak are moved forward in the order, again and again.
    """
    bound, interference = live_bound(intervals), interference_graph(intervals)
    orders = [
        sorted(range(len(intervals)), key=lambda i: (-intervals[i].bytes, intervals[i].start, i)),
        sorted(
            range(len(intervals)),
            key=lambda i: (-(intervals[i].end - intervals[i].start), -intervals[i].bytes, i),
        ),
        sorted(range(len(intervals)), key=lambda i: (intervals[i].start, -intervals[i].bytes, i)),
    ]
    best: tuple[int, list[int], list[int]] | None = None
    for order in orders:
        offsets = _place(intervals, interference, order)
        peak = _peak(intervals, offsets)
        if best is None or peak < best[0]:
            best = (peak, offsets, order)
        if peak == bound:
            return offsets
    assert best is not None
    return best[1] if len(intervals) > _LARGEST_SEARCH else _improve(intervals, interference, best, bound)


def _improve(
    intervals: Sequence[Interval],
    interference: nx.Graph[int],
    best: tuple[int, list[int], list[int]],
    bound: int,
) -> list[int]:
    random = Random(0)
    peak, offsets, order = best
    current, current_offsets = list(order), offsets
    for _ in range(_TRIES):
        if peak <= bound:
            break
        at_peak = [i for i in current if current_offsets[i] + intervals[i].bytes >= peak]
        moved = random.choice(at_peak) if at_peak else random.choice(current)
        current.remove(moved)
        current.insert(random.randrange(len(current) + 1), moved)
        current_offsets = _place(intervals, interference, current)
        found = _peak(intervals, current_offsets)
        if found <= peak:
            peak, offsets, order = found, current_offsets, list(current)
        else:
            current, current_offsets = list(order), offsets
    return offsets


def _place(intervals: Sequence[Interval], interference: nx.Graph[int], order: Sequence[int]) -> list[int]:
    offsets = [0] * len(intervals)
    placed: set[int] = set()
    for index in order:
        mine = intervals[index]
        rivals = placed.intersection(interference[index])
        taken = sorted((offsets[other], offsets[other] + intervals[other].bytes) for other in rivals)
        at = 0
        for low, high in taken:
            if low - at >= mine.bytes:
                break
            at = max(at, high)
        offsets[index] = at
        placed.add(index)
    return offsets


def _peak(intervals: Sequence[Interval], offsets: Sequence[int]) -> int:
    return max((offset + i.bytes for offset, i in zip(offsets, intervals, strict=True)), default=0)
