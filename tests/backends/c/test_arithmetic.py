"""The arithmetic of the emitted C equals that of the interpreter, at the edges and at random."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np
import pytest
import torch

import fxpress.backends.c
from fxpress.backends.c.tools.toolchain import WARNINGS, find_compiler, link_shared
from fxpress.ir import Encoding
from fxpress.ir.arithmetic import requant
from fxpress.ir.ops.magnitude import rounded_root
from fxpress.ir.ops.norm_form import reciprocal_root

INCLUDE = Path(fxpress.backends.c.__file__).parent / "write" / "include"
EDGES = [0, 1, -1, 2, 127, -128, 2**15, -(2**15), 2**30, -(2**30), 2**31 - 1, -(2**31)]
HARNESS = """
#include "arithmetic.h"
#include "real.h"
void scale(const int32_t *acc, const int32_t *multipliers, int32_t *y, int count)
{
    for (int i = 0; i < count; i++) { y[i] = fxp_scale(acc[i], multipliers[i], 0); }
}
void left(const int32_t *acc, const int32_t *shifts, int32_t *y, int count)
{
    for (int i = 0; i < count; i++) { y[i] = fxp_shift_left(acc[i], shifts[i]); }
}
void saturate(const int32_t *x, int8_t *y, int count)
{
    for (int i = 0; i < count; i++) { y[i] = fxp_saturate8(x[i]); }
}
void reciprocal_root(const uint64_t *d, int32_t *values, int32_t *shifts, int count)
{
    for (int i = 0; i < count; i++) {
        const struct fxp_reciprocal found = fxp_reciprocal_root(d[i]);
        values[i] = found.value;
        shifts[i] = found.shift;
    }
}
void rounded_root(const uint32_t *v, int32_t *roots, int count)
{
    for (int i = 0; i < count; i++) { roots[i] = fxp_rounded_root(v[i]); }
}
void quantize(const float *x, int8_t *y, int count, float step, int zero_point)
{
    for (int i = 0; i < count; i++) { y[i] = fxp_quantize8(x[i] / step, zero_point); }
}
"""


@pytest.fixture(scope="module", params=["gcc", "clang"])
def library(request, tmp_path_factory):
    """The helpers of the emitted C, callable."""
    folder = tmp_path_factory.mktemp("arithmetic")
    source = folder / "harness.c"
    source.write_text(HARNESS)
    flags = ("-O2", *(f for f in WARNINGS if f != "-Wmissing-prototypes"), f"-I{INCLUDE}")
    sanitize = ("-fsanitize=undefined", "-fno-sanitize-recover=all") if request.param == "gcc" else ()
    return ctypes.CDLL(
        str(link_shared(find_compiler(request.param), [source], folder / "h.so", flags=(*flags, *sanitize)))
    )


def pointer(array):
    """The address of an array's elements."""
    return ctypes.c_void_p(array.ctypes.data)


def test_scaling_equals_the_interpreter(library):
    random = np.random.default_rng(0)
    pairs = [(a, m) for a in EDGES for m in EDGES]
    acc = np.array([a for a, _ in pairs] + random.integers(-(2**31), 2**31, 100_000).tolist(), np.int32)
    multipliers = np.array([m for _, m in pairs] + random.integers(0, 2**31, 100_000).tolist(), np.int32)
    y = np.zeros(len(acc), np.int32)
    library.scale(pointer(acc), pointer(multipliers), pointer(y), len(acc))
    wanted = requant(
        torch.from_numpy(acc.astype(np.int64)), torch.from_numpy(multipliers.astype(np.int64)), 0
    )
    assert np.array_equal(y, wanted.numpy())


def test_shifting_left_equals_multiplying(library):
    acc = np.array([-(2**20), -3, -1, 0, 1, 3, 2**20], np.int32)
    shifts = np.full(len(acc), 9, np.int32)
    y = np.zeros(len(acc), np.int32)
    library.left(pointer(acc), pointer(shifts), pointer(y), len(acc))
    assert np.array_equal(y, acc * 512)


def test_rounded_roots_equal_those_of_the_interpreter(library):
    whole = np.arange(0, 65534, dtype=np.int64)
    edges = np.concatenate([whole**2, whole**2 + whole, whole**2 + whole + 1, (whole[1:] ** 2) - 1])
    drawn = np.random.default_rng(3).integers(0, 65535**2, 300_000)
    powers = 2 ** np.arange(0, 32, dtype=np.int64)
    squares = np.concatenate([edges, drawn, drawn >> drawn % 31, powers, powers - 1])
    squares = squares[squares < 65535**2].astype(np.uint32)
    roots = np.zeros(len(squares), np.int32)
    library.rounded_root(pointer(squares), pointer(roots), len(squares))
    assert np.array_equal(roots, rounded_root(torch.from_numpy(squares.astype(np.int64))).numpy())


def test_reciprocal_roots_equal_those_of_the_interpreter(library):
    random = np.random.default_rng(2)
    edges = [n + e for n in (4**k for k in range(1, 31)) for e in (-1, 0, 1)] + [1, 2**62 - 1]
    d = np.array(edges + (2 ** random.uniform(0, 62, 20_000)).astype(np.int64).tolist(), np.int64)
    values, shifts = np.zeros(len(d), np.int32), np.zeros(len(d), np.int32)
    library.reciprocal_root(pointer(d), pointer(values), pointer(shifts), len(d))
    wanted = reciprocal_root(torch.from_numpy(d))
    assert np.array_equal(values, wanted[0].numpy())
    assert np.array_equal(shifts, wanted[1].numpy())


def test_saturation_keeps_what_fits(library):
    x = np.array([*EDGES, -129, 128, 126], np.int32)
    y = np.zeros(len(x), np.int8)
    library.saturate(pointer(x), pointer(y), len(x))
    assert np.array_equal(y, np.clip(x, -128, 127))


@pytest.mark.parametrize(("step", "zero_point"), [(0.05, -3), (1.0, 0), (0.3, 127), (1e-3, -128), (0.1, 5)])
def test_quantizing_reals_equals_the_interpreter(library, step, zero_point):
    random = np.random.default_rng(1)
    halves = np.arange(-300, 300, dtype=np.float32) * np.float32(step) / 2
    special = np.array([np.nan, np.inf, -np.inf, 1e30, -1e30, 0.0, -0.0, 1e-40], np.float32)
    x = np.concatenate([halves, special, random.normal(0, 100 * step, 50_000).astype(np.float32)])
    y = np.zeros(len(x), np.int8)
    library.quantize(pointer(x), pointer(y), len(x), ctypes.c_float(step), zero_point)
    wanted = Encoding((step,), (zero_point,)).quantize(torch.from_numpy(x))
    assert np.array_equal(y, wanted.numpy())
