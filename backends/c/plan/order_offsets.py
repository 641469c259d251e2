"""Order of execution by the offsets of blocks, if there are few possible orders.

Parts of a program run one after the other in every order. Blocks that are written first and read last in some parts
are the same for all orders of the other parts. If these parts have few orders, the least offsets of their blocks are
found for each order: the best order is selected, and no arena is smaller than its blocks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain, product

from .memory import arena_blocks
from .offsets import assign_offsets, live_bound
from .order import Ordered
from .program import Program

_MOST_ORDERS = 500
_MOST_WORK = 30_000  # steps of all orders that are tried: some seconds

_Orders = Sequence[tuple[int, ...]]
"""Step numbers in each order of a part, or in the order of each part."""


def refine_order(ordered: Ordered) -> Ordered:
    """The order with the least offsets that is found, and the proven lower bound of the bytes for any order and
    offsets.

    The search for an order counts bytes in use, which contiguous blocks cannot always reach.
    """
    given: _Orders = [tuple(part) for part in ordered.parts]
    chosen = given
    everything = range(len(chosen))
    peak, _ = _peak(ordered, chosen, everything)
    bound, work = ordered.bound_bytes, 0
    if peak <= bound:
        return ordered
    orders = _orders(ordered)
    for window in _windows([len(part) for part in orders]):
        best, lowest, least = chosen, peak, list[int]()
        for some in product(*orders[window.start : window.stop]):
            tried = [*chosen[: window.start], *some, *chosen[window.stop :]]
            found, proven = _peak(ordered, tried, window)
            least.append(proven)
            if found < lowest:
                best, lowest = tried, found
            work += len(ordered.program.steps)
            if lowest <= bound or work > _MOST_WORK:
                break
        else:
            bound = max(bound, min(least))
        whole, _ = _peak(ordered, best, everything)
        if whole < peak:
            chosen, peak = best, whole
        if peak <= bound or work > _MOST_WORK:
            break
    program = ordered.program if chosen is given else _in_order(ordered.program, chosen)
    return replace(ordered, program=program, bound_bytes=bound)


def _windows(counts: Sequence[int]) -> Iterator[range]:
    """The longest runs of parts with few orders; `counts` are the numbers of orders of each part."""
    start, orders = 0, 1
    for stop, count in enumerate(counts):
        if orders * count > _MOST_ORDERS and start < stop:
            yield range(start, stop)
        orders *= count
        while orders > _MOST_ORDERS:
            orders //= counts[start]
            start += 1
    if start < len(counts):
        yield range(start, len(counts))


def _peak(ordered: Ordered, orders: _Orders, window: range) -> tuple[int, int]:
    """The least peak that is found for the blocks of some parts, and the proven one; `orders` is for all parts."""
    program, parts = _in_order(ordered.program, orders), ordered.parts
    intervals, follows = arena_blocks(program, ports_in_arena=ordered.ports_in_arena)
    first = parts[window.start].start if window.start else -1
    last = parts[window.stop - 1].stop - 1 if window.stop < len(parts) else len(program.steps)
    kept = [number for number, i in enumerate(intervals) if first <= i.start and i.end <= last]
    at = {number: position for position, number in enumerate(kept)}
    inside = [intervals[number] for number in kept]
    followed = {(at[i], at[j]): distance for (i, j), distance in follows.items() if i in at and j in at}
    found = assign_offsets(inside, followed)
    return found.peak, found.peak if found.is_least else live_bound(inside, followed)


def _in_order(program: Program, orders: _Orders) -> Program:
    return replace(program, steps=tuple(program.steps[number] for number in chain(*orders)))


def _orders(ordered: Ordered) -> Sequence[_Orders]:
    """Orders of each part, at most one more than the number that is considered.

    A step that reads only constants, and needs no memory but that of its results, runs just before its first reader,
    so that its results are in memory for the shortest time.
    """
    program = ordered.program
    makers = {stored: number for number, step in enumerate(program.steps) for stored in step.results}
    needs = [{makers[s] for s in step.operands if s in makers} for step in program.steps]
    inputs = set(program.inputs)
    sources = {
        number
        for number, step in enumerate(program.steps)
        if not needs[number] and not step.offer.working_bytes and inputs.isdisjoint(step.operands)
    }

    def of(part: range) -> _Orders:
        found: list[tuple[int, ...]] = []
        begun: list[tuple[int, ...]] = [()]
        while begun and len(found) <= _MOST_ORDERS:
            done = begun.pop()
            left = set(part) - set(done)
            if left <= sources:
                found.append((*done, *sorted(left)))
            for number in sorted(left - sources, reverse=True):
                needed = needs[number] & left
                if needed <= sources:
                    begun.append((*done, *sorted(needed), number))
        return found

    return [of(part) for part in ordered.parts]
