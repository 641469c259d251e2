"""Constants in C: every float32 reads back as itself, by every compiler, without a header."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from fxpress.backends.c.emit import CArtifact
from fxpress.backends.c.tools.toolchain import WARNINGS, Compiler, compile_objects, find_compiler, link_shared
from fxpress.backends.c.write.literal import array, real
from fxpress.ir import parse
from fxpress.specs import list_targets

COMPILERS = ["gcc", "clang", *(name for name in list_targets() if name != "host")]
ODD = [
    np.inf,
    -np.inf,
    np.nan,
    -0.0,
    0.0,
    1e-45,
    -1e-45,
    1.1754942e-38,
    3.4028235e38,
    -3.4028235e38,
    1e-4,
    1e7,
]


def numbers() -> np.ndarray:
    """Special values of float32, and random bits."""
    bits = np.random.default_rng(0).integers(0, 1 << 32, 4000, dtype=np.uint32)
    return np.concatenate([np.array(ODD, np.float32), bits.view(np.float32)])


def source() -> str:
    """C that has the numbers once as constants of an array, once as parameters of a kernel."""
    values = numbers()
    scalars = ",\n".join(real(float(value)) for value in values)
    return (
        f"extern const float packed[{len(values)}], scalars[{len(values)}];\n"
        f"const float packed[{len(values)}] = {{\n{array(values)}\n}};\n"
        f"const float scalars[{len(values)}] = {{\n{scalars}\n}};\n"
    )


@pytest.mark.parametrize("name", COMPILERS)
def test_every_float_compiles_without_a_warning(
    name: str, compiler: Callable[[str], Compiler], tmp_path: Path
) -> None:
    (tmp_path / "numbers.c").write_text(source())
    compile_objects(compiler(name), [tmp_path / "numbers.c"], tmp_path, flags=("-O2", *WARNINGS))


@pytest.mark.parametrize("symbol", ["packed", "scalars"])
def test_every_float_reads_back_as_itself(symbol: str, tmp_path: Path) -> None:
    (tmp_path / "numbers.c").write_text(source())
    library = link_shared(find_compiler("gcc"), [tmp_path / "numbers.c"], tmp_path / "n.so", flags=("-O2",))
    expected = numbers()
    read = np.array((ctypes.c_float * len(expected)).in_dll(ctypes.CDLL(str(library)), symbol), np.float32)
    same = read.view(np.uint32) == expected.view(np.uint32)
    assert (same | (np.isnan(read) & np.isnan(expected))).all()


def test_odd_constants_and_scalars_reach_a_kernel(
    assert_equal_to_interpreter: Callable[..., CArtifact],
) -> None:
    graph = parse(
        """graph(%x: f32[3x4]) {
          const %mask: f32[3x4]
          %m: f32[3x4] = add(%x, %mask)
          %p: f32[5x4] = pad{padding=(0, 2, 0, 0), value=-inf}(%x)
          %s: f32[3x4] = softmax{axis=1}(%m)
          return m: %m, p: %p, s: %s
        }""",
        params={"mask": torch.tensor([[0, -np.inf, 0, 1e-45], [np.nan, 0, -0.0, np.inf], [-1e30, 3, 2, 1]])},
    )
    assert_equal_to_interpreter(graph)
