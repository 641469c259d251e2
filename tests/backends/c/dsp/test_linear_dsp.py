"""The DSP linear layer against an integer reference in numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fxpress.backends.c.kernels.dsp import linear as linear_dsp
from fxpress.backends.c.kernels.dsp.epilogue import Epilogue
from fxpress.backends.c.kernels.dsp.linear import LinearShape

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
    return kit.layer_case(
        rng,
        name,
        linear_dsp,
        shape,
        x=(shape.inputs,),
        w=(shape.outputs, shape.inputs),
        zero_point=ZERO_POINT,
        accumulate=lambda x, w: x @ w.T,
        fill=fill,
        in_place=in_place,
    )


@pytest.mark.parametrize(
    ("kind", "bits"),
    [
        *((kind, 8) for kind in ("plain", "clamp", "shift", "residual", "apart", "apart residual")),
        *(("plain", 4), ("shift", 2), ("residual", 4), ("apart", 4), ("apart residual", 2)),
    ],
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
