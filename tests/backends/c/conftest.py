"""Compiled runs of emitted C: every step's memory against the integer interpreter."""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from zlib import crc32

import numpy as np
import pytest
import torch

from fxpress.backends.c.emit import CArtifact, emit
from fxpress.backends.c.plan.kernel_stack import CoreKind
from fxpress.backends.c.plan.memory import BLOCK_ALIGNMENT
from fxpress.backends.c.tools.toolchain import WARNINGS, Compiler, find_compiler, link_shared, target_compiler
from fxpress.backends.c.write.ports import Port, from_memory, to_memory
from fxpress.backends.errors import ToolMissingError
from fxpress.ir import DType, Graph, Value, parse, run_integer, verify
from fxpress.specs import list_targets, load_target
from fxpress.specs.outputs import COutput
from fxpress.specs.target import Target, Toolchain

TRACE = """#ifndef TRACE_H
#define TRACE_H
typedef void (*fxp_tracer)(int step, const void *data, int bytes);
extern fxp_tracer fxp_trace;
#define FXP_TRACE(step, data, bytes) (fxp_trace ? fxp_trace(step, data, bytes) : (void)0)
#endif
"""

Inspect = Callable[..., CArtifact]
OPERATORS_FILE = Path(__file__).parent / "operators.txt"
CHUNK = 48
GUARD = 64  # bytes before and behind each region
DSP = Target(
    name="cortex-m4f",
    description="a microcontroller",
    isa="armv7e-m",
    features=("dsp", "fpu"),
    toolchain=Toolchain(commands=("arm-none-eabi-gcc",), flags=()),
    measured="cortex-m4f",
)


@pytest.fixture(scope="session")
def compiler() -> Callable[[str], Compiler]:
    """The compiler of a name, or of the target of that name; the test is skipped where it is missing."""

    def find(name: str) -> Compiler:
        try:
            return target_compiler(load_target(name)) if name in list_targets() else find_compiler(name)
        except ToolMissingError as err:
            pytest.skip(str(err))

    return find


def cases() -> dict[str, str]:
    """Graphs in text form by name: every operator in its variants."""
    parts = OPERATORS_FILE.read_text(encoding="utf-8").split("== ")[1:]
    return {name: text for name, _, text in (part.partition("\n") for part in parts)}


def joined(texts: dict[str, str]) -> Graph:
    """One graph of several that share nothing, not even equal weights; values are named after the case."""
    inputs, outputs, nodes, params, names = [], [], [], {}, []
    for case, text in texts.items():
        graph = parse(text, fill=lambda value, case=case: fill(value, case=case))

        def named(value: Value, case: str = case) -> Value:
            return replace(value, name=f"{case}: {value.name}")

        inputs += map(named, graph.inputs)
        outputs += map(named, graph.outputs)
        names += [f"{case}: {name}" for name in graph.output_names]
        params |= {f"{case}: {name}": tensor for name, tensor in graph.params.items()}
        nodes += [node.with_values(named) for node in graph.nodes]
    return verify(Graph(tuple(inputs), tuple(outputs), tuple(nodes), params, tuple(names)))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that takes `operators` runs on each part of the file, as one graph."""
    if "operators" in metafunc.fixturenames:
        texts = list(cases().items())
        parts = [dict(texts[i : i + CHUNK]) for i in range(0, len(texts), CHUNK)]
        metafunc.parametrize("operators", parts, indirect=True, ids=[f"part{i}" for i in range(len(parts))])


@pytest.fixture
def operators(request: pytest.FixtureRequest) -> Graph:
    """One part of all operators in their variants, as one graph."""
    return joined(request.param)


@pytest.fixture
def join() -> Callable[[dict[str, str]], Graph]:
    """Makes one graph of several."""
    return joined


@pytest.fixture(name="fill")
def fill_fixture() -> Callable[[Value], torch.Tensor]:
    """Random constants."""
    return fill


def fill(value: Value, *, case: str = "") -> torch.Tensor:
    """A constant of random integers or reals, the same for the same name and case."""
    generator = torch.Generator().manual_seed(sum(map(ord, value.name)) + crc32(case.encode()))
    type = value.type
    if value.name == "positive":
        return torch.rand(type.shape, generator=generator) + 0.1
    if type.dtype is DType.BOOL:
        return torch.arange(type.numel).view(type.shape) % 2 == 0
    if type.dtype is DType.I64:
        return torch.randint(1, 6, type.shape, generator=generator)
    if type.dtype is DType.I32:
        return torch.randint(-2000, 2000, type.shape, dtype=torch.int32, generator=generator)
    if type.is_quantized:
        low, end = (
            (-127, 128) if type.quantization.bits >= 8 else (type.quantization.qmin, -type.quantization.qmin)
        )
        return torch.randint(low, end, type.shape, dtype=type.dtype.torch, generator=generator)
    return torch.randn(type.shape, generator=generator)


@pytest.fixture(name="draw")
def draw_fixture() -> Callable[[Value, int], torch.Tensor]:
    """Random tensors of a value's type."""
    return draw


