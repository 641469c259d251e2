"""The integer arithmetic: equal to exact rational rounding, within int32, refused beyond."""

from fractions import Fraction
from itertools import product
from math import floor

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fxpress.ir import OverflowBoundError
from fxpress.ir.arithmetic import INT32_MAX, Requant, Rescale, check_int32, prove_requant, requant

int32 = st.integers(-INT32_MAX - 1, INT32_MAX)
factors = st.floats(2.0**-31, 2.0**29)
int8 = st.integers(-128, 127)


def tensor(number: int) -> torch.Tensor:
    return torch.tensor([number], dtype=torch.int64)


@given(int32, st.integers(0, INT32_MAX), st.integers(0, 31))
def test_requant_is_exact_rational_rounding_with_ties_up(acc: int, multiplier: int, shift: int) -> None:
    if abs(acc << shift) > INT32_MAX:
        return
    exact = Fraction((acc << shift) * multiplier, 1 << 32)
    assert requant(tensor(acc), multiplier, shift).item() == floor(exact + Fraction(1, 2))


def test_requant_rounds_ties_towards_plus_infinity() -> None:
    half = 1 << 31
    assert [requant(tensor(n), half, 0).item() for n in (1, -1, 3, -3)] == [1, 0, 2, -1]


def test_requant_refuses_a_shift_that_leaves_int32() -> None:
    with pytest.raises(OverflowBoundError, match="a shifted accumulator exceeds int32"):
        requant(tensor(1 << 20), 1, 11)


@given(factors)
def test_multiplier_has_31_bits_and_shift_is_0_below_a_half(factor: float) -> None:
    step = Requant.of(factor)
    assert 0 <= step.multiplier <= INT32_MAX
    error = Fraction(step.multiplier << step.shift, 1 << 32) - Fraction(factor)
    assert abs(error) <= Fraction(1 << step.shift, 1 << 33)
    assert step.shift == 0 if factor < 0.49 else step.shift <= 31
    if step.shift:
        assert round(Fraction(factor) * (1 << (33 - step.shift))) > INT32_MAX


@given(factors, st.integers(-(1 << 16), 1 << 16))
def test_requant_is_within_one_step_of_real_rounding(factor: float, acc: int) -> None:
    step = Requant.of(factor)
    if abs(acc << step.shift) > INT32_MAX:
        return
    real = floor(Fraction(factor) * acc + Fraction(1, 2))
    allowed = 1 + abs(acc) * Fraction(1 << step.shift, 1 << 33)
    assert abs(requant(tensor(acc), step.multiplier, step.shift).item() - real) <= allowed


def test_factor_beyond_2_to_the_31_is_refused() -> None:
    with pytest.raises(OverflowBoundError, match=r"scale ratio of 4\.29497e\+09 is too large"):
        Requant.of(2.0**32)


ratios = st.floats(2.0**-12, 64.0)


@given(ratios, ratios, int8, int8, int8, int8, int8)
def test_rescaled_sum_is_within_its_multipliers_error_of_the_real_one(
    fa: float, fb: float, za: int, zb: int, zy: int, a: int, b: int
) -> None:
    rescale = Rescale.of((fa, -fb), (za, zb), zy)
    assert all(abs(m) <= 32767 for m in rescale.multipliers) and 0 <= rescale.shift <= 22
    exact = Fraction(fa) * (a - za) - Fraction(fb) * (b - zb) + zy
    error = Fraction(abs(a - za) + abs(b - zb), 2 << rescale.shift)
    actual = rescale.apply(tensor(a), tensor(b)).item()
    assert exact - error - Fraction(1, 2) <= actual <= exact + error + Fraction(1, 2)


@given(ratios, int8)
def test_rescaling_keeps_the_zero_point(factor: float, zero: int) -> None:
    assert Rescale.of((factor,), (zero,), 17).apply(tensor(zero)).item() == 17


