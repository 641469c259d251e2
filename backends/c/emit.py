"""Emission of C99: one header, one source, one file of constants, a self-test, a CMake file.

The bytes depend on the graph, the options and the target alone. A function that several nodes need in the same form
is emitted once, and so is a constant that several kernels read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ...ir import Graph, run_integer
from ...specs.outputs import COutput
from ...specs.target import Target
from .literal import array, comment, integer, real
from .memory import MemoryPlan, plan_memory
from .ports import Port, port_layouts, ports, to_memory
from .prepare import renumber_flattened, strip_edges
from .program import Program
from .select import select
from .source import Array, SourceText, TracePoint, support, write_source
from .target import Machine

_ENVIRONMENT = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
    autoescape=False,
)
_STACK_BYTES = 512


@dataclass(frozen=True)
class CArtifact:
    """The emitted files by name, and what they were made from."""

    name: str
    files: Mapping[str, bytes]
    graph: Graph
    program: Program
    plan: MemoryPlan
    ports: tuple[Port, ...]
    trace: tuple[TracePoint, ...]
    constant_bytes: int
    macros: Mapping[str, str]


@dataclass(frozen=True)
class Lowered:
    """A graph made ready for C: kernels and layouts chosen, memory planned."""

    graph: Graph
    program: Program
    plan: MemoryPlan


def lower(graph: Graph, options: COutput, target: Target) -> Lowered:
    """Choose kernels, layouts and places for a graph; nothing is written."""
    prepared = renumber_flattened(graph if options.io == "float" else strip_edges(graph))
    inputs = port_layouts([v.name for v in prepared.inputs], prepared.inputs, options.layouts)
    outputs = port_layouts(prepared.output_names, prepared.outputs, options.layouts)
    program = select(prepared, Machine.of(target), inputs=inputs, outputs=outputs)
    return Lowered(prepared, program, plan_memory(program))


def emit(
    graph: Graph,
    options: COutput,
    target: Target,
    *,
    vectors: Sequence[Sequence[torch.Tensor]] = (),
) -> CArtifact:
    """The C of a graph. `vectors` are inputs for the self-test: reals, or what the emitted function takes."""
    lowered = lower(graph, options, target)
    program, plan = lowered.program, lowered.plan
    found = ports(lowered.graph, program.inputs, program.outputs)
    source = write_source(options.name, program, plan, found)
    macros = _macros(options.name, plan, found)
    files = {
        f"{options.name}.h": _header(options.name, plan, found),
        f"{options.name}.c": _source(options.name, plan, found, source),
        f"{options.name}_weights.c": _render("weights.c.j2", WeightsContext(options.name, source.arrays)),
        f"{options.name}_test.c": _test(options.name, lowered.graph, found, vectors),
        "CMakeLists.txt": _render("CMakeLists.txt.j2", CMakeContext(options.name, source.uses_math)),
    }
    return CArtifact(
        options.name,
        {name: text.encode("ascii") for name, text in files.items()},
        lowered.graph,
        program,
        plan,
        found,
        source.trace,
        source.constant_bytes,
        macros,
    )


@dataclass(frozen=True, slots=True)
class PortContext:
    """A port as the header shows it."""

    role: str
    parameter: str
    comment: str
    macro: str
    c_type: str
    stored_shape: str
    size: int
    grid: str
    scale: str
    zero_point: str


@dataclass(frozen=True, slots=True)
class HeaderContext:
    """What the header's template sees."""

    name: str
    prefix: str
    ports: tuple[PortContext, ...]
    parameters: str
    arena_bytes: int
    alignment: int
    stack_bytes: int


@dataclass(frozen=True, slots=True)
class SourceContext:
    """What the source's template sees."""

    name: str
    includes: tuple[str, ...]
    support: tuple[str, ...]
    declarations: tuple[str, ...]
    functions: tuple[str, ...]
    parameters: str
    uses_arena: bool
    null_check: str
    alignment_mask: int
    steps: tuple[object, ...]


@dataclass(frozen=True, slots=True)
class WeightsContext:
    """What the template of the constants sees."""

    name: str
    constants: tuple[Array, ...]


@dataclass(frozen=True, slots=True)
class CMakeContext:
    """What the CMake template sees."""

    name: str
    uses_math: bool


@dataclass(frozen=True, slots=True)
class TestContext:
    """What the self-test's template sees."""

    name: str
    prefix: str
    arrays: tuple[Array, ...]
    comparisons: tuple[str, ...]
    lines: tuple[str, ...]
    checks: int


def _macros(name: str, plan: MemoryPlan, ports: tuple[Port, ...]) -> dict[str, str]:
    prefix = name.upper()
    found = {
        f"{prefix}_ARENA_BYTES": str(plan.arena_bytes),
        f"{prefix}_ARENA_ALIGNMENT": str(plan.alignment),
        f"{prefix}_STACK_BYTES": str(_STACK_BYTES),
    }
    for port in map(_port_context, ports):
        found[f"{prefix}_{port.macro}_SIZE"] = str(port.size)
        if port.scale:
            found[f"{prefix}_{port.macro}_SCALE"] = port.scale
            found[f"{prefix}_{port.macro}_ZERO_POINT"] = port.zero_point
    return found


