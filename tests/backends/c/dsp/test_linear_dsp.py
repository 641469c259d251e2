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
        x=(shape.rows, shape.inputs),
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


@pytest.mark.parametrize(
    ("kind", "bits"), [("plain", 8), ("apart residual", 8), ("shift", 4), ("residual", 2), ("clamp", 8)]
)
def test_rows_are_read_from_any_address_without_working_memory(kit: Any, kind: str, bits: int) -> None:
    rng = np.random.default_rng(4)
    sizes = ((640, 12, 1), (4, 1, 3), (7, 5, 4), (13, 4, 2), (33, 6, 1), (66, 3, 5), (127, 9, 2))
    shapes = [
        LinearShape(inputs, outputs, kit.epilogue(kind, rng), bits, rows, expanded=False)
        for inputs, outputs, rows in sizes
    ]
    assert not any(map(linear_dsp.scratch_bytes, shapes))
    kit.check([linear_case(kit, rng, f"linear_{i}", shape) for i, shape in enumerate(shapes)])


def test_fewer_inputs_than_are_read_at_once_have_no_form_without_memory() -> None:
    assert linear_dsp.of_no_memory(LinearShape(3, 8, Epilogue(0))) == ()
    assert len(linear_dsp.of_no_memory(LinearShape(4, 8, Epilogue(0)))) == 1


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
