"""The DSP linear layer against an integer reference in numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fxpress.backends.c.kernels import linear_dsp
from fxpress.backends.c.kernels.epilogue_dsp import Epilogue
from fxpress.backends.c.kernels.linear_dsp import LinearShape

ZERO_POINT = -5


def linear_case(
    kit: Any,
    rng: np.random.Generator,
    name: str,
    shape: LinearShape,
    *,
    fill: tuple[int, int] | None = None,
    in_place: bool = False,
) -> Any:
    """A case of random (or constant) activations and weights."""
    x = rng.integers(-128, 128, shape.inputs).astype(np.int8)
    end = 1 << (shape.weight_bits - 1)
    w = rng.integers(-end, end, (shape.outputs, shape.inputs)).astype(np.int8)
    if fill is not None:
        x[:], w[:] = fill
    bias = rng.integers(-5000, 5000, shape.outputs)
    spread = max(43 * end * np.sqrt(shape.inputs), 250.0)
    multiplier = (2.0**32 / (rng.uniform(0.01, 0.06, shape.outputs) * spread)).astype(np.int64)
    shift = rng.integers(0, 6, shape.outputs) if shape.epilogue.shifted else np.zeros(shape.outputs, np.int64)
    acc = (x.astype(np.int64) - ZERO_POINT) @ w.astype(np.int64).T + bias
    r = None if shape.epilogue.residual is None else rng.integers(-128, 128, acc.shape).astype(np.int8)
    folded = bias - ZERO_POINT * w.astype(np.int64).sum(1)
    return kit.case(
        name=name,
        source=linear_dsp.function(shape).render(name),
        inputs=(x,) if r is None else (x, r),
        expected=kit.finish(acc, multiplier, shift, shape.epilogue, r),
        constants=linear_dsp.pack(shape, w, folded, multiplier, shift),
        scratch_bytes=linear_dsp.scratch_bytes(shape),
        in_place=in_place,
    )


@pytest.mark.parametrize(
    ("kind", "bits"),
    [("plain", 8), ("clamp", 8), ("shift", 8), ("residual", 8), ("plain", 4), ("shift", 2), ("residual", 4)],
)
def test_a_linear_layer_of_any_size_equals_its_reference(kit: Any, kind: str, bits: int) -> None:
    rng = np.random.default_rng(1)
    sizes = ((640, 12), (128, 8), (8, 16), (13, 5), (3, 1), (64, 10), (1, 3), (33, 6), (127, 9))
    cases = [
        linear_case(kit, rng, f"linear_{i}", LinearShape(inputs, outputs, kit.epilogue(kind, rng), bits))
        for i, (inputs, outputs) in enumerate(sizes)
    ]
    kit.check(cases)


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_extreme_activations_and_weights_are_exact(kit: Any, bits: int) -> None:
    rng = np.random.default_rng(2)
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    extremes = ((-128, low), (127, high), (-128, high), (127, low))
    shape = LinearShape(640, 5, Epilogue(3), bits)
    kit.check([linear_case(kit, rng, f"linear_{i}", shape, fill=fill) for i, fill in enumerate(extremes)])


def test_the_output_may_take_the_place_of_the_residual(kit: Any) -> None:
    rng = np.random.default_rng(3)
    shape = LinearShape(33, 7, kit.epilogue("residual", rng))
    kit.check([linear_case(kit, rng, "linear_0", shape, in_place=True)])


def test_rows_longer_than_the_loop_counts_are_refused() -> None:
    assert linear_dsp.supports(LinearShape(4000, 4, Epilogue(0)))
    assert not linear_dsp.supports(LinearShape(5000, 4, Epilogue(0)))