def _parameters(ports: tuple[Port, ...]) -> str:
    return ", ".join([*(port.declaration for port in ports), "void *arena"])


def _header(name: str, plan: MemoryPlan, ports: tuple[Port, ...]) -> str:
    context = HeaderContext(
        name,
        name.upper(),
        tuple(map(_port_context, ports)),
        _parameters(ports),
        plan.arena_bytes,
        plan.alignment,
        _STACK_BYTES,
    )
    return _render("header.h.j2", context)


def _port_context(port: Port) -> PortContext:
    q = port.type.quantization
    zero = 0 if q is None else q.zero_point[0]
    return PortContext(
        "input" if port.is_input else "output",
        port.parameter,
        comment(port.name),
        port.macro,
        port.c_type,
        f"[{', '.join(map(str, port.stored_shape))}]",
        port.type.numel,
        "" if q is None else f", real = (integer - {zero}) * {real(q.scale[0])}".replace("- -", "+ "),
        "" if q is None else real(q.scale[0]),
        integer(zero) if zero >= 0 else f"({zero})",
    )


def _source(name: str, plan: MemoryPlan, ports: tuple[Port, ...], source: SourceText) -> str:
    pointers = [port.parameter for port in ports] + (["arena"] if plan.arena_bytes else [])
    context = SourceContext(
        name,
        ("stddef.h", "stdint.h", "string.h", *(("math.h",) if source.uses_math else ())),
        support(source.headers),
        tuple(a.declaration for a in source.arrays),
        source.functions,
        _parameters(ports),
        plan.arena_bytes > 0,
        " || ".join(f"{pointer} == NULL" for pointer in pointers),
        plan.alignment - 1,
        source.steps,
    )
    return _render("model.c.j2", context)


def _test(name: str, graph: Graph, ports: tuple[Port, ...], vectors: Sequence[Sequence[torch.Tensor]]) -> str:
    inputs = [port for port in ports if port.is_input]
    outputs = [port for port in ports if not port.is_input]
    arrays: list[Array] = []
    lines: list[str] = []
    results = [f"result_{i}" for i in range(len(outputs))]
    for number, vector in enumerate(vectors):
        given_types = [port.type.quantization for port in inputs]
        stored = [
            t if q is None or not t.is_floating_point() else q.quantize(t)
            for q, t in zip(given_types, vector, strict=True)
        ]
        expected = run_integer(graph, stored)
        given = [
            _stored_array(f"input_{number}_{i}", p, t)
            for i, (p, t) in enumerate(zip(inputs, stored, strict=True))
        ]
        wanted = [
            _stored_array(f"expected_{number}_{i}", p, t)
            for i, (p, t) in enumerate(zip(outputs, expected, strict=True))
        ]
        arrays += [*given, *wanted]
        pointers = ", ".join([*(a.symbol for a in given), *results, "arena.bytes"])
        lines.append(f"failures += {name}_run({pointers}) != 0;")
        lines += [
            f"failures += differ_{port.c_type}({result}, {a.symbol}, {a.size});"
            for port, result, a in zip(outputs, results, wanted, strict=True)
        ]
    declared = [f"static {p.c_type} {r}[{p.type.numel}];" for p, r in zip(outputs, results, strict=True)]
    compared = [_comparison(c_type) for c_type in sorted({p.c_type for p in outputs})]
    used = (*declared, *compared) if vectors else ()
    return _render(
        "test.c.j2",
        TestContext(
            name, name.upper(), tuple(arrays), tuple(used), tuple(lines), len(vectors) * len(outputs)
        ),
    )


def _stored_array(symbol: str, port: Port, tensor: torch.Tensor) -> Array:
    data = to_memory(tensor, port.stored)
    return Array(symbol, port.c_type, data.size, array(data), comment(port.name))


def _comparison(c_type: str) -> str:
    test = "got[i] != wanted[i]"
    if c_type == "float":
        test = "!(got[i] - wanted[i] <= 1e-4f * scale && wanted[i] - got[i] <= 1e-4f * scale)"
    scale = "        const float scale = 1.0f + (wanted[i] < 0.0f ? -wanted[i] : wanted[i]);\n"
    return (
        f"static int differ_{c_type}(const {c_type} *got, const {c_type} *wanted, int count)\n{{\n"
        "    int i;\n    for (i = 0; i < count; i++) {\n"
        f"{scale if c_type == 'float' else ''}"
        f"        if ({test}) {{\n            return 1;\n        }}\n    }}\n    return 0;\n}}\n"
    )


def _render(template: str, context: object) -> str:
    return _ENVIRONMENT.get_template(template).render(k=context)