def test_rescale_ratio_beyond_16_bits_is_refused() -> None:
    with pytest.raises(OverflowBoundError, match="scale ratio of 40000 is too large"):
        Rescale.of((40000.0,), (0,), 0)


def test_rescaled_sum_that_leaves_int32_is_refused() -> None:
    with pytest.raises(OverflowBoundError, match="a rescaled sum exceeds int32"):
        Rescale.of((1.0,), (0,), 0).apply(tensor(1 << 20))


def test_int32_check_takes_the_ends_and_refuses_what_is_beyond() -> None:
    assert check_int32(torch.tensor([INT32_MAX, -INT32_MAX - 1]), "it").numel() == 2
    assert check_int32(torch.zeros(0, dtype=torch.int64), "it").numel() == 0
    for beyond in (INT32_MAX + 1, -INT32_MAX - 2):
        with pytest.raises(OverflowBoundError, match="it exceeds int32"):
            check_int32(tensor(beyond), "it")


int16 = st.integers(-32768, 32767)


@given(
    ratios, ratios, st.sampled_from((-1, 1)), st.tuples(*[st.sampled_from((-32768, -1, 0, 32767))] * 2), int16
)
def test_a_rescaled_sum_of_16_bits_never_leaves_int32(
    fa: float, fb: float, sign: int, ends: tuple[int, int], zero: int
) -> None:
    rescale = Rescale.of((fa, sign * fb), (0, zero // 256), zero // 2, bits=16)
    actual = rescale.apply(*map(tensor, ends)).item()
    exact = Fraction(fa) * ends[0] + sign * Fraction(fb) * (ends[1] - zero // 256) + zero // 2
    error = Fraction(abs(ends[0]) + abs(ends[1] - zero // 256), 2 << rescale.shift)
    assert exact - error - Fraction(1, 2) <= actual <= exact + error + Fraction(1, 2)


def test_an_accumulator_that_its_shift_takes_beyond_int32_is_refused() -> None:
    prove_requant(INT32_MAX >> 2, Requant(1, 0), Requant(1, 2))
    with pytest.raises(OverflowBoundError, match="can reach 2,147,483,648, beyond int32"):
        prove_requant(1 << 29, Requant(1, 0), Requant(1, 2))


@pytest.mark.parametrize(
    ("x", "y"), [(1, 1), (-1, 0), (3, 2), (-3, -1), (32767, 16384), (-32767, -16383), (2, 1), (-2, -1)]
)
def test_rescaling_rounds_ties_towards_plus_infinity(x: int, y: int) -> None:
    assert Rescale.of((0.5,), (0,), 0, bits=16).apply(tensor(x)).item() == y
    assert Rescale.of((0.25, 0.25), (0, 0), 0, bits=16).apply(tensor(x), tensor(x)).item() == y
    assert Rescale.of((0.5,), (0,), 7, bits=16).apply(tensor(x)).item() == y + 7


NEAR_THE_LARGEST = [
    (1.0, 1.0),
    (0.99998, 0.99998),
    (0.99998, -0.99998),
    (31.99, 0.5),
    (-1.9999, 1.9999),
    (32767.0, 1.0),
]


@pytest.mark.parametrize("factors", NEAR_THE_LARGEST)
@pytest.mark.parametrize("zero", [0, -300])
def test_sums_of_16_bits_are_exact_at_the_ends_of_their_range(
    factors: tuple[float, float], zero: int
) -> None:
    rescale = Rescale.of(factors, (0, 0), zero, bits=16)
    for a, b in product((-32768, 32767), repeat=2):
        exact = sum(Fraction(m) * x for m, x in zip(rescale.multipliers, (a, b), strict=True))
        want = floor(exact / (1 << rescale.shift) + zero + Fraction(1, 2))
        assert rescale.apply(tensor(a), tensor(b)).item() == want
        real = Fraction(factors[0]) * a + Fraction(factors[1]) * b + zero
        assert abs(want - real) <= Fraction(abs(a) + abs(b), 2 << rescale.shift) + Fraction(1, 2)