def draw(value: Value, seed: int) -> torch.Tensor:
    """A random tensor of a value's type."""
    generator = torch.Generator().manual_seed(seed)
    if value.type.quantization is not None:
        low, high = value.type.quantization.qmin, value.type.quantization.qmax
        drawn = torch.randint(low, high + 1, value.type.shape, generator=generator)
        return drawn.to(value.type.dtype.torch)
    if not value.type.dtype.is_floating:
        return torch.randint(0, 4, value.type.shape, generator=generator).to(value.type.dtype.torch)
    return torch.randn(value.type.shape, generator=generator)


@pytest.fixture
def integer_operators() -> Graph:
    """All operators that compute on integers alone, as one graph."""
    return joined(
        {name: text for name, text in cases().items() if not re.search(r"^(?! *const).*f32", text, re.M)}
    )


@pytest.fixture
def operator_cases() -> dict[str, str]:
    """All operators in their variants, as text by name."""
    return cases()


@pytest.fixture
def host() -> Target:
    """A machine without limits and extensions."""
    return Target(
        name="host", description="a computer", isa="host", toolchain=Toolchain(commands=("gcc",), flags=())
    )


@pytest.fixture
def cortex_m4() -> Target:
    """A machine with the DSP extension."""
    return DSP


@pytest.fixture(name="stated_stack")
def stated_stack_fixture() -> Callable[[CArtifact, str], int]:
    """Bytes of stack that a header states for a core."""
    return stated_stack


def stated_stack(artifact: CArtifact, cpu: str) -> int:
    """Bytes of stack that the header states for a core: the last figure is that of cores for which no other holds."""
    header, kind = artifact.files[f"{artifact.name}.h"].decode(), CoreKind.of(load_target(cpu))
    figures = re.findall(r"^#define \w+_STACK_BYTES (\d+)$", header, re.MULTILINE)
    holds = kind is not None and f"#if {kind.condition}\n" in header
    return int(figures[0] if holds else figures[-1])


@pytest.fixture
def assert_equal_to_interpreter(tmp_path: Path, host: Target) -> Inspect:
    """Compile a graph's C with all warnings, run it on random inputs, and compare all steps.

    Integers must be equal; floats within `tolerance`, relative to the largest element.
    """

    def check(
        graph: Graph,
        *,
        options: COutput | None = None,
        target: Target | None = None,
        inputs: Sequence[Sequence[torch.Tensor]] = (),
        seeds: int = 3,
        tolerance: float = 1e-5,
        flags: Sequence[str] = ("-O2",),
    ) -> CArtifact:
        artifact = emit(graph, options or COutput(name="net"), target or host)
        library = _library(artifact, tmp_path, flags)
        vectors = list(inputs) or [
            [draw(v, seed * 100 + i) for i, v in enumerate(artifact.graph.inputs)] for seed in range(seeds)
        ]
        for vector in vectors:
            _compare(artifact, library, vector, tolerance)
        return artifact

    return check


def _library(artifact: CArtifact, folder: Path, flags: Sequence[str]) -> ctypes.CDLL:
    (folder / "trace.h").write_text(TRACE)
    (folder / "trace.c").write_text('#include "trace.h"\nfxp_tracer fxp_trace = 0;\n')
    sources = [*artifact.write(folder), folder / "trace.c"]
    target = folder / f"net{len(list(folder.glob('*.so')))}.so"
    link_shared(
        find_compiler("gcc"), sources, target, flags=(*flags, *WARNINGS, "-include", str(folder / "trace.h"))
    )
    return ctypes.CDLL(str(target))


