"""Emission of C99: one header, one source, one file of constants, a self-test, a CMake file.

The bytes depend only on the graph, the options and the target. A function that several nodes need in the same form is
emitted once, as is a constant that several kernels read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from ...ir import Graph
from ...specs import Transform
from ...specs.outputs import COutput
from ...specs.target import Target
from .. import packed_linear
from .check import check_arguments
from .cost.predict import Prediction
from .lower import Lowered, in_place, lower
from .plan.kernel_stack import CoreKind, has_stack_bound, stack_bytes
from .plan.memory import MemoryPlan
from .plan.port_layouts import layout_notes
from .plan.program import Program
from .plan.regions import STATE_BLOCK, Region
from .write.conversions import Conversion, conversions, recipe
from .write.literal import comment, integer, real
from .write.parts import computing_steps
from .write.ports import Port, memory_names, start_lines
from .write.render import render
from .write.sections import SectionMacro, code_section, weights_section
from .write.self_test import LARGEST_VECTOR, write_self_test
from .write.source import Array, SourceText, StepText, TracePoint
from .write.weights_file import HEADER_BYTES, MAGIC, VERSION, code_digest, file_bytes, weights_file

_AS_IT_IS: Mapping[str, Transform] = {}
_NO_STATES: Mapping[str, str] = {}


@dataclass(frozen=True)
class CArtifact:
    """The emitted files by name, and their sources.

    `graph` is the graph that the C computes (without conversions at inputs and outputs that are integers in C);
    `trace` has the value of each number of the source's trace hook.
    """

    name: str
    files: Mapping[str, bytes]
    lowered: Lowered
    macros: Mapping[str, str]
    notes: tuple[str, ...] = ()

    @property
    def graph(self) -> Graph:
        """The graph that the C computes."""
        return self.lowered.graph

    @property
    def program(self) -> Program:
        """The steps, each with its kernel."""
        return self.lowered.program

    @property
    def plan(self) -> MemoryPlan:
        """The location of every value."""
        return self.lowered.plan

    @property
    def ports(self) -> tuple[Port, ...]:
        """Inputs, then outputs."""
        return self.lowered.ports

    @property
    def source(self) -> SourceText:
        """Functions, constants and steps of the source file."""
        return self.lowered.source

    @property
    def prediction(self) -> Prediction:
        """Predicted cost of a run, and bytes of flash."""
        return self.lowered.prediction

    @property
    def is_estimated(self) -> bool:
        """True if cost and stack are estimated: not with kernels of a computer."""
        return has_stack_bound(self.program)

    @property
    def trace(self) -> tuple[TracePoint, ...]:
        """The values that the trace hook receives."""
        return self.source.trace

    @property
    def constant_bytes(self) -> int:
        """Bytes of the arrays in the file of constants."""
        return self.source.constant_bytes

    def write(self, folder: Path) -> list[Path]:
        """Writes all files; returns the sources of the network, without its self-test."""
        for name, data in self.files.items():
            (folder / name).write_bytes(data)
        names = (f"{self.name}.c", f"{self.name}_weights.c", *self.source.sources)
        return [folder / name for name in names]


@dataclass(frozen=True, slots=True)
class Macro:
    """A macro of the header."""

    name: str
    value: str


@dataclass(frozen=True, slots=True)
class PortContext:
    """An input or output in the header."""

    description: str
    macros: tuple[Macro, ...]
    access: Macro | None = None


@dataclass(frozen=True, slots=True)
class StackContext:
    """Stack in the header: that of the target, and that of cores for which `condition`, if any, is false."""

    macro: Macro
    condition: str
    elsewhere: int


@dataclass(frozen=True, slots=True)
class PartsContext:
    """Steps of a run in parts: their number, and the estimated time of the longest if there is an estimate.

    `waits`: the estimate includes the wait states of RAM.
    """

    steps: Macro
    longest: Macro | None
    waits: bool

    @property
    def comment(self) -> str:
        """End of the comment on the number of steps: the meaning of the estimate for the longest."""
        waits = "with the wait states of RAM, without" if self.waits else "without wait states and"
        return "" if self.longest is None else f"; estimate for the longest, {waits} interrupts"


@dataclass(frozen=True, slots=True)
class Member:
    """A pointer parameter of the emitted function that is stored in the progress of a run in parts."""

    name: str
    declaration: str


@dataclass(frozen=True, slots=True)
class HeaderContext:
    """Template context of the header."""

    name: str
    prefix: str
    ports: tuple[PortContext, ...]
    entry: str
    aligned: str
    members: tuple[Member, ...]
    regions: tuple[str, ...]
    memory: tuple[Macro, ...]
    state: tuple[Macro, ...]
    weights: tuple[Macro, ...]
    parts: PartsContext | None
    stack: StackContext | None
    ports_in_arena: bool
    has_test: bool
    conversions: tuple[Conversion, ...]

    @property
    def working(self) -> str:
        """The working memory as text."""
        *others, last = self.regions
        if others:
            return f"regions {', '.join(others)} and {last}"
        return last if last == Region().name else f"region {last}"

    @property
    def several(self) -> str:
        """End of the comment on sizes; empty for one region."""
        return ", by region of RAM; a region of 0 bytes may be null" if len(self.regions) > 1 else ""

    @property
    def parameters(self) -> str:
        """Parameters of the emitted function."""
        return _parameters(self.members)


@dataclass(frozen=True, slots=True)
class WeightsIdentity:
    """Check of the header of a weights file, for C code with the file as `words`."""

    prefix: str

    @property
    def differs(self) -> str:
        """C expression: the file does not belong to this code."""
        digest = f"{self.prefix}_WEIGHTS_DIGEST"
        return (
            f"words[0] != {MAGIC:#010x}u || words[1] != {VERSION}u || words[4] != (uint32_t){digest} || "
            f"words[5] != (uint32_t)({digest} >> 32)"
        )


@dataclass(frozen=True, slots=True)
class SourceContext:
    """Template context of the source file."""

    name: str
    entry: str
    prefix: str
    body: str
    includes: tuple[str, ...]
    uses_memory: bool
    support: tuple[str, ...]
    declarations: tuple[str, ...]
    functions: tuple[str, ...]
    members: tuple[Member, ...]
    pointers: tuple[str, ...]
    uses_states: bool
    null_check: str
    alignment_check: str
    weights: WeightsIdentity | None
    kernel_header: str
    steps: tuple[StepText, ...]
    state_mask: int
    starts: tuple[str, ...]
    section: SectionMacro | None

    @property
    def parameters(self) -> str:
        """Parameters of the emitted function."""
        return _parameters(self.members)

    @property
    def arguments(self) -> str:
        """The same as arguments of a call."""
        return ", ".join(member.name for member in self.members)

    @property
    def placed(self) -> str:
        """Start of the definition of a function: the macro of its section, or empty."""
        return "" if self.section is None else f"{self.section.macro} "


@dataclass(frozen=True, slots=True)
class WeightsContext:
    """Template context of the constants file."""

    name: str
    prefix: str
    constants: tuple[Array, ...]
    section: SectionMacro | None = None

    @property
    def header_bytes(self) -> int:
        """Bytes before the constants in a weights file."""
        return HEADER_BYTES

    @property
    def identity(self) -> WeightsIdentity:
        """Check of the header of a weights file."""
        return WeightsIdentity(self.prefix)


@dataclass(frozen=True, slots=True)
class CMakeContext:
    """Template context of the CMake file."""

    name: str
    prefix: str
    sources: tuple[str, ...]
    uses_math: bool
    has_test: bool


def emit(
    graph: Graph,
    options: COutput,
    target: Target,
    *,
    vectors: Sequence[Sequence[Tensor]] = (),
    transforms: Mapping[str, Transform] = _AS_IT_IS,
    states: Mapping[str, str] = _NO_STATES,
) -> CArtifact:
    """The C of a graph. `vectors` are inputs for the self-test: reals, or the integers of the emitted function.

    The header describes how inputs are made from the numbers of a file, and which inputs are outputs of the previous
    call.
    """
    check_arguments(graph, options, target, "emit(graph, options, target)")
    kept = states if options.states == "in_place" else _NO_STATES
    options = in_place(options, kept)
    lowered = lower(graph, options, target, states=kept)
    name, program, plan = options.name, lowered.program, lowered.plan
    found, source = lowered.ports, lowered.source
    untested = _untested(found) if kept and options.self_test else ()
    has_test = options.self_test > 0 and not untested
    notes = {port: f"file to model: {text}" for port, t in transforms.items() if (text := recipe(t))}
    for port, output in states.items():
        start = f"; at the start {notes[port]}" if port in notes else ""
        notes[port] = (
            f"state: the output {output} of the call before{', updated in place' if kept else ''}{start}"
        )
    header = _header_context(
        name,
        program,
        plan,
        found,
        notes,
        CoreKind.of(target),
        is_in_file=source.is_in_file,
        in_parts=source.in_parts,
        has_test=has_test,
    )
    header = replace(
        header,
        conversions=conversions(name, found, transforms),
        weights=_weights_macros(name, source),
        parts=_parts(name, lowered) if source.in_parts else None,
    )
    placed = code_section(name.upper(), options.sections.code)
    source_text = render("model.c.j2", _source_context(name, plan, found, source, placed))
    digest = code_digest(render("header.h.j2", header), source_text)
    if source.is_in_file:
        header = replace(
            header, weights=(*header.weights, Macro(f"{name.upper()}_WEIGHTS_DIGEST", f"{digest:#018x}ull"))
        )
    weights_template = "weights_file.c.j2" if source.is_in_file else "weights.c.j2"
    files = {
        f"{name}.h": render("header.h.j2", header),
        f"{name}.c": source_text,
        f"{name}_weights.c": render(
            weights_template,
            WeightsContext(
                name,
                name.upper(),
                source.arrays,
                weights_section(name.upper(), options.sections.weights),
            ),
        ),
    }
    if has_test:
        files[f"{name}_test.c"] = write_self_test(
            name,
            lowered.graph,
            found,
            vectors,
            regions=[used.name for used in plan.regions],
            is_in_file=source.is_in_file,
        )
    if "cmake" in options.package:
        context = CMakeContext(
            name,
            name.upper(),
            source.sources,
            source.uses_math or bool(source.sources),
            has_test=has_test,
        )
        files["CMakeLists.txt"] = render("CMakeLists.txt.j2", context)
    return CArtifact(
        name,
        {file: text.encode("ascii") for file, text in files.items()} | _binary_files(name, source, digest),
        lowered,
        {m.name: m.value for m in _macros(header)},
        (
            *lowered.notes,
            *untested,
            *_parts_notes(lowered),
            *layout_notes(lowered.graph, options.layouts),
        ),
    )


def _untested(ports: tuple[Port, ...]) -> tuple[str, ...]:
    """A note if a vector of the self-test, including states, is too large for C arrays."""
    numbers = sum(port.type.numel for port in ports)
    if numbers <= LARGEST_VECTOR:
        return ()
    return (
        f"no self-test: a vector with its states has {numbers:,} numbers, at most {LARGEST_VECTOR:,} become C arrays",
    )


def entry_name(name: str, ports: tuple[Port, ...]) -> str:
    """Name of the emitted function: a step function if states are updated in place."""
    return f"{name}_step" if any(port.is_state for port in ports) else f"{name}_run"


def _aligned(ports: tuple[Port, ...], regions: Sequence[str], *, is_in_file: bool) -> str:
    """The pointers that have to be aligned, as text."""
    further = [STATE_BLOCK] * any(port.is_state for port in ports) + ["weights"] * is_in_file
    first = f"the {regions[0]}" if regions[0] == Region().name else regions[0]
    *others, last = [first, *regions[1:], *further]
    return f"{', '.join(others)} or {last} are" if others else f"{last} is"


def _macros(header: HeaderContext) -> Iterator[Macro]:
    yield from header.memory
    yield from header.state
    yield from header.weights
    if header.parts is not None:
        yield header.parts.steps
        yield from () if header.parts.longest is None else (header.parts.longest,)
    if header.stack is not None:
        yield header.stack.macro
    for port in header.ports:
        yield from port.macros


def _weights_macros(name: str, source: SourceText) -> tuple[Macro, ...]:
    """Size and alignment of the weights file."""
    if not source.is_in_file:
        return ()
    prefix = f"{name.upper()}_WEIGHTS"
    return (
        Macro(f"{prefix}_BYTES", str(file_bytes(source.arrays))),
        Macro(f"{prefix}_ALIGNMENT", str(source.file_alignment)),
    )


def _binary_files(name: str, source: SourceText, digest: int) -> dict[str, bytes]:
    """Kernels that are copied unchanged, with their header, and the weights file."""
    kernels = (*source.sources, packed_linear.HEADER) if source.sources else ()
    files = {file: (packed_linear.FOLDER / file).read_bytes() for file in kernels}
    return files | ({f"{name}_weights.bin": weights_file(source.arrays, digest)} if source.is_in_file else {})


def _header_context(
    name: str,
    program: Program,
    plan: MemoryPlan,
    ports: tuple[Port, ...],
    notes: Mapping[str, str],
    kind: CoreKind | None,
    *,
    is_in_file: bool,
    in_parts: bool,
    has_test: bool,
) -> HeaderContext:
    prefix = name.upper()
    regions = tuple(used.name for used in plan.regions)
    return HeaderContext(
        name,
        prefix,
        tuple(
            _port_context(prefix, port, notes.get(port.name, "") if port.is_input else "") for port in ports
        ),
        entry_name(name, ports),
        _aligned(ports, regions, is_in_file=is_in_file),
        _members(ports, regions, is_in_file=is_in_file),
        regions,
        tuple(
            Macro(f"{prefix}_{used.name.upper()}_{noun}", str(value))
            for used in plan.regions
            for noun, value in (("BYTES", used.bytes), ("ALIGNMENT", plan.alignment))
        ),
        (
            Macro(f"{prefix}_STATE_BYTES", str(plan.state_bytes)),
            Macro(f"{prefix}_STATE_ALIGNMENT", str(plan.state_alignment)),
        )
        if plan.state_bytes
        else (),
        (),
        None,
        _stack_context(prefix, program, len(regions), kind, in_parts=in_parts)
        if has_stack_bound(program)
        else None,
        ports_in_arena=any(port.region is not None for port in ports),
        has_test=has_test,
        conversions=(),
    )


def _stack_context(
    prefix: str, program: Program, regions: int, kind: CoreKind | None, *, in_parts: bool
) -> StackContext:
    stated, elsewhere = (
        stack_bytes(program, core, regions=regions, in_parts=in_parts) for core in (kind, None)
    )
    condition = "" if kind is None or stated == elsewhere else kind.condition
    return StackContext(Macro(f"{prefix}_STACK_BYTES", str(stated)), condition, elsewhere)


def _port_context(prefix: str, port: Port, note: str) -> PortContext:
    role = "input" if port.is_input else "output"
    shape = ", ".join(map(str, port.stored_shape))
    named = "" if port.name == port.parameter else f' ("{comment(port.name)}")'
    description = f"{role} {port.parameter}{named}: {port.c_type} [{shape}]"
    macros = [Macro(f"{prefix}_{port.macro}_SIZE", str(port.type.numel))]
    encoding = port.encoding
    if encoding is not None:
        scale, zero = real(encoding.scale), encoding.zero_point
        steps = f"integer - {zero}" if zero >= 0 else f"integer + {-zero}"
        added = f" + {real(encoding.offset)}" if encoding.offset else ""
        description += f", real = ({steps}) * {scale}{added}"
        macros.append(Macro(f"{prefix}_{port.macro}_SCALE", scale))
        macros.append(Macro(f"{prefix}_{port.macro}_ZERO_POINT", integer(zero) if zero >= 0 else f"({zero})"))
        if encoding.offset:
            macros.append(Macro(f"{prefix}_{port.macro}_REAL_OFFSET", real(encoding.offset)))
    description += f"; {comment(note)}" if note else ""
    if port.offset is None or (port.is_state and not port.is_input):
        return PortContext(description, tuple(macros))
    place = Macro(f"{prefix}_{port.macro}_OFFSET", str(port.offset))
    address = f"(({port.c_type} *)(void *)((unsigned char *)({port.block}) + {place.name}))"
    access = Macro(f"{prefix}_{port.macro}_IN({port.block})", address)
    return PortContext(description, (*macros, place), access)


def _source_context(
    name: str,
    plan: MemoryPlan,
    ports: tuple[Port, ...],
    source: SourceText,
    section: SectionMacro | None,
) -> SourceContext:
    pointers = [port.parameter for port in ports if port.offset is None]
    regions = [used.name for used in plan.regions]
    pointers += [STATE_BLOCK] if plan.state_bytes else []
    pointers += ["weights"] if source.is_in_file else []
    pointers += [used.name for used in plan.regions if used.bytes]
    alignments = [(region, plan.alignment) for region in regions]
    alignments += [(STATE_BLOCK, plan.state_alignment)] if plan.state_bytes else []
    alignments += [("weights", source.file_alignment)] if source.is_in_file else []
    return SourceContext(
        name,
        entry_name(name, ports),
        name.upper(),
        "parts.c.j2" if source.in_parts else "whole.c.j2",
        ("stddef.h", "stdint.h", *(("math.h",) if source.uses_math else ())),
        source.uses_memory or plan.state_bytes > 0,
        source.support if section is None else tuple(map(section.placed, source.support)),
        () if source.is_in_file else tuple(a.declaration for a in source.arrays),
        tuple(f.text if section is None else section.placed(f.text) for f in source.functions),
        _members(ports, regions, is_in_file=source.is_in_file),
        tuple(_block_pointers(plan, source)),
        plan.state_bytes > 0,
        " || ".join(f"{pointer} == NULL" for pointer in pointers),
        " || ".join(f"((uintptr_t){pointer} & {size - 1}u) != 0u" for pointer, size in alignments),
        WeightsIdentity(name.upper()) if source.is_in_file else None,
        packed_linear.HEADER if source.sources else "",
        computing_steps(source.steps) if source.in_parts else source.steps,
        plan.state_alignment - 1,
        tuple(line for port in ports if port.is_state and port.is_input for line in start_lines(port)),
        section,
    )


def _block_pointers(plan: MemoryPlan, source: SourceText) -> Iterator[str]:
    """C that declares the start of regions, states and weights, if they exist."""
    given = "progress->" if source.in_parts else ""
    names = memory_names([used.region for used in plan.regions])
    for used, name in zip(plan.regions, names, strict=True):
        if source.mentions(name):
            yield f"unsigned char *const {name} = (unsigned char *){given}{used.name};"
            if not source.computes_with(name):
                yield f"(void){name}; /* read by the trace alone */"
    if plan.state_bytes:
        yield f"unsigned char *const states = (unsigned char *){given}state;"
    if source.is_in_file:
        yield f"const unsigned char *const constants = (const unsigned char *){given}weights;"


def _parts(name: str, lowered: Lowered) -> PartsContext:
    """Macros of a run in parts."""
    prefix, prediction = name.upper(), lowered.prediction
    longest = Macro(
        f"{prefix}_LONGEST_STEP_{prediction.unit.upper()}",
        str(_longest_part(lowered)[1]),
    )
    return PartsContext(
        Macro(f"{prefix}_STEPS", str(len(computing_steps(lowered.source.steps)))),
        longest if has_stack_bound(lowered.program) else None,
        prediction.unit == "cycles" and lowered.plan.wait_cycles > 0,
    )


def _parts_notes(lowered: Lowered) -> Iterator[str]:
    """A note on the longest step of a run in parts."""
    if not lowered.source.in_parts or not has_stack_bound(lowered.program) or not lowered.prediction.nodes:
        return
    prediction, count = lowered.prediction, len(computing_steps(lowered.source.steps))
    first, time = _longest_part(lowered)
    share = 100 * time / max(prediction.time, 1)
    longest, (_, last) = prediction.nodes[first], lowered.program.span(first)
    name = f"{longest.operator} {longest.result}"
    if last > first:
        name = f"{name} to {prediction.nodes[last].result}, {last - first + 1} layers that compute some rows at a time"
    yield (
        f"a run has {count} step{'s' * (count != 1)}, and a part at least one; the longest is {name}, "
        f"estimated at {time:,} {prediction.unit} ({share:.0f} % of a run)"
    )


def _longest_part(lowered: Lowered) -> tuple[int, int]:
    """The number of the first of the consecutive steps (run together) that take longest, and their predicted time."""
    times: Counter[int] = Counter()
    for number, node in enumerate(lowered.prediction.nodes):
        times[lowered.program.span(number)[0]] += node.time
    return max(times.items(), key=lambda item: (item[1], -item[0]), default=(0, 0))


def _members(ports: tuple[Port, ...], regions: Sequence[str], *, is_in_file: bool) -> tuple[Member, ...]:
    passed = [port for port in ports if port.offset is None]
    inputs, outputs = (
        [Member(port.parameter, port.declaration) for port in passed if port.is_input is is_input]
        for is_input in (True, False)
    )
    state = [Member("state", "void *state")] if any(port.is_state for port in ports) else []
    weights = [Member("weights", "const void *weights")] if is_in_file else []
    return (*inputs, *state, *outputs, *weights, *(Member(name, f"void *{name}") for name in regions))


def _parameters(members: Sequence[Member]) -> str:
    return ", ".join(member.declaration for member in members)
