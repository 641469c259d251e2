"""Runs emitted kernels, on the host and on a simulated Cortex-M4, against numpy references."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import fxpress.backends.c
from fxpress.backends.c.kernels.blocked import gemm as gemm_blocked
from fxpress.backends.c.kernels.dsp import epilogue as epilogue_dsp
from fxpress.backends.c.kernels.dsp.epilogue import Epilogue
from fxpress.backends.c.tools.simulate import Simulator
from fxpress.backends.c.tools.toolchain import (
    SANITIZERS,
    STANDARD,
    WARNINGS,
    Compiler,
    compile_objects,
    find_compiler,
    link_image,
    target_compiler,
)
from fxpress.ir.arithmetic import Rescale
from fxpress.specs import load_target

Array = npt.NDArray[np.int64]

INCLUDE = Path(fxpress.backends.c.__file__).parent / "write" / "include"
HEADERS = [INCLUDE / name for name in (*epilogue_dsp.HEADERS, *gemm_blocked.HEADERS)]
C_TYPES = {"int8": "int8_t", "int32": "int32_t", "float32": "float"}


@dataclass(frozen=True)
class Case:
    """One call: `source` defines `name(inputs..., y, constants..., [scratch])`, which must write `expected`.

    In place, the output is in the memory of the last input. Floats may differ from `expected` by `tolerance`.
    """

    name: str
    source: str
    inputs: tuple[npt.NDArray[Any], ...]
    expected: npt.NDArray[Any]
    constants: tuple[npt.NDArray[Any], ...] = ()
    scratch_bytes: int = 0
    in_place: bool = False
    tolerance: float = 0.0


def program(cases: Sequence[Case]) -> str:
    """C with `call_i` for every case, and a `main` that returns the number of the first wrong one, from 1."""
    checks = "".join(f"    if (check_{i}()) {{\n        return {i + 1};\n    }}\n" for i in range(len(cases)))
    headers = (header.read_text(encoding="utf-8") for header in HEADERS)
    calls = (_check(i, case) for i, case in enumerate(cases))
    return "\n".join([*headers, *calls, f"int main(void)\n{{\n{checks}    return 0;\n}}\n"])


def _check(index: int, case: Case) -> str:
    parts = [case.source]
    arguments = [f"input_{index}_{j}" for j in range(len(case.inputs))]
    parts += [_array("static", name, array) for name, array in zip(arguments, case.inputs, strict=True)]
    parts.append(_array("static const", f"expected_{index}", case.expected))
    output, size = f"output_{index}", case.expected.size
    if case.in_place:
        output = arguments[-1]
    else:
        parts.append(f"static {C_TYPES[case.expected.dtype.name]} {output}[{size}];\n")
    arguments.append(output)
    for j, array in enumerate(case.constants):
        parts.append(_array("static const", f"constants_{index}_{j}", array))
        arguments.append(f"constants_{index}_{j}")
    if case.scratch_bytes:
        parts.append(f"static uint32_t scratch_{index}[{-(-case.scratch_bytes // 4)}];\n")
        arguments.append(f"(void *)scratch_{index}")
    wrong = f"{output}[i] != expected_{index}[i]"
    if case.tolerance:
        error = f"{output}[i] - expected_{index}[i]"
        wrong = f"!({error} <= {case.tolerance}f && {error} >= -{case.tolerance}f)"
    parts.append(
        f"void call_{index}(void);\nvoid call_{index}(void)\n{{\n    {case.name}({', '.join(arguments)});\n}}\n"
        f"static int check_{index}(void)\n{{\n    call_{index}();\n    for (int32_t i = 0; i < {size}; ++i) {{\n"
        f"        if ({wrong}) {{\n            return 1;\n        }}\n    }}\n    return 0;\n}}\n"
    )
    return "\n".join(parts)


def _array(storage: str, name: str, values: npt.NDArray[Any]) -> str:
    kind = C_TYPES[values.dtype.name]
    if kind == "float":
        numbers = (f"{float(v)!r}f" for v in values.reshape(-1))
    else:
        numbers = ("INT32_MIN" if v == -(2**31) else str(v) for v in values.reshape(-1).tolist())
    return f"{storage} {kind} {name}[] = {{{', '.join(numbers)}}};\n"


@dataclass(frozen=True)
class KernelKit:
    """Helpers of a kernel's test: references, random epilogues, and the run that compares."""

    folder: Path

    def case(self, *args: object, **kwargs: object) -> Case:
        """A `Case`."""
        return Case(*args, **kwargs)  # type: ignore[arg-type]

    def layer_case(
        self,
        rng: np.random.Generator,
        name: str,
        kernel: Any,
        shape: Any,
        *,
        x: tuple[int, ...],
        w: tuple[int, ...],
        zero_point: int,
        accumulate: Callable[[Array, Array], Array],
        fill: tuple[int, int] | None = None,
        in_place: bool = False,
    ) -> Case:
        """A case of random (or constant) activations and weights, of shapes `x` and `w`, output channels first.

        `kernel` is the module; `accumulate(x - zero_point, w)` sums the products.
        """
        activations = rng.integers(-128, 128, x).astype(np.int8)
        end = 1 << (shape.weight_bits - 1)
        weights = rng.integers(-end, end, w).astype(np.int8)
        if fill is not None:
            activations[:], weights[:] = fill
        channels, epilogue = w[0], shape.epilogue
        bias = rng.integers(-5000, 5000, channels)
        spread = max(43 * end * np.sqrt(weights[0].size), 250.0)
        multiplier = (2.0**32 / (rng.uniform(0.01, 0.06, channels) * spread)).astype(np.int64)
        shift = rng.integers(0, 6, channels) if epilogue.shifted else np.zeros(channels, np.int64)
        acc = accumulate(activations.astype(np.int64) - zero_point, weights.astype(np.int64)) + bias
        r = None if epilogue.residual is None else rng.integers(-128, 128, acc.shape).astype(np.int8)
        folded = bias - zero_point * weights.astype(np.int64).reshape(channels, -1).sum(1)
        return Case(
            name=name,
            source=kernel.function(shape).render(name),
            inputs=(activations,) if r is None else (activations, r),
            expected=self.finish(acc, multiplier, shift, epilogue, r),
            constants=kernel.pack(shape, weights, folded, multiplier, shift),
            scratch_bytes=kernel.scratch_bytes(shape),
            in_place=in_place,
        )

    def taps(
        self, shape: Any, x: Array, *, dilation: tuple[int, int] = (1, 1)
    ) -> Iterator[tuple[int, int, Array]]:
        """Each place (ky, kx) of a window with the elements [out_h, out_w, c] of the image that it meets."""
        margin = 64
        image = np.pad(x, ((margin, margin), (margin, margin), (0, 0)))
        for ky, kx in np.ndindex(*shape.kernel):
            top = margin - shape.padding[0] + ky * dilation[0]
            left = margin - shape.padding[1] + kx * dilation[1]
            yield (
                ky,
                kx,
                image[top :: shape.stride[0], left :: shape.stride[1]][: shape.out_h, : shape.out_w],
            )

    def epilogue(self, kind: str, rng: np.random.Generator) -> Epilogue:
        """A random epilogue of a kind: plain, clamp, shift or residual, or one with weights apart from the rest."""
        zero_point = int(rng.integers(-128, 128))
        match kind:
            case "clamp":
                return Epilogue(zero_point, low=zero_point, high=min(zero_point + 50, 127))
            case "shift":
                return Epilogue(zero_point, shifted=True)
            case "apart":
                return Epilogue(zero_point, shifted=bool(rng.integers(2)), apart=True)
            case "apart residual":
                return replace(self.epilogue("residual", rng), apart=True)
            case "residual":
                factor, offset = (int(rng.integers(-bound, bound)) for bound in (2**15, 2**21))
                return Epilogue(zero_point, residual=Rescale((factor,), offset, 14))
            case _:
                return Epilogue(zero_point)

    def finish(
        self, acc: Array, multiplier: Array, shift: Array, epilogue: Epilogue, r: npt.NDArray[np.int8] | None
    ) -> npt.NDArray[np.int8]:
        """The outputs that the arithmetic contract gives for accumulators of shape [..., channel]."""
        scaled = ((acc << shift) * multiplier + 2**31) >> 32
        if r is None or epilogue.residual is None:
            y = scaled + epilogue.zero_point
        else:
            added = r.astype(np.int64) * epilogue.residual.multipliers[0] + epilogue.residual.offset
            y = scaled + (added >> epilogue.residual.shift)
        return np.clip(y, epilogue.low, epilogue.high).astype(np.int8)

    def check(self, cases: Sequence[Case]) -> None:
        """Asserts that every case is right here, under sanitizers and when optimized, and on a Cortex-M4."""
        for name, flags in (("gcc", ("-O0", *SANITIZERS)), ("clang", ("-O2",))):
            self._verdict(name, self._run_here(find_compiler(name), cases, flags), cases)
        self._verdict("cortex-m4f", self.simulator(cases).call("main").return_value, cases)

    def instructions(self, cases: Sequence[Case]) -> list[int]:
        """Exactly how many instructions each case takes on a Cortex-M4."""
        simulator = self.simulator(cases)
        return [simulator.profile(f"call_{i}").instructions for i in range(len(cases))]

    def simulator(self, cases: Sequence[Case], *, optimize: str = "-O3") -> Simulator:
        """A Cortex-M4 with the cases in its memory."""
        compiler = target_compiler(load_target("cortex-m4f"))
        objects = compile_objects(compiler, [self._source(cases)], self.folder, flags=(optimize, *WARNINGS))
        keep = ["main", *(f"call_{i}" for i in range(len(cases)))]
        return Simulator(
            link_image(compiler, objects, self.folder / "program.elf", keep=keep),
            target=load_target("cortex-m4f"),
        )

    def _run_here(self, compiler: Compiler, cases: Sequence[Case], flags: Sequence[str]) -> int:
        binary = self.folder / "program"
        command = [compiler.program, *STANDARD, *WARNINGS, *flags, self._source(cases), "-o", binary]
        subprocess.run(command, check=True)
        return subprocess.run([binary], check=False).returncode

    def _source(self, cases: Sequence[Case]) -> Path:
        source = self.folder / "program.c"
        source.write_text(program(cases), encoding="utf-8")
        return source

    def _verdict(self, where: str, status: int, cases: Sequence[Case]) -> None:
        assert 0 <= status <= len(cases), f"{where}: the program ended with {status}"
        assert status == 0, f"{where}: {cases[status - 1].name} is wrong"


@pytest.fixture
def kit(tmp_path: Path) -> KernelKit:
    """The kernel kit, in a folder of its own."""
    return KernelKit(tmp_path)
