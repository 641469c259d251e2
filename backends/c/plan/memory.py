"""Storage of every value: the caller's buffers, flash, or the arena, which has one or several regions of RAM.

A buffer holds one value, or several values that share its memory: views, results that overwrite a dead operand,
operands at their position in a concatenation. Buffers with disjoint lifetimes may share bytes of a region, as may a
result and an operand that its kernel has read before it overwrites it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from ....ir import UnsupportedError
from .accesses import WORD, accesses_of
from .offsets import Follows, Interval, live_bytes
from .program import Program, Stage, Step, Stored
from .regions import Placement, Region, place_blocks

ALIGNMENT = 4
WIDE_ALIGNMENT = 8
BLOCK_ALIGNMENT = 64
"""Alignment in bytes of states on a computer, and of arrays in a weights file: a cache line, the widest
vector."""


_NO_STATES: Mapping[int, int] = {}
_ARENA = (Region(),)


class StateError(UnsupportedError):
    """States that cannot be updated in place."""


class Storage(Enum):
    """The kinds of memory."""

    ARENA = "arena"
    INPUT = "input"
    OUTPUT = "output"
    STATE = "state"
    FLASH = "flash"


@dataclass(frozen=True, slots=True)
class Location:
    """A kind of memory, the number of the region or of the caller's buffer, and a byte offset in it.

    `constant` is the content in flash.
    """

    storage: Storage
    index: int = 0
    offset: int = 0
    constant: Stored | None = None


@dataclass(frozen=True, slots=True)
class Block:
    """A piece of a region: its offset, its size, and the first and last step at which it is in use.

    `value` is the first value in it; empty for scratch memory. `region` is the number of the region; `accesses` are
    the estimated loads and stores of a run.
    """

    label: str
    offset: int
    bytes: int
    start: int
    end: int
    value: str = ""
    region: int = 0
    accesses: int = 0


@dataclass(frozen=True, slots=True)
class UsedRegion:
    """A region, the bytes of it that a plan uses, and the estimated loads and stores of a run."""

    region: Region
    bytes: int
    accesses: int

    @property
    def name(self) -> str:
        """Name of the region."""
        return self.region.name

    @property
    def wait_cycles(self) -> int:
        """Estimated wait cycles of the accesses."""
        return self.accesses * self.region.wait_states


@dataclass(frozen=True)
class MemoryPlan:
    """Locations of all values, scratch memory by step, and calls that are omitted because their operand is already in
    place.

    `live_bytes` is, by step, a lower bound on the bytes of the blocks in use; `bound` is the largest of them: no plan
    with these blocks is smaller. `is_least`: no plan with these blocks is smaller than this one. `is_fastest`: no
    other assignment of the blocks to regions has fewer wait cycles. `inputs` and `outputs` are the locations where
    the caller writes and reads. `returned` lists values that have to be copied to an output, in this order, each
    before the step whose number is in `copied_before`, or at the end. `state_bytes` is the size of the block of
    states, in which each state begins at a multiple of `state_alignment`. `waits` are the estimated wait cycles of
    the accesses of each step; copies to outputs have the numbers after the last step.
    """

    locations: dict[Stored, Location]
    inputs: tuple[Location, ...]
    outputs: tuple[Location, ...]
    scratch: dict[int, Location]
    placed: frozenset[tuple[int, int]]
    returned: tuple[tuple[Stored, int], ...]
    blocks: tuple[Block, ...]
    regions: tuple[UsedRegion, ...]
    live_bytes: Mapping[int, int]
    is_least: bool
    is_fastest: bool
    alignment: int
    waits: Mapping[int, int]
    copied_before: tuple[int, ...] = ()
    state_bytes: int = 0
    state_alignment: int = BLOCK_ALIGNMENT

    @property
    def arena_bytes(self) -> int:
        """Bytes of all regions."""
        return sum(used.bytes for used in self.regions)

    @property
    def missing_bytes(self) -> int:
        """Bytes that the regions lack; 0 if everything fits."""
        return sum(used.region.missing(used.bytes) for used in self.regions)

    @property
    def wait_cycles(self) -> int:
        """Estimated wait cycles of the accesses of a run."""
        return sum(used.wait_cycles for used in self.regions)

    @property
    def bound(self) -> int:
        """Lower bound of the arena in bytes."""
        return max(self.live_bytes.values(), default=0)


@dataclass(eq=False)
class _Buffer:
    """A buffer under construction."""

    bytes: int
    start: int
    end: int
    storage: Storage = Storage.ARENA
    index: int = 0
    constant: Stored | None = None
    label: str = ""
    value: str = ""


def plan_memory(
    program: Program,
    *,
    regions: tuple[Region, ...] = _ARENA,
    ports_in_arena: bool = False,
    states: Mapping[int, int] = _NO_STATES,
    state_alignment: int = BLOCK_ALIGNMENT,
) -> MemoryPlan:
    """The plan of a program: deterministic, with the arena as close to the bound as the search gets.

    Each block is assigned to one of the `regions`, such that the blocks fit and the wait cycles of their accesses are
    as few as the search finds. With `ports_in_arena`, inputs and outputs are blocks of the arena: an input from
    before the first step to its last reader, an output to the end. `states` pairs the numbers of an input and an
    output that share a piece of the block of states, at multiples of `state_alignment`; StateError if two states
    exchange their values.
    """
    shared = _Shared.of(program, states, ports_in_arena=ports_in_arena)
    sharing, buffers, scratch, intervals = shared.sharing, shared.buffers, shared.scratch, shared.intervals
    numbers = {id(buffer): number for number, buffer in enumerate(buffers)}
    scratch_numbers = {step: len(buffers) + number for number, step in enumerate(scratch)}
    accesses = list(_accesses(program, sharing, shared.returned, numbers, scratch_numbers))
    each = [0] * len(intervals)
    for number, _, count in accesses:
        each[number] += count
    found = place_blocks(intervals, shared.follows, each, regions)
    at = {id(buffer): (found.regions[number], found.at[number]) for number, buffer in enumerate(buffers)}
    state_bytes = 0
    for buffer in sharing.state_buffers.values():
        at[id(buffer)] = 0, state_bytes
        state_bytes += _aligned(buffer.bytes, state_alignment)
    labels = [b.label for b in buffers] + [_scratch_label(program.steps[n]) for n in scratch]
    values = [b.value for b in buffers] + [""] * len(scratch)
    waits: Counter[int] = Counter()
    for number, step, count in accesses:
        waits[step] += count * regions[found.regions[number]].wait_states
    return MemoryPlan(
        {stored: _location(buffer, shift, at) for stored, (buffer, shift) in sharing.where.items()},
        tuple(_location(*sharing.where[stored], at) for stored in program.inputs),
        tuple(_location(buffer, shift, at) for buffer, shift in sharing.outputs),
        {
            step: Location(Storage.ARENA, found.regions[number], found.at[number])
            for step, number in scratch_numbers.items()
        },
        frozenset(sharing.placed),
        shared.returned,
        tuple(
            Block(
                labels[number],
                found.at[number],
                interval.bytes,
                interval.start,
                interval.end,
                values[number],
                found.regions[number],
                each[number],
            )
            for number, interval in enumerate(intervals)
        ),
        _used(regions, found, each),
        live_bytes(intervals, shared.follows),
        found.is_least,
        found.is_cheapest,
        shared.alignment,
        waits,
        shared.copied_before,
        state_bytes,
        state_alignment,
    )


def _used(regions: Sequence[Region], found: Placement, accesses: Sequence[int]) -> tuple[UsedRegion, ...]:
    return tuple(
        UsedRegion(
            region,
            found.peaks[number],
            sum(count for count, chosen in zip(accesses, found.regions, strict=True) if chosen == number),
        )
        for number, region in enumerate(regions)
    )


def _accesses(
    program: Program,
    sharing: _Sharing,
    returned: Sequence[tuple[Stored, int]],
    numbers: Mapping[int, int],
    scratch: Mapping[int, int],
) -> Iterator[tuple[int, int, int]]:
    """Accesses to blocks: number of the block, number of the step, and count; copies are after all steps."""
    for number, step in enumerate(program.steps):
        left_out = {position for at, position in sharing.placed if at == number}
        found = accesses_of(step, left_out)
        pairs = [
            *zip(step.operands, found.operands, strict=True),
            *zip(step.results, found.results, strict=True),
        ]
        for stored, count in pairs:
            block = None if stored is None else numbers.get(id(sharing.where[stored][0]))
            if block is not None and count:
                yield block, number, count
        if number in scratch:
            yield scratch[number], number, found.working
    for position, (stored, index) in enumerate(returned, start=len(program.steps)):
        for buffer, _ in (sharing.where[stored], sharing.outputs[index]):
            if id(buffer) in numbers:
                yield numbers[id(buffer)], position, -(-stored.bytes // WORD)


def arena_blocks(
    program: Program, *, ports_in_arena: bool, alignment: int | None = None
) -> tuple[Sequence[Interval], Follows]:
    """The blocks of the arena of a program without states in place, and which of them follow others.

    `alignment` is that of `arena_alignment`, unless the program is a part of one with a larger one.
    """
    shared = _Shared.of(program, _NO_STATES, ports_in_arena=ports_in_arena, alignment=alignment)
    return shared.intervals, shared.follows


@dataclass(frozen=True)
class _Shared:
    """The buffers of a program in the arena, working memory by step, and the blocks of both."""

    sharing: _Sharing
    returned: tuple[tuple[Stored, int], ...]
    copied_before: tuple[int, ...]
    alignment: int
    buffers: Sequence[_Buffer]
    scratch: Mapping[int, int]
    intervals: Sequence[Interval]
    follows: Follows

    @staticmethod
    def of(
        program: Program, states: Mapping[int, int], *, ports_in_arena: bool, alignment: int | None = None
    ) -> _Shared:
        sharing = _Sharing(program, states, ports_in_arena=ports_in_arena)
        alignment = alignment or arena_alignment(program, ports_in_arena=ports_in_arena)
        returned = sharing.bind_outputs()
        copied_before = sharing.copy_early(returned)
        buffers = sharing.arena_buffers()
        scratch = {
            number: step.offer.working_bytes
            for number, step in enumerate(program.steps)
            if step.offer.working_bytes
        }
        intervals = [Interval(_aligned(b.bytes, alignment), b.start, b.end) for b in buffers]
        intervals += [
            Interval(_aligned(size, alignment), *_in_use(program, number)) for number, size in scratch.items()
        ]
        follows = sharing.follows(buffers, alignment)
        return _Shared(sharing, returned, copied_before, alignment, buffers, scratch, intervals, follows)


class _Sharing:
    """Assigns values to buffers, step by step."""

    def __init__(self, program: Program, states: Mapping[int, int], *, ports_in_arena: bool) -> None:
        self._program = program
        self._buffers = program.buffers
        self._last = _last_reads(program)
        self._ports_in_arena = ports_in_arena
        self.where: dict[Stored, tuple[_Buffer, int]] = {}
        self.outputs: list[tuple[_Buffer, int]] = []
        self.placed: set[tuple[int, int]] = set()
        self.state_buffers: dict[int, _Buffer] = {}  # by the index of the output
        # first and last of the steps that run together, result, operand, distance
        self._followers: list[tuple[tuple[int, int], Stored, Stored, int]] = []
        self._members: dict[int, list[Stored]] = {}
        for index, stored in enumerate(program.inputs):
            name, last = stored.value.name, self._last.get(stored, -1)
            storage = Storage.ARENA if ports_in_arena else Storage.INPUT
            storage = Storage.STATE if index in states else storage
            buffer = _Buffer(stored.bytes, -1, last, storage, index, label=name, value=name)
            self._put(stored, buffer)
            if index in states:
                self.state_buffers[states[index]] = buffer
        for number, step in enumerate(program.steps):
            self._visit(number, step)
        for stage in program.stages:
            self._followers += self._followed_in(stage)

    def _visit(self, number: int, step: Step) -> None:
        first, last = self._program.span(number)
        for stored in step.operands:
            if stored is not None:
                self._read(stored, last)
        if step.offer.views is not None:
            assert step.operands[0] is not None
            buffer, shift = self.where[step.operands[0]]
            for stored, more in zip(step.results, step.offer.views, strict=True):
                self._put(stored, buffer, shift=shift + more)
                buffer.end = max(buffer.end, self._last.get(stored, number))
            return
        for position, stored in enumerate(step.results):
            taken = self._overwritten(number, step, stored) if position == 0 else None
            line = self._buffers.get(stored)
            buffer = taken or _Buffer(line.bytes if line else stored.bytes, first, last)
            buffer.end = max(buffer.end, self._last.get(stored, last), last)
            buffer.label = f"{buffer.label}, {stored.value.name}" if taken else stored.value.name
            if line:
                buffer.label = f"{line.rows} rows of {stored.value.name}"
            buffer.value = buffer.value or stored.value.name
            self._put(stored, buffer)
            if position == 0 and taken is None:
                self._followers += self._followed(number, step, stored)
        for position, call in enumerate(step.calls if step.rows is None else ()):
            if call.places is not None:
                operand = step.operands[call.places]
                if operand is not None and self._move(operand, self.where[step.results[0]][0], call.at):
                    self.placed.add((number, position))

    def _read(self, stored: Stored, number: int) -> None:
        if stored not in self.where:
            assert stored.value.name in self._program.graph.params, stored.value.name
            self._put(stored, _Buffer(stored.bytes, -1, -1, Storage.FLASH, constant=stored))
        buffer, _ = self.where[stored]
        buffer.end = max(buffer.end, number)

    def _overwritten(self, number: int, step: Step, result: Stored) -> _Buffer | None:
        """The buffer of an operand that the result may take: dead after this step, whole, read as no other operand.

        In the arena it has the bytes of the result: a larger one is followed, so that the rest of it is free.
        """
        for index in step.offer.overwrites:
            operand = step.operands[index]
            if operand is None:
                continue
            buffer, shift = self.where[operand]
            whole = shift == 0 and operand.bytes == buffer.bytes >= result.bytes
            is_ours = buffer.storage is Storage.STATE or (
                buffer.storage is Storage.ARENA and buffer.bytes == result.bytes
            )
            if not is_ours or not whole or self._last_of(buffer) > self._program.span(number)[1]:
                continue
            others = [
                other
                for position, other in enumerate(step.operands)
                if other is not None
                and position not in step.offer.overwrites
                and self.where[other][0] is buffer
            ]
            if not others:
                return buffer
        return None

    def _followed(
        self, number: int, step: Step, result: Stored
    ) -> Iterator[tuple[tuple[int, int], Stored, Stored, int]]:
        """The operands that die in a step, without other readers in it, and which its result may overwrite while it
        is computed.
        """
        shrinks = [
            index
            for index in step.offer.overwrites
            if (operand := step.operands[index]) is not None
            and operand.bytes == self.where[operand][0].bytes > result.bytes
        ]
        for index, distance in (dict.fromkeys(shrinks, 0) | dict(step.offer.follows)).items():
            operand = step.operands[index]
            if operand is None:
                continue
            buffer, shift = self.where[operand]
            readers = [other for other in step.operands if other and self.where[other][0] is buffer]
            is_alone = len(readers) == len(step.results) == 1
            if not shift and is_alone and self._last_of(buffer) <= number:
                yield (number, number), result, operand, distance

    def _followed_in(self, stage: Stage) -> Iterator[tuple[tuple[int, int], Stored, Stored, int]]:
        """The whole operands that die in a stage, and which its whole results may overwrite while they are computed."""
        for (result, operand), distance in stage.distances.items():
            buffer, shift = self.where[operand]
            others = [member for member in self._members[id(buffer)] if member != operand]
            is_alone = all(self._last.get(member, -1) < stage.first for member in others)
            if is_alone and not shift and self._last_of(buffer) < stage.stop:
                yield (stage.first, stage.stop - 1), result, operand, distance

    def follows(self, buffers: Sequence[_Buffer], alignment: int) -> dict[tuple[int, int], int]:
        """By the numbers of two buffers, the first of which follows the second: how many bytes after the first the
        second begins.

        A result with a place in a concatenation may follow, too, if it is the first that is written there.
        """
        numbers = {id(buffer): number for number, buffer in enumerate(buffers)}
        found: dict[tuple[int, int], int] = {}
        for (first, last), result, operand, distance in self._followers:
            (low, shift_low), (high, shift_high) = self.where[result], self.where[operand]
            ends = (
                low.start == first
                and high.end == last
                and not shift_high
                and (first == last or not shift_low)
            )
            if ends and id(low) in numbers and id(high) in numbers:
                pair = numbers[id(low)], numbers[id(high)]
                found[pair] = max(found.get(pair, 0), _aligned(shift_low + distance, alignment))
        return found

    def _move(self, operand: Stored, into: _Buffer, at: int) -> bool:
        """Makes a buffer that holds just `operand` a part of another one; False if it holds more or is stored
        elsewhere.
        """
        buffer, shift = self.where[operand]
        movable = buffer.storage is Storage.ARENA and buffer is not into
        if not movable or shift or operand.bytes != buffer.bytes:
            return False
        into.start, into.end = min(into.start, buffer.start), max(into.end, buffer.end)
        for member in self._members.pop(id(buffer)):
            _, inside = self.where[member]
            self._put(member, into, shift=inside + at)
        return True

    def _put(self, stored: Stored, buffer: _Buffer, *, shift: int = 0) -> None:
        self.where[stored] = (buffer, shift)
        self._members.setdefault(id(buffer), []).append(stored)

    def _last_of(self, buffer: _Buffer) -> int:
        return max(self._last.get(stored, -1) for stored in self._members[id(buffer)])

    def bind_outputs(self) -> tuple[tuple[Stored, int], ...]:
        """Decides the location of each output; returns the values that have to be copied to an output at the end."""
        returned = []
        for index, stored in enumerate(self._program.outputs):
            if stored not in self.where:
                self._put(stored, _Buffer(stored.bytes, -1, -1, Storage.FLASH, constant=stored))
            found = self._bound(stored, index)
            if found is None:
                returned.append((stored, index))
            self.outputs.append(found or (self._copy_of(stored, index), 0))
        return self._in_order(returned)

    def _in_order(self, returned: list[tuple[Stored, int]]) -> tuple[tuple[Stored, int], ...]:
        """The copies at the end, each before the copy that overwrites its source."""
        ordered: list[tuple[Stored, int]] = []
        while returned:
            read = [self.where[stored][0] for stored, _ in returned]
            free = [i for i, (_, index) in enumerate(returned) if self._is_free(index, i, read)]
            if not free:
                names = ", ".join(self._program.graph.output_names[index] for _, index in returned)
                raise StateError(f"the states {names} take each other's values, which is impossible in place")
            ordered.append(returned.pop(free[0]))
        return tuple(ordered)

    def _is_free(self, output: int, own: int, read: list[_Buffer]) -> bool:
        into, _ = self.outputs[output]
        return all(buffer is not into for i, buffer in enumerate(read) if i != own)

    def _bound(self, stored: Stored, index: int) -> tuple[_Buffer, int] | None:
        """The location of an output that needs no copy: in the arena, or a whole buffer that becomes the caller's."""
        buffer, shift = self.where[stored]
        if index in self.state_buffers:
            is_there = buffer is self.state_buffers[index] and shift == 0
            return (buffer, 0) if is_there else None
        if buffer.storage is not Storage.ARENA:
            return None
        if self._ports_in_arena:
            return buffer, shift
        if shift or stored.bytes != buffer.bytes:
            return None
        buffer.storage, buffer.index = Storage.OUTPUT, index
        return buffer, 0

    def _copy_of(self, stored: Stored, index: int) -> _Buffer:
        """The buffer that receives an output at the end."""
        if index in self.state_buffers:
            return self.state_buffers[index]
        end, storage = len(self._program.steps), Storage.ARENA if self._ports_in_arena else Storage.OUTPUT
        return _Buffer(stored.bytes, end, end, storage, index, label=f"output {stored.value.name}")

    def copy_early(self, returned: tuple[tuple[Stored, int], ...]) -> tuple[int, ...]:
        """The step before which each output is copied: a state as soon as nothing reads the old value any more.

        The source of the copy need not live afterwards.
        """
        end = len(self._program.steps)
        made = {
            stored: self._program.span(number)[1]
            for number, step in enumerate(self._program.steps)
            for stored in step.results
        }
        found: list[int] = []
        for stored, index in returned:
            buffer, _ = self.where[stored]
            early = end
            if index in self.state_buffers and buffer.storage is Storage.ARENA and stored in made:
                early = min(max(made[stored], self._last_of(self.state_buffers[index])) + 1, end)
            found.append(early)
        lives = _reads_of_steps(self._program)
        for stored, number in made.items():
            lives[stored] = max(lives.get(stored, number), number)
        copies = {index: number for (_, index), number in zip(returned, found, strict=True)}
        for index, stored in enumerate(self._program.outputs):
            lives[stored] = max(lives.get(stored, -1), copies.get(index, end))
        for stored, index in returned:
            buffer, _ = self.where[stored]
            if buffer.storage is Storage.ARENA and copies[index] < end:
                buffer.end = max(lives[member] for member in self._members[id(buffer)])
        return tuple(found)

    def arena_buffers(self) -> list[_Buffer]:
        """The buffers that need a place in the arena, in order of appearance."""
        places = [*self.where.values(), *self.outputs]
        found = {id(buffer): buffer for buffer, _ in places if buffer.storage is Storage.ARENA}
        return list(found.values())


