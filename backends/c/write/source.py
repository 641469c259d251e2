"""The C source of a program: its functions, its constants, and the body of the function that calls them."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ....ir import Source
from ..kernels.base import AnyArray, Call, Constant
from ..plan.memory import Location, MemoryPlan, Storage
from ..plan.program import Program, RowForm, Stage, Step, Stored
from .literal import C_TYPES, array, array_type, comment, integer
from .ports import Port, memory_names, to_memory
from .row_loop import Case, RowLoop, RowLoopContext, render_row_loop
from .support import helpers

_DECODER = "huffman.h"
_STATES = "states"


@dataclass(frozen=True, slots=True)
class Array:
    """A constant array as it is written; `step` is the first step that reads it.

    `offset` is the byte offset in the weights file; None for an array in C.
    """

    symbol: str
    data: AnyArray
    comment: str
    step: int = 0
    offset: int | None = None

    @property
    def c_type(self) -> str:
        """The type of its elements."""
        return array_type(self.data)

    @property
    def size(self) -> int:
        """Number of elements."""
        return int(self.data.size)

    @property
    def numbers(self) -> str:
        """Its initializer."""
        return array(self.data)

    @property
    def bytes(self) -> int:
        """Bytes of flash, aligned to 4."""
        return -(-self.data.nbytes // 4) * 4

    @property
    def pointer(self) -> str:
        """The C expression of its address: its name, or an offset in the weights file."""
        if self.offset is None:
            return self.symbol
        return f"(const {self.c_type} *)(const void *)(constants + {self.offset})"

    @property
    def declaration(self) -> str:
        """Its declaration for the source that reads it."""
        return f"extern const {self.c_type} {self.symbol}[{self.size}];"


@dataclass(frozen=True, slots=True)
class FilePlaces:
    """Offsets in a weights file: the byte from which constants are stored, and their alignment."""

    start: int
    alignment: int


@dataclass(frozen=True, slots=True)
class FunctionText:
    """A C function as it is written; `step` is the first step that calls it, `template` its template.

    A function that is `shared` by several calls is not cloned: without FXP_NOCLONE, GCC makes a copy for each call.
    """

    symbol: str
    text: str
    template: str
    step: int
    shared: bool = False


@dataclass(frozen=True, slots=True)
class StepText:
    """One step of the body: a comment with its origin, and its lines."""

    comment: str
    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TracePoint:
    """Value with a trace number, and its memory layout."""

    number: int
    stored: Stored


@dataclass(frozen=True)
class SourceText:
    """Functions, constants and steps of a program, in order.

    `support` are the helpers that they need, `sources` are files of `packed_linear` that define called functions.
    `file_alignment` is the alignment of the address at which a weights file is stored.
    """

    support: tuple[str, ...]
    functions: tuple[FunctionText, ...]
    arrays: tuple[Array, ...]
    steps: tuple[StepText, ...]
    trace: tuple[TracePoint, ...]
    uses_math: bool
    sources: tuple[str, ...] = ()
    file_alignment: int = 1
    in_parts: bool = False

    @property
    def is_in_file(self) -> bool:
        """True if the constants are in a weights file."""
        return any(array.offset is not None for array in self.arrays)

    @property
    def uses_memory(self) -> bool:
        """True if memcpy or memset occur."""
        calling = (
            *(function.text for function in self.functions),
            *(line for s in self.steps for line in s.lines),
        )
        return any(name in text for name in ("memcpy(", "memset(") for text in (*self.support, *calling))

    def mentions(self, name: str) -> bool:
        """True if a step uses a variable."""
        word = re.compile(rf"\b{name}\b")
        return any(word.search(line) for step in self.steps for line in step.lines)

    def computes_with(self, name: str) -> bool:
        """True if a step uses a variable outside of its trace."""
        word = re.compile(rf"\b{name}\b")
        lines = (line for step in self.steps for line in step.lines)
        return any(word.search(line) for line in lines if not line.startswith("FXP_TRACE("))

    @property
    def constant_bytes(self) -> int:
        """Bytes of flash of the arrays."""
        return sum(array.bytes for array in self.arrays)


def write_source(
    name: str,
    program: Program,
    plan: MemoryPlan,
    ports: tuple[Port, ...],
    *,
    in_file: FilePlaces | None = None,
    in_parts: bool = False,
) -> SourceText:
    """The C of a program with the locations of `plan`; its constants are arrays, or parts of a file.

    With `in_parts` steps share no names, and inputs and outputs are members of a structure at `progress`.
    """
    if in_parts:
        ports = tuple(replace(port, parameter=f"progress->{port.parameter}") for port in ports)
    return _Writer(name, program, plan, ports, in_file, in_parts).write()


@dataclass
class _Writer:
    name: str
    program: Program
    plan: MemoryPlan
    ports: tuple[Port, ...]
    in_file: FilePlaces | None
    in_parts: bool
    _functions: dict[Hashable, FunctionText] = field(default_factory=dict)
    _arrays: dict[tuple[str, bytes], Array] = field(default_factory=dict)
    _declared: dict[Stored, str] = field(default_factory=dict)
    _decoded: dict[tuple[int, bytes], str] = field(default_factory=dict)
    _symbols: set[str] = field(default_factory=set)
    _headers: set[str] = field(default_factory=set)
    _calls: Counter[str] = field(default_factory=Counter)
    _trace: list[TracePoint] = field(default_factory=list)
    _sources: set[str] = field(default_factory=set)
    _ports_used: dict[str, str] = field(default_factory=dict)
    _blocks_used: set[str] = field(default_factory=set)
    _uses_math: bool = False
    _number: int = 0
    _file_end: int = 0

    def write(self) -> SourceText:
        steps: list[StepText] = []
        stages = {stage.first: stage for stage in self.program.stages}
        for number, step in enumerate(self.program.steps):
            steps += self._copies(number)
            if number in stages:
                steps.append(self._stage(stages[number]))
            elif step.rows is None:
                steps.append(self._step(number, step))
        steps += self._copies(len(self.program.steps))
        functions = tuple(map(self._linked, self._functions.values()))
        calling = (*(f.text for f in functions), *(line for step in steps for line in step.lines))
        return SourceText(
            helpers(sorted(self._headers), calling),
            functions,
            tuple(self._arrays.values()),
            tuple(step for step in steps if step.lines),
            tuple(self._trace),
            self._uses_math,
            tuple(sorted(self._sources)),
            1 if self.in_file is None else self.in_file.alignment,
            self.in_parts,
        )

    def _stage(self, stage: Stage) -> StepText:
        """The call of a function that runs the steps of a stage, and the values that are whole after it."""
        steps = self.program.steps[stage.first : stage.stop]
        outer, self._declared, self._ports_used, self._blocks_used = self._declared, {}, {}, set()
        opening, names = self._pointers(steps)
        self._declared = names
        loop = RowLoop(stage, steps, names)
        opening += loop.counters()
        cases: list[Case] = []
        for index, step in enumerate(steps):
            number = self._number = stage.first + index
            opening += self._decode(number, step)
            cases += self._row_cases(loop, index, step)
        for buffer in stage.buffers.values():
            lines = [*loop.padding(buffer)] if buffer.after else []
            cases.append(Case(f"padding behind {comment(buffer.stored.value.name)}", tuple(lines)))
        self._number = stage.first
        title = f"steps {stage.first} to {stage.stop - 1}, some rows at a time"
        order = self._array(f"order_{stage.first}", np.array(stage.order, np.uint8), f"order of {title}")
        symbol = f"{self.name}_rows_{stage.first}"
        passed = self._ports_used
        if self.in_parts and passed:
            passed = {"progress": f"const {self.name}_progress *progress"}
        blocks = [*memory_names([used.region for used in self.plan.regions]), _STATES]
        declarations = {name: f"unsigned char *{name}" for name in blocks if name in self._blocks_used}
        declarations |= passed
        declarations |= {"constants": "const unsigned char *constants"} if self.in_file else {}
        context = RowLoopContext(
            symbol,
            title,
            ", ".join(declarations.values()),
            tuple(opening),
            order,
            len(stage.order),
            tuple(cases),
        )
        self._functions["rows", stage.first] = FunctionText(
            symbol, render_row_loop(context), "rows", stage.first
        )
        self._calls[symbol] += 1
        self._headers.add("rows.h")
        self._declared = outer
        lines = [f"{symbol}({', '.join(declarations)});"]
        for step in steps:
            lines += [self._traced(stored) for stored in step.results if stored in stage.results]
        return StepText(title, tuple(lines))

    def _pointers(self, steps: Sequence[Step]) -> tuple[list[str], dict[Stored, str]]:
        """Declarations of pointers to the values of a stage that have rows, and their names."""
        lines: list[str] = []
        names: dict[Stored, str] = {}
        produced = {stored for step in steps for stored in step.results}
        for step in steps:
            assert step.rows is not None
            read = [s for s, start in zip(step.operands, step.rows.starts, strict=True) if start is not None]
            for stored in (*read, *step.results):
                if stored is None or stored in names:
                    continue
                c_type = C_TYPES[stored.value.type.dtype]
                names[stored] = f"{'t' if stored in produced else 'x'}{len(names)}"
                constant = "" if stored in produced else "const "
                lines.append(f"{constant}{c_type} *const {names[stored]} = {self._pointer(stored)};")
        return lines, names

    def _row_cases(self, loop: RowLoop, index: int, step: Step) -> Iterator[Case]:
        """A case for each form of the calls of a step."""
        rows, done = step.rows, 0
        assert rows is not None
        assert sum(form.kernels for form in rows.forms) == len(step.calls)
        for form in rows.forms:
            calls = step.calls[done : done + form.kernels]
            done += form.kernels
            made = [self._row_call(loop, index, step, form, call) for call in calls]
            several = f", {form.count} of {rows.count} calls" if len(rows.forms) > 1 else ""
            title = f"{self._number}: {step.operator}{_origin(step.source)}{several}"
            yield Case(title, (*loop.before(index), *made, *loop.after(index)))

    def _row_call(self, loop: RowLoop, index: int, step: Step, form: RowForm, call: Call) -> str:
        assert step.rows is not None
        reads = [
            self._operand(step.operands[i], step)
            if step.rows.starts[i] is None
            else loop.operand(index, i, form)
            for i in call.reads
        ]
        writes = [loop.result(index) for _ in call.writes]
        return self._called(self._number, step, call, reads + writes)

    def _step(self, number: int, step: Step) -> StepText:
        self._number = number
        lines = self._decode(number, step)
        for position, call in enumerate(step.calls):
            if (number, position) in self.plan.placed:
                continue
            for index in call.writes:
                lines += self._declare(number, index, step.results[index])
            lines.append(self._call(number, step, call))
        for stored in step.results:
            lines.append(self._traced(stored))
        return StepText(f"{number}: {step.operator}{_origin(step.source)}", tuple(lines))

    def _traced(self, stored: Stored) -> str:
        number = len(self._trace)
        self._trace.append(TracePoint(number, stored))
        return f"FXP_TRACE({number}, {self._pointer(stored)}, {stored.bytes});"

    def _call(self, number: int, step: Step, call: Call) -> str:
        pointers = [self._operand(step.operands[index], step) for index in call.reads]
        pointers += [self._pointer(step.results[index]) for index in call.writes]
        return self._called(number, step, call, pointers)

    def _called(self, number: int, step: Step, call: Call, pointers: Sequence[str]) -> str:
        """A call with pointers to its operands and results."""
        function = self._function(number, step, call)
        self._calls[function] += 1
        arguments = [*pointers]
        arguments += [self._constant(number, step, constant) for constant in call.constants]
        arguments += map(integer, call.numbers)
        if call.scratch:
            arguments.append(f"(void *)({self._at(self.plan.scratch[number])})")
        return f"{function}({', '.join(arguments)});"

    def _decode(self, number: int, step: Step) -> list[str]:
        """Lines that decode the step's constants after the scratch memory of its calls, used first by the decoder."""
        lines, at = [], step.offer.decoded_at
        for index, constant in enumerate(step.offer.coded):
            image, c_type = constant.image, array_type(constant.data)
            assert image is not None
            symbol = f"w{number}" if index == 0 else f"w{number}_{index}"
            text = f"{constant.role} of {step.operator}{_origin(step.source)}, coded"
            stored = self._array(f"{constant.role}_{number}", image.halfwords, text)
            scratch = self.plan.scratch[number]
            weights = replace(scratch, offset=scratch.offset + at)
            lines.append(f"{c_type} *const {symbol} = ({c_type} *)(void *)({self._at(weights)});")
            table = f"(uint16_t *)(void *)({self._at(scratch)})"
            lines.append(
                f"fxp_decode({stored}, {image.codes_at}, (uint8_t *){symbol}, {constant.bytes // 4}, {table});"
            )
            self._headers.add(_DECODER)
            self._decoded[number, constant.data.tobytes()] = symbol
            at += constant.bytes
        return lines

    def _constant(self, number: int, step: Step, constant: Constant) -> str:
        if constant.image is not None:
            return self._decoded[number, constant.data.tobytes()]
        text = f"{constant.role} of {step.operator}{_origin(step.source)}"
        return self._array(f"{constant.role}_{number}", constant.data, text)

    def _function(self, number: int, step: Step, call: Call) -> str:
        known = self._functions.get(call.function.key)
        if known is not None:
            return known.symbol
        symbol = f"{self.name}_{step.operator}_{number}"
        while symbol in self._symbols:
            symbol += "_"
        self._symbols.add(symbol)
        self._headers.update(call.function.headers)
        self._sources.update(call.function.sources)
        self._uses_math |= call.function.uses_math
        text = call.function.render(symbol)
        self._functions[call.function.key] = FunctionText(symbol, text, call.function.template, number)
        return symbol

    def _linked(self, function: FunctionText) -> FunctionText:
        """The function with the linkage for its number of calls."""
        if self._calls[function.symbol] < 2:
            return function
        text = function.text.replace(
            f"FXP_NOINLINE void {function.symbol}(", f"FXP_NOCLONE void {function.symbol}("
        )
        return replace(function, text=text, shared=True)

    def _array(self, role: str, data: AnyArray, text: str) -> str:
        key = (data.dtype.name, hashlib.sha256(data.tobytes()).digest())
        if key not in self._arrays:
            symbol = f"{self.name}_{role}"
            while symbol in self._symbols:
                symbol += "_"
            self._symbols.add(symbol)
            self._arrays[key] = Array(symbol, data, comment(text), self._number, self._place(data.nbytes))
        return self._arrays[key].pointer

    def _place(self, size: int) -> int | None:
        """The next offset in the weights file; None without one."""
        if self.in_file is None:
            return None
        alignment = self.in_file.alignment
        at = -(-max(self.in_file.start, self._file_end) // alignment) * alignment
        self._file_end = at + size
        return at

    def _operand(self, stored: Stored | None, step: Step) -> str:
        assert stored is not None
        return self._pointer(stored)

    def _declare(self, number: int, index: int, stored: Stored) -> list[str]:
        location = self.plan.locations[stored]
        if location.storage is not Storage.ARENA or stored in self._declared or self.in_parts:
            return []
        c_type = C_TYPES[stored.value.type.dtype]
        symbol = f"t{number}" if index == 0 else f"t{number}_{index}"
        pointer = self._pointer(stored)
        self._declared[stored] = symbol
        return [f"{c_type} *const {symbol} = {pointer};"]

    def _pointer(self, stored: Stored) -> str:
        if stored in self._declared:
            return self._declared[stored]
        location = self.plan.locations[stored]
        if location.storage is Storage.FLASH:
            return self._shifted(self._flash(location), stored, location)
        if location.storage in (Storage.ARENA, Storage.STATE):
            through = "" if stored.value.type.dtype.bytes == 1 else "(void *)"
            return f"({C_TYPES[stored.value.type.dtype]} *){through}({self._at(location)})"
        sides = [port for port in self.ports if port.is_input == (location.storage is Storage.INPUT)]
        port, c_type = sides[location.index], C_TYPES[stored.value.type.dtype]
        self._ports_used[port.parameter] = port.declaration
        if c_type != port.c_type:  # the operand of an output that is converted in place
            return self._shifted(f"({c_type} *){port.parameter}", stored, location)
        return self._shifted(port.parameter, stored, location)

    def _at(self, location: Location) -> str:
        """The C expression of a location in a region of RAM or in the block of states."""
        names = memory_names([used.region for used in self.plan.regions])
        block = _STATES if location.storage is Storage.STATE else names[location.index]
        self._blocks_used.add(block)
        return f"{block} + {location.offset}"

    def _shifted(self, base: str, stored: Stored, location: Location) -> str:
        elements = location.offset // stored.value.type.dtype.bytes
        return f"{base} + {elements}" if elements else base

    def _flash(self, location: Location) -> str:
        stored = location.constant
        assert stored is not None
        data = to_memory(self.program.graph.tensor(stored.value), stored)
        return self._array(f"constant_{len(self._arrays)}", data, f"constant {stored.value.name}")

    def _copies(self, before: int) -> list[StepText]:
        """The copies to outputs before a step."""
        rows = zip(self.plan.returned, self.plan.copied_before, strict=True)
        return [self._returned(i, row) for i, (row, number) in enumerate(rows) if number == before]

    def _returned(self, position: int, returned: tuple[Stored, int]) -> StepText:
        stored, index = returned
        self._number = len(self.program.steps) + position
        port = [port for port in self.ports if not port.is_input][index]
        to = port.parameter if port.offset is None else self._at(self.plan.outputs[index])
        line = f"memcpy({to}, {self._pointer(stored)}, {stored.bytes});"
        return StepText(f"output {comment(port.name)}", (line,))


def _origin(source: Source) -> str:
    return f" from {comment(str(source))}" if str(source) else ""
