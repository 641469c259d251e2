"""Profile of a traced run: instructions and estimated cycles in total, by function, and by call of the entry.

The trace holds every executed block in order. A block that does not start where the one before it ended was reached
by a taken branch, which costs the core a refill of its pipeline (`timing`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ....specs.target import Timing
from .elf import Elf
from .timing import Block, Decoder


@dataclass(frozen=True, slots=True)
class Cost:
    """Instructions of a function itself, or of one call with all calls below it; cycles if the core's times are
    known.
    """

    name: str
    instructions: int
    cycles: int | None


@dataclass(frozen=True, slots=True)
class Profile:
    """A counted call: totals, the cost of each function itself, and of each call that the entry made, in order.

    `calls` excludes the instructions of the entry itself.
    """

    return_value: int
    stack_bytes: int
    instructions: int
    cycles: int | None
    functions: tuple[Cost, ...]
    calls: tuple[Cost, ...]


@dataclass(frozen=True, slots=True)
class Run:
    """Trace of a run: one word per executed block, address in the upper half, size in the lower."""

    entry: str
    return_value: int
    stack_bytes: int
    trace: NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class _Ledger:
    """For each executed block: index of the distinct block, its instructions, and its cycles (none without times)."""

    blocks: list[Block]
    addresses: NDArray[np.int64]
    which: NDArray[np.int64]
    instructions: NDArray[np.int64]
    cycles: NDArray[np.int64] | None

    def cost(self, name: str, chosen: NDArray[np.bool_] | slice) -> Cost:
        cycles = None if self.cycles is None else int(self.cycles[chosen].sum())
        return Cost(name, int(self.instructions[chosen].sum()), cycles)


def account(run: Run, elf: Elf, decoder: Decoder, timing: Timing | None) -> Profile:
    """The profile of a run on a core with these times."""
    ledger = _ledger(run.trace, elf, decoder, timing)
    total = ledger.cost(run.entry, slice(None))
    return Profile(
        run.return_value,
        run.stack_bytes,
        total.instructions,
        total.cycles,
        _by_function(ledger, elf),
        _by_call(ledger, elf, run.entry),
    )


def _ledger(trace: NDArray[np.uint64], elf: Elf, decoder: Decoder, timing: Timing | None) -> _Ledger:
    distinct, which = np.unique(trace, return_inverse=True)
    addresses = (distinct >> np.uint64(32)).astype(np.int64)
    sizes = (distinct & np.uint64(0xFFFF_FFFF)).astype(np.int64)
    blocks = _decode(addresses.tolist(), sizes.tolist(), elf, decoder)
    instructions = np.array([block.instructions for block in blocks], np.int64)[which]
    if timing is None:
        return _Ledger(blocks, addresses, which, instructions, None)
    starts, ends = addresses[which], (addresses + sizes)[which]
    taken = np.append(starts[1:] != ends[:-1], True)
    cycles = np.array([block.cycles for block in blocks], np.int64)[which] + taken * timing.taken_branch
    return _Ledger(blocks, addresses, which, instructions, cycles)


def _decode(addresses: list[int], sizes: list[int], elf: Elf, decoder: Decoder) -> list[Block]:
    """The distinct blocks in order of address, each with the information whether an access comes directly before."""
    found: list[Block] = []
    access_ends: dict[int, bool] = {}
    for address, size in zip(addresses, sizes, strict=True):
        after_access = access_ends.get(address, False)
        block = decoder.block(elf.code(address, size), address, after_access=after_access)
        access_ends[address + size] = block.ends_in_access
        found.append(block)
    return found


def _by_function(ledger: _Ledger, elf: Elf) -> tuple[Cost, ...]:
    """Each function's own cost, the most expensive first."""
    names = [_name(elf, int(address)) for address in ledger.addresses]
    labels, label = np.unique(names, return_inverse=True)
    executed = label[ledger.which]
    costs = [ledger.cost(str(name), executed == index) for index, name in enumerate(labels)]
    return tuple(sorted(costs, key=lambda cost: -cost.instructions))


def _by_call(ledger: _Ledger, elf: Elf, entry: str) -> tuple[Cost, ...]:
    """The cost of each call that the entry makes, from its branch to its return."""
    function = elf.function_at(elf.address(entry))
    inside = np.array([elf.function_at(int(a)) == function for a in ledger.addresses])[ledger.which]
    own = np.flatnonzero(inside)
    calls = []
    for start, end in zip(own + 1, np.append(own[1:], len(inside)), strict=True):
        if start < end:
            callee = _name(elf, int(ledger.addresses[ledger.which[start]]))
            calls.append(ledger.cost(callee, slice(start, end)))
    return tuple(calls)


def _name(elf: Elf, address: int) -> str:
    function = elf.function_at(address)
    return function.name if function else f"{address:#010x}"
