"""The C of a stage: a function that calls its kernels in order, each time for the next rows.

It has counters, in elements, of the end of each value's rows and of the next read of each reader. A call is one case
of a switch: it makes room for its rows in the buffer of its result, calls the kernels, and advances the counters.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ..plan.program import LineBuffer, RowCalls, RowForm, Stage, Step, Stored
from .render import render


@dataclass(frozen=True, slots=True)
class Case:
    """A case of the switch: its lines, and the comment before them."""

    comment: str
    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RowLoopContext:
    """Template context of the function of a stage."""

    symbol: str
    title: str
    parameters: str
    opening: tuple[str, ...]
    order: str
    count: int
    cases: tuple[Case, ...]


class RowLoop:
    """The counters of a stage, and the lines that change them; `names` are the C names of its values."""

    def __init__(self, stage: Stage, steps: Sequence[Step], names: Mapping[Stored, str]) -> None:
        self._stage, self._steps, self._names = stage, steps, names
        self._readers: dict[Stored, list[tuple[int, int]]] = {}
        for number, step in enumerate(steps):
            for operand, start in enumerate(_calls(step).starts):
                stored = step.operands[operand]
                if start is not None and stored is not None:
                    self._readers.setdefault(stored, []).append((number, operand))

    def counters(self) -> Iterator[str]:
        """Declarations of the counters, and the rows of padding before the values."""
        for step in self._steps:
            buffer = self._stage.buffers.get(step.results[0])
            before = buffer.before * buffer.row if buffer else 0
            yield f"int32_t {self._end(step.results[0])} = {before};"
        for stored, readers in self._readers.items():
            for number, operand in readers:
                start = _calls(self._steps[number]).starts[operand]
                yield f"int32_t {self._next(stored, number, operand)} = {start};"
        for stored, buffer in self._stage.buffers.items():
            if buffer.before:
                yield _fill(self._names[stored], buffer, buffer.before)

    def operand(self, number: int, operand: int, form: RowForm) -> str:
        """The pointer to the rows that a step reads next."""
        stored = self._steps[number].operands[operand]
        assert stored is not None
        if operand in form.at_first:
            return self._names[stored]
        return f"{self._names[stored]} + {self._next(stored, number, operand)}"

    def result(self, number: int) -> str:
        """The pointer to the rows that a step writes next."""
        stored = self._steps[number].results[0]
        return f"{self._names[stored]} + {self._end(stored)}"

    def before(self, number: int) -> Iterator[str]:
        """Lines that make room for the rows that a step writes."""
        step = self._steps[number]
        buffer = self._stage.buffers.get(step.results[0])
        if buffer is not None:
            yield from self._room(buffer, _calls(step).written)

    def after(self, number: int) -> Iterator[str]:
        """Lines that advance the counters after the rows that a step has written and read."""
        step = self._steps[number]
        yield f"{self._end(step.results[0])} += {_calls(step).written};"
        for operand, advance in enumerate(_calls(step).advances):
            stored = step.operands[operand]
            if advance is not None and stored is not None:
                yield f"{self._next(stored, number, operand)} += {advance};"

    def padding(self, buffer: LineBuffer) -> Iterator[str]:
        """Lines that write rows of padding after a value."""
        end, elements = self._end(buffer.stored), buffer.after * buffer.row
        yield from self._room(buffer, elements)
        yield _fill(f"{self._names[buffer.stored]} + {end}", buffer, buffer.after)
        yield f"{end} += {elements};"

    def _room(self, buffer: LineBuffer, elements: int) -> Iterator[str]:
        if not buffer.moves:
            return
        stored, end = buffer.stored, self._end(buffer.stored)
        nexts = [self._next(stored, *reader) for reader in self._readers[stored]]
        size = stored.value.type.dtype.bytes
        yield f"if ({end} > {buffer.elements - elements}) {{"
        yield f"    int32_t gone = {end};"
        for counter in nexts:
            yield f"    gone = {counter} < gone ? {counter} : gone;"
        of_bytes = f" * {size}u" if size > 1 else ""
        yield (
            f"    fxp_to_front({self._names[stored]}, (size_t)gone{of_bytes}, "
            f"(size_t)({end} - gone){of_bytes});"
        )
        for counter in (end, *nexts):
            yield f"    {counter} -= gone;"
        yield "}"

    def _end(self, stored: Stored) -> str:
        return f"{self._names[stored]}_end"

    def _next(self, stored: Stored, number: int, operand: int) -> str:
        own = [reader for reader in self._readers[stored] if reader[0] == number]
        which = f"_{operand}" if len(own) > 1 else ""
        return f"{self._names[stored]}_at{self._stage.first + number}{which}"


def render_row_loop(context: RowLoopContext) -> str:
    """The text of the function."""
    return render("rows.c.j2", context)


def _calls(step: Step) -> RowCalls:
    assert step.rows is not None
    return step.rows


def _fill(to: str, buffer: LineBuffer, rows: int) -> str:
    size = rows * buffer.row * buffer.stored.value.type.dtype.bytes
    return f"memset({to}, {buffer.fill:#04x}, {size});"