def _last_reads(program: Program) -> dict[Stored, int]:
    """The last step that reads each value; the end for outputs."""
    return _reads_of_steps(program) | dict.fromkeys(program.outputs, len(program.steps))


def _reads_of_steps(program: Program) -> dict[Stored, int]:
    found: dict[Stored, int] = {}
    for number, step in enumerate(program.steps):
        _, last = program.span(number)
        for stored in step.operands:
            if stored is not None:
                found[stored] = last
    return found


def _in_use(program: Program, number: int) -> tuple[int, int]:
    """The first and the last step while the working memory of a step is in use."""
    return program.span(number) if program.steps[number].offer.coded else (number, number)


def _scratch_label(step: Step) -> str:
    return f"{'decoded weights and ' if step.offer.coded else ''}scratch of {step.operator}"


def _location(buffer: _Buffer, shift: int, at: Mapping[int, tuple[int, int]]) -> Location:
    """The location `shift` bytes into a buffer; `at` has the region and the offset of buffers in the arena."""
    region, offset = at.get(id(buffer), (0, 0))
    index = region if buffer.storage is Storage.ARENA else buffer.index
    return Location(buffer.storage, index, offset + shift, buffer.constant)


def arena_alignment(program: Program, *, ports_in_arena: bool) -> int:
    """Alignment in bytes of the arena and of every block in it."""
    held = [stored for step in program.steps for stored in step.results]
    held += [*program.inputs, *program.outputs] if ports_in_arena else []
    widest = max((stored.value.type.dtype.bytes for stored in held), default=1)
    return WIDE_ALIGNMENT if widest > ALIGNMENT else ALIGNMENT


def _aligned(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment
