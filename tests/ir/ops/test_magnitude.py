"""Magnitudes on integers: exact roots, errors within the steps, and types without an integer form."""

from __future__ import annotations

from math import isqrt

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fxpress.ir import Encoding, Graph, ShapeError, parse, run_integer
from fxpress.ir.ops.magnitude import MagnitudeForm, rounded_root


def magnitude(a: Encoding, b: Encoding, y: Encoding, *, count: int = 64) -> Graph:
    def text(q: Encoding) -> str:
        return f"i{q.bits}[{count}]<scale={q.scale[0]!r}, zero={q.zero_point[0]}>"

    return parse(
        f"graph(%a: {text(a)}, %b: {text(b)}) {{\n  %y: {text(y)} = magnitude(%a, %b)\n  return output: %y\n}}"
    )


@given(st.lists(st.integers(0, 2**32 - 2**18), min_size=1))
def test_roots_are_rounded_to_the_nearest_whole_number(squares: list[int]) -> None:
    found = rounded_root(torch.tensor(squares))
    assert found.tolist() == [isqrt(4 * v) + 1 >> 1 for v in squares]


def test_roots_of_squares_and_their_neighbours_are_exact() -> None:
    n = torch.arange(1, 65534)
    between = n * n + n  # the largest number that is rounded down
    for squares, wanted in ((n * n, n), (between, n), (between + 1, n + 1), (n * n - n + 1, n)):
        assert torch.equal(rounded_root(squares), wanted)


@given(
    bits=st.sampled_from([8, 16]),
    zeros=st.tuples(st.integers(-128, 127), st.integers(-128, 127)),
    ratio=st.sampled_from([0.1, 0.7, 1.0, 1.5]),
    result=st.floats(0.25, 4.0),
    seed=st.integers(0, 99),
)
def test_results_are_within_a_step_of_the_operand_and_one_of_the_result(
    bits: int, zeros: tuple[int, int], ratio: float, result: float, seed: int
) -> None:
    first, second = zeros if bits == 8 else (0, 0)
    a = Encoding((2.0**-6,), (first,), bits)
    b = Encoding((2.0**-6 * (ratio if bits == 8 else 1.0),), (second,), bits)
    y = Encoding((2.0**-6 * result,), (min(first, 0),), bits)
    generator = torch.Generator().manual_seed(seed)
    integers = [torch.randint(q.qmin, q.qmax + 1, (64,), generator=generator) for q in (a, b)]
    (found,) = run_integer(
        magnitude(a, b, y), [i.to(q.container.torch) for i, q in zip(integers, (a, b), strict=True)]
    )
    x, z = (q.dequantize(i, dtype=torch.float64) for q, i in zip((a, b), integers, strict=True))
    exact = torch.sqrt(x * x + z * z)
    largest = y.dequantize(torch.tensor(y.qmax), dtype=torch.float64)
    error = (y.dequantize(found, dtype=torch.float64) - exact.clamp(max=largest)).abs().max()
    own = 0.5 * a.scale[0] if bits == 16 else 0.01 * a.scale[0]  # 8 bits leave room for a finer root
    assert float(error) <= own + 0.51 * y.scale[0] + 2.0**-14 * float(exact.max())


@pytest.mark.parametrize("bits", [8, 16])
def test_the_form_of_two_scales_needs_room_for_their_ratio(bits: int) -> None:
    fine, coarse, y = (Encoding((scale,), bits=bits) for scale in (0.1, 0.3, 0.3))
    if bits == 8:
        assert MagnitudeForm.of(fine, coarse, y).weights[0] < MagnitudeForm.of(fine, coarse, y).weights[1]
    else:
        with pytest.raises(ShapeError, match="a magnitude of operands of 16 bits needs one scale for both"):
            MagnitudeForm.of(fine, coarse, y)
    assert MagnitudeForm.of(fine, fine, y).weights[0] == MagnitudeForm.of(fine, fine, y).weights[1]
