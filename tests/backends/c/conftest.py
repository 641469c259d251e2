"""Compiled runs of emitted C: every step's memory against the integer interpreter."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from fxpress.backends.c.emit import CArtifact, emit
from fxpress.backends.c.ports import from_memory, to_memory
from fxpress.backends.c.toolchain import WARNINGS, find_compiler, link_shared
from fxpress.ir import DType, Graph, Value, run_integer
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


@pytest.fixture(name="fill")
def fill_fixture() -> Callable[[Value], torch.Tensor]:
    """Random constants."""
    return fill


def fill(value: Value) -> torch.Tensor:
    """A constant of random integers or reals, the same for the same name."""
    generator = torch.Generator().manual_seed(sum(map(ord, value.name)))
    type = value.type
    if type.dtype is DType.I32:
        return torch.randint(-2000, 2000, type.shape, dtype=torch.int32, generator=generator)
    if type.is_quantized:
        return torch.randint(-127, 128, type.shape, dtype=type.dtype.torch, generator=generator)
    return torch.randn(type.shape, generator=generator)


def draw(value: Value, seed: int) -> torch.Tensor:
    """A random tensor of a value's type."""
    generator = torch.Generator().manual_seed(seed)
    if value.type.is_quantized:
        return torch.randint(-128, 128, value.type.shape, generator=generator).to(value.type.dtype.torch)
    if not value.type.dtype.is_floating:
        return torch.randint(0, 10, value.type.shape, generator=generator).to(value.type.dtype.torch)
    return torch.randn(value.type.shape, generator=generator)


@pytest.fixture
def host() -> Target:
    """A machine without limits and extensions."""
    return Target(
        name="host", description="a computer", isa="host", toolchain=Toolchain(commands=("gcc",), flags=())
    )


@pytest.fixture
def cortex_m4() -> Target:
    """A machine with the DSP extension."""
    return Target(
        name="cortex-m4f",
        description="a microcontroller",
        isa="armv7e-m",
        features=("dsp", "fpu"),
        toolchain=Toolchain(commands=("arm-none-eabi-gcc",), flags=()),
    )


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
    for name, data in artifact.files.items():
        (folder / name).write_bytes(data)
    (folder / "trace.h").write_text(TRACE)
    (folder / "trace.c").write_text('#include "trace.h"\nfxp_tracer fxp_trace = 0;\n')
    sources = [folder / f"{artifact.name}.c", folder / f"{artifact.name}_weights.c", folder / "trace.c"]
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
    arena = np.full(artifact.plan.arena_bytes // 8 + 1, 0x5A5A5A5A5A5A5A5A, np.int64)
    before = [g.copy() for g in given]
    status = getattr(library, f"{artifact.name}_run")(
        *(ctypes.c_void_p(a.ctypes.data) for a in (*given, *results, arena))
    )
    assert status == 0
    assert not failures, failures
    for port, result, wanted in zip(outs, results, outputs, strict=True):
        assert _close(from_memory(result, port.stored), wanted, tolerance), port.name
    assert all(
        np.array_equal(a, b, equal_nan=a.dtype.kind == "f") for a, b in zip(given, before, strict=True)
    )
    beyond = arena.view(np.uint8)[artifact.plan.arena_bytes :]
    assert (beyond == 0x5A).all(), "bytes behind the arena were written"


def _close(got: torch.Tensor, wanted: torch.Tensor, tolerance: float) -> bool:
    if not wanted.is_floating_point():
        return torch.equal(got.to(torch.int64), wanted.to(torch.int64))
    scale = float(wanted.abs().nan_to_num(0, 0, 0).max()) if wanted.numel() else 0.0
    return torch.allclose(got, wanted, rtol=0.0, atol=tolerance * max(scale, 1e-3), equal_nan=True)
