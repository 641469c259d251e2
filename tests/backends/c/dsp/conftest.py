"""Runs emitted kernels, on the host and on a simulated Cortex-M4, against numpy references."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import fxpress.backends.c
import numpy as np
import numpy.typing as npt
import pytest
from fxpress.backends.c.kernels.epilogue_dsp import HEADERS, Epilogue
from fxpress.backends.c.toolchain import SANITIZERS, STANDARD, WARNINGS
from fxpress.ir.arithmetic import Rescale

Array = npt.NDArray[np.int64]

HEADER_FILES = [Path(fxpress.backends.c.__file__).parent / "include" / name for name in HEADERS]


@dataclass(frozen=True)
class Case:
    """One call: `source` defines `name(inputs..., y, [constants,] [scratch])`, which must write `expected`.

    In place, the output lies where the last input was.
    """

    name: str
    source: str
    inputs: tuple[npt.NDArray[np.int8], ...]
    expected: npt.NDArray[np.int8]
    constants: npt.NDArray[np.int32] | None = None
    scratch_bytes: int = 0
    in_place: bool = False


def program(cases: Sequence[Case]) -> str:
    """C whose main returns the number of the first wrong case, from 1; `marker` is called around each."""
    calls = "".join(f"    if (check_{i}()) {{\n        return {i + 1};\n    }}\n" for i in range(len(cases)))
    parts = [
        *(header.read_text(encoding="utf-8") for header in HEADER_FILES),
        "void marker(int id);\n",
        *(_check(i, case) for i, case in enumerate(cases)),
    ]
    return "\n".join([*parts, f"int main(void)\n{{\n{calls}    return 0;\n}}\n"])


def _check(index: int, case: Case) -> str:
    parts = [case.source]
    arguments = [f"input_{index}_{j}" for j in range(len(case.inputs))]
    for name, array in zip(arguments, case.inputs, strict=True):
        parts.append(_array("static int8_t", name, array))
    parts.append(_array("static const int8_t", f"expected_{index}", case.expected))
    output = arguments[-1] if case.in_place else f"output_{index}"
    if not case.in_place:
        parts.append(f"static int8_t {output}[{case.expected.size}];\n")
    arguments.append(output)
    if case.constants is not None:
        parts.append(_array("static const int32_t", f"constants_{index}", case.constants))
        arguments.append(f"constants_{index}")
    if case.scratch_bytes:
        parts.append(f"static uint32_t scratch_{index}[{-(-case.scratch_bytes // 4)}];\n")
        arguments.append(f"scratch_{index}")
    call = f"{case.name}({', '.join(arguments)});"
    parts.append(f"static __attribute__((noinline)) void call_{index}(void)\n{{\n    {call}\n}}\n")
    steps = f"    marker(0);\n    call_{index}();\n    marker(1);\n"
    verdict = f"    return memcmp({output}, expected_{index}, {case.expected.size}) != 0;\n"
    parts.append(f"static int check_{index}(void)\n{{\n{steps}{verdict}}}\n")
    return "\n".join(parts)


def _array(kind: str, name: str, values: npt.NDArray[np.generic]) -> str:
    numbers = ", ".join("INT32_MIN" if v == -(2**31) else str(v) for v in values.reshape(-1).tolist())
    return f"{kind} {name}[] = {{{numbers}}};\n"


def run_on_host(cases: Sequence[Case], folder: Path, *, compiler: str, flags: Sequence[str]) -> int:
    """The number of the first case that is wrong on this machine, or 0."""
    source = folder / "program.c"
    source.write_text(program(cases) + "\nvoid marker(int id)\n{\n    (void)id;\n}\n", encoding="utf-8")
    binary = folder / "program"
    subprocess.run([compiler, *STANDARD, *WARNINGS, *flags, source, "-o", binary], check=True)
    return subprocess.run([binary], check=False).returncode


@dataclass(frozen=True)
class KernelKit:
    """What a kernel's test needs: references, random epilogues, and the run that compares."""

    folder: Path

    def case(self, *args: object, **kwargs: object) -> Case:
        """A `Case`."""
        return Case(*args, **kwargs)  # type: ignore[arg-type]

    def epilogue(self, kind: str, rng: np.random.Generator) -> Epilogue:
        """A random epilogue of a kind: plain, clamp, shift or residual."""
        zero_point = int(rng.integers(-128, 128))
        match kind:
            case "clamp":
                return Epilogue(zero_point, low=zero_point, high=min(zero_point + 50, 127))
            case "shift":
                return Epilogue(zero_point, shifted=True)
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
        """Asserts that every case is right on this machine, under sanitizers and when optimized by clang."""
        for compiler, flags in (("gcc", ("-O1", *SANITIZERS)), ("clang", ("-O2",))):
            status = run_on_host(cases, self.folder, compiler=compiler, flags=flags)
            assert status == 0, f"{compiler}: {cases[status - 1].name}"


@pytest.fixture
def kit(tmp_path: Path) -> KernelKit:
    """The kernel kit, in a folder of its own."""
    return KernelKit(tmp_path)