def _compare(
    artifact: CArtifact, library: ctypes.CDLL, vector: Sequence[torch.Tensor], tolerance: float
) -> None:
    expected: dict[str, torch.Tensor] = {}
    outputs = run_integer(artifact.graph, list(vector), observe=lambda v, t: expected.update({v.name: t}))
    failures: list[str] = []

    @ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_void_p, ctypes.c_int)
    def trace(step: int, data: int, size: int) -> None:
        stored = artifact.trace[step].stored
        wanted = expected.get(stored.value.name)
        dtype = np.dtype(str(stored.value.type.dtype.torch).removeprefix("torch."))
        memory = np.frombuffer(ctypes.string_at(data, size), dtype)
        if wanted is not None and not _close(from_memory(memory, stored), wanted, tolerance):
            failures.append(f"step {step}, {stored.value.name}")

    ctypes.c_void_p.in_dll(library, "fxp_trace").value = ctypes.cast(trace, ctypes.c_void_p).value
    ins = [p for p in artifact.ports if p.is_input]
    outs = [p for p in artifact.ports if not p.is_input]
    given = [to_memory(t, p.stored) for t, p in zip(vector, ins, strict=True)]
    results = [
        np.full(p.type.numel, 85, to_memory(t, p.stored).dtype) for p, t in zip(outs, outputs, strict=True)
    ]
    regions = {
        u.name: np.full(u.bytes // 8 + 2 * GUARD, 0x5A5A5A5A5A5A5A5A, np.int64) for u in artifact.plan.regions
    }
    before = [g.copy() for g in given]
    passed = [*given, *results]
    weights = _aligned(artifact.files[f"{artifact.name}_weights.bin"]) if artifact.source.is_in_file else None
    if artifact.ports[0].offset is not None:
        passed = []
        for port, data in zip(ins, given, strict=True):
            _in_region(regions[port.block], port)[:] = data
        results = [_in_region(regions[port.block], port) for port in outs]
    passed += [] if weights is None else [weights]
    addresses = [
        *(a.ctypes.data for a in passed),
        *(memory.ctypes.data + GUARD for memory in regions.values()),
    ]
    status = getattr(library, f"{artifact.name}_run")(*map(ctypes.c_void_p, addresses))
    assert status == 0
    assert not failures, failures
    for port, result, wanted in zip(outs, results, outputs, strict=True):
        assert _close(from_memory(result, port.stored), wanted, tolerance), port.name
    assert all(
        np.array_equal(a, b, equal_nan=a.dtype.kind == "f") for a, b in zip(given, before, strict=True)
    )
    for used in artifact.plan.regions:
        beside = np.delete(regions[used.name].view(np.uint8), slice(GUARD, GUARD + used.bytes))
        assert (beside == 0x5A).all(), f"bytes beside {used.name} were written"


def _aligned(data: bytes) -> np.ndarray:
    """Bytes at a multiple of the alignment that weights files need."""
    room = np.zeros(len(data) + BLOCK_ALIGNMENT, np.uint8)
    start = -room.ctypes.data % BLOCK_ALIGNMENT
    room[start : start + len(data)] = np.frombuffer(data, np.uint8)
    return room[start : start + len(data)]


def _in_region(memory: np.ndarray, port: Port) -> np.ndarray:
    """The memory of an input or output in a region of RAM, behind the guard."""
    dtype = np.dtype(str(port.type.dtype.torch).removeprefix("torch."))
    return memory.view(np.uint8)[GUARD + port.offset :][: port.stored.bytes].view(dtype)


def _close(got: torch.Tensor, wanted: torch.Tensor, tolerance: float) -> bool:
    if not wanted.is_floating_point():
        return torch.equal(got.to(torch.int64), wanted.to(torch.int64))
    scale = float(wanted.abs().nan_to_num(0, 0, 0).max()) if wanted.numel() else 0.0
    return torch.allclose(got, wanted, rtol=0.0, atol=tolerance * max(scale, 1e-3), equal_nan=True)
