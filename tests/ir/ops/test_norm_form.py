"""The fixed-point form of norms: reciprocal roots, results near those of reals, refusals."""

from __future__ import annotations

from math import isqrt

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fxpress.ir import Encoding, OverflowBoundError, TensorType
from fxpress.ir.ops.base import IntegerCall
from fxpress.ir.ops.norm import GroupNorm, InstanceNorm, LayerNorm, RmsNorm, StatisticsNorm
from fxpress.ir.ops.norm_form import NormForm, reciprocal_root

STEPS = 0.52  # half a step of rounding, and what fixed point adds over thousands of elements
BYTE, WIDE = Encoding((0.05,), (-7,)), Encoding((0.0003,), (0,), 16)


def shift_of(d: int) -> int:
    return (62 - d.bit_length()) // 2


def check_roots(numbers: list[int]) -> None:
    """Reciprocal roots are within one part in 2^28 of those of whole numbers of 100 digits, and below 2^31."""
    reciprocal, shift = reciprocal_root(torch.tensor(numbers))
    assert shift.tolist() == [shift_of(d) for d in numbers]
    for r, d in zip(reciprocal.tolist(), numbers, strict=True):
        exact = (2**161) // isqrt(d << (2 * shift_of(d) + 200)) if d else 0  # 2^61 / sqrt(d * 4^shift)
        assert 1 << 30 <= r < 1 << 31 and abs(r - exact) <= max(exact >> 28, 1), d


@given(st.lists(st.integers(0, 61).flatmap(lambda bits: st.integers(1 << bits, (2 << bits) - 1)), min_size=1))
def test_reciprocal_roots_are_those_of_whole_numbers(numbers: list[int]) -> None:
    check_roots(numbers)


def test_squares_and_their_neighbours_have_near_reciprocal_roots() -> None:
    roots = [*range(1, 70), *(2**k + e for k in range(7, 31) for e in (-1, 0, 1))]
    check_roots(
        [d for root in roots for d in (root * root - 1, root * root, root * root + 1) if 0 < d < 1 << 62]
    )


def error_in_steps(op: StatisticsNorm, x: torch.Tensor, qx: Encoding, bits: int, size: float) -> float:
    """Largest distance of the integer form from the norm in double precision, on a grid that holds its results."""
    generator = torch.Generator().manual_seed(1)
    shape = op.shape if isinstance(op, LayerNorm | RmsNorm) else x.shape[1:2]
    weight, bias = torch.randn(shape, generator=generator) * size, torch.randn(shape, generator=generator)
    parameters = [weight] if isinstance(op, RmsNorm) else [weight, bias]
    real = op.reference(qx.dequantize(x, dtype=torch.float64), *(p.double() for p in parameters))
    largest = float(real.abs().max()) or 1.0
    qy = Encoding((largest / 2 ** (bits - 1),), (5 if bits == 8 else 0,), bits)
    types = (TensorType(tuple(x.shape)).quantized(qx), *(TensorType(tuple(p.shape)) for p in parameters))
    output = TensorType(tuple(x.shape)).quantized(qy)
    op.check_quantized(types, [output])
    y = op.integer(IntegerCall(op, (x, *parameters), types, (output,)))
    return float((y - (real / qy.scale[0] + qy.zero_point[0]).clamp(qy.qmin, qy.qmax)).abs().max())


@pytest.mark.parametrize("size", [0.01, 1.0, 30.0])
@pytest.mark.parametrize(("qx", "bits"), [(BYTE, 8), (WIDE, 16), (BYTE, 16), (WIDE, 8)])
@pytest.mark.parametrize(
    ("op", "shape"),
    [
        (LayerNorm((256,), 1e-12), (2, 8, 256)),
        (LayerNorm((3000,)), (2, 3000)),
        (LayerNorm((3,), axes=(1,)), (2, 3, 4)),
        (LayerNorm((2,)), (9, 2)),
        (LayerNorm((1,)), (4, 1)),
        (RmsNorm((64,)), (3, 64)),
        (GroupNorm(2), (2, 6, 4, 5)),
        (InstanceNorm(), (1, 3, 9, 9)),
    ],
    ids=str,
)
def test_results_are_those_of_reals_rounded(
    op: StatisticsNorm, shape: tuple[int, ...], qx: Encoding, bits: int, size: float
) -> None:
    x = torch.randint(qx.qmin, qx.qmax + 1, shape, generator=torch.Generator().manual_seed(0))
    assert error_in_steps(op, x, qx, bits, size) < STEPS


def test_rows_without_spread_and_rows_of_extremes_stay_in_range() -> None:
    rows = torch.zeros(6, 256, dtype=torch.int64)
    rows[1], rows[2, 0], rows[3, 0] = 127, 1, -128
    rows[4, ::2], rows[4, 1::2] = -128, 127
    rows[5, :128], rows[5, 128:] = 126, 127
    for eps in (1e-12, 1e-5, 10.0):
        assert error_in_steps(LayerNorm((256,), eps), rows, BYTE, 8, 1.0) < STEPS
        assert error_in_steps(RmsNorm((256,), eps), rows, BYTE, 8, 1.0) < STEPS


def test_calls_that_share_weight_and_bias_share_their_integers() -> None:
    weight, bias = torch.rand(16), torch.randn(16)
    forms = [
        NormForm.of(
            Encoding((step,), (3,)), Encoding((2 * step,), (-1,)), count=16, eps=1e-5, is_centred=True,
            weight=weight, bias=bias,
        )
        for step in (0.01, 0.02, 0.013)
    ]  # fmt: skip
    assert all(torch.equal(f.weight, forms[0].weight) and torch.equal(f.bias, forms[0].bias) for f in forms)


def test_what_has_no_form_is_refused() -> None:
    with pytest.raises(OverflowBoundError, match="over 9,000,000 elements of 8 bits can exceed int32"):
        NormForm.of(BYTE, BYTE, count=9_000_000, eps=1e-5, is_centred=True)
    with pytest.raises(OverflowBoundError, match="the epsilon 1 of a norm is too large for steps of 1e-12"):
        NormForm.of(Encoding((1e-12,), (0,)), BYTE, count=1024, eps=1.0, is_centred=True)
    with pytest.raises(OverflowBoundError, match="too far apart"):
        NormForm.of(BYTE, Encoding((1e-9,), (0,)), count=64, eps=1e-5, is_centred=True)
