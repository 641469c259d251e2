"""The order of the calls of steps that compute some rows at a time, and the line buffers that it needs.

The order is driven by the results that are needed whole: a call runs as late as possible, when a later call lacks
rows. Rows that a later call reads again stay in the line buffer of their value, and nothing is computed twice. If a
buffer has no room for new rows, those that are still needed are moved to its front.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from .program import LineBuffer, Stored
from .row_steps import RowStep, height, row_elements


@dataclass(frozen=True)
class RowOrder:
    """The calls in order, the buffers, and the distances of results from the operands that they are computed from.

    `calls` are numbers: the forms of the calls of all steps are numbered consecutively (see `RowStep.overhangs`),
    followed by the rows of padding after each value, in the order of `buffers`. `distances` are, by whole result and
    whole operand, the bytes after the start of the result at which the operand has to begin if the result overwrites
    it. `read_ahead` are the pairs for which all calls except the one that writes a row of the result have read the
    same row of the operand before.
    """

    calls: tuple[int, ...]
    buffers: Mapping[Stored, LineBuffer]
    distances: Mapping[tuple[Stored, Stored], int]
    read_ahead: frozenset[tuple[Stored, Stored]]


@dataclass(frozen=True)
class _Push:
    """Rows added to a line: number of earlier rows, number of new rows, and the oldest that is still needed."""

    made: int
    rows: int
    oldest: int


@dataclass
class _Line:
    """Rows of a value, including padding, as they are written and read; `next` is the row that each reader reads
    next.
    """

    stored: Stored
    is_whole: bool
    before: int = 0
    after: int = 0
    padding: int = 0
    made: int = 0
    producer: int | None = None
    next: dict[tuple[int, int], int] = field(default_factory=dict)
    pushes: list[_Push] = field(default_factory=list)

    @property
    def oldest(self) -> int:
        """The first row that is still needed, at most the next one to be written."""
        return max(0, min([self.made, *self.next.values()]))

    def push(self, rows: int) -> None:
        """Adds rows."""
        self.pushes.append(_Push(self.made, rows, self.oldest))
        self.made += rows

    def buffer(self) -> LineBuffer:
        """The smallest buffer, and the rows that are moved in it."""
        rows = max([self.before, *(push.made + push.rows - push.oldest for push in self.pushes)])
        first = moved = moves = 0
        for push in self.pushes:
            if push.made + push.rows - first > rows:
                moved += push.made - push.oldest
                moves += 1
                first = push.oldest
        row = row_elements(self.stored)
        return LineBuffer(self.stored, rows, row, self.before, self.after, self.padding, moved * row, moves)


def row_order(
    steps: Sequence[RowStep],
    rows: Sequence[int],
    results: frozenset[Stored],
    whole: frozenset[Stored],
) -> RowOrder:
    """The order of steps that compute these numbers of rows per call, as far as `results` need them.

    `whole` are the values with memory for all their rows, including the results.
    """
    run = _Run(steps, rows, whole)
    for number, step in enumerate(steps):
        while step.result in results and run.calls_of[number] < step.height // rows[number]:
            run.call(number)
    buffers = {line.stored: line.buffer() for line in run.lines.values() if not line.is_whole}
    return RowOrder(
        tuple(run.calls), buffers, run.distances, frozenset(run.distances.keys() - run.needed_later)
    )


class _Run:
    """The calls, one after the other; rows are only counted."""

    def __init__(self, steps: Sequence[RowStep], rows: Sequence[int], whole: frozenset[Stored]) -> None:
        self._steps, self._rows = steps, rows
        self.calls: list[int] = []
        self.calls_of = [0] * len(steps)
        self._numbers: list[list[int]] = []
        self._forms = 0
        for step, count in zip(steps, rows, strict=True):
            counts = [calls for calls, _ in step.overhangs(count)]
            self._numbers.append([self._forms + i for i, calls in enumerate(counts) for _ in range(calls)])
            self._forms += len(counts)
        self.distances: dict[tuple[Stored, Stored], int] = {}
        self.needed_later: set[tuple[Stored, Stored]] = set()
        self.lines = {step.result: _Line(step.result, step.result in whole) for step in steps}
        for number, step in enumerate(steps):
            self.lines[step.result].producer = number
        self._readings = [step.readings(count) for step, count in zip(steps, rows, strict=True)]
        for number, step in enumerate(steps):
            for operand, reading in enumerate(self._readings[number]):
                if reading is not None:
                    self._enter(number, operand, step)
        for line in self.lines.values():
            line.made = line.before if line.producer is not None else height(line.stored)
            line.next = {reader: row + line.before for reader, row in line.next.items()}
        self._padded = [line for line in self.lines.values() if not line.is_whole]

    def _enter(self, number: int, operand: int, step: RowStep) -> None:
        """Adds a reader of a value, with its padding."""
        reading = self._readings[number][operand]
        assert reading is not None
        line = self.lines.setdefault(reading.stored, _Line(reading.stored, is_whole=True))
        line.next[number, operand] = reading.start
        if not line.is_whole:
            last = reading.stop(step.height // self._rows[number])
            line.before = max(line.before, -reading.start)
            line.after = max(line.after, last - height(reading.stored))
            line.padding = step.paddings[operand] or line.padding

    def call(self, number: int) -> None:
        """Runs a call of a step, after the calls that it needs."""
        for operand, reading in enumerate(self._readings[number]):
            if reading is not None:
                line = self.lines[reading.stored]
                stop = line.next[number, operand] + reading.span
                while line.made < (min(stop, height(line.stored)) if line.is_whole else stop):
                    self._supply(line)
        result = self.lines[self._steps[number].result]
        if result.is_whole:
            self._keep_behind(number, result)
        self.calls.append(self._numbers[number][self.calls_of[number]])
        result.push(self._rows[number])
        self.calls_of[number] += 1
        for operand, reading in enumerate(self._readings[number]):
            if reading is not None:
                self.lines[reading.stored].next[number, operand] += reading.advance

    def _supply(self, line: _Line) -> None:
        """Adds rows to a value: computed ones or, after the last of them, padding."""
        assert line.producer is not None
        producer = line.producer
        if self._calls_left(producer):
            self.call(producer)
        else:
            assert not line.is_whole
            self.calls.append(self._forms + self._padded.index(line))
            line.push(line.after)

    def _keep_behind(self, number: int, result: _Line) -> None:
        """Updates the distance of the stage's operands from a result, after a call has written more of it."""
        made = result.made + self._rows[number]
        for line in self.lines.values():
            if line.producer is None:
                to_read = [
                    (reader, max(0, row))
                    for (reader, _), row in line.next.items()
                    if self._calls_left(reader)
                ]
                rows = min([height(line.stored), *(row for _, row in to_read)])
                key = result.stored, line.stored
                behind = made * _row_bytes(result.stored) - rows * _row_bytes(line.stored)
                self.distances[key] = max(self.distances.get(key, 0), behind)
                if any(row < made for reader, row in to_read if reader != number):
                    self.needed_later.add(key)

    def _calls_left(self, number: int) -> bool:
        return self.calls_of[number] < self._steps[number].height // self._rows[number]


def _row_bytes(stored: Stored) -> int:
    return row_elements(stored) * stored.value.type.dtype.bytes
