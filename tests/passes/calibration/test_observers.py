"""Ranges chosen from statistics, and the grids made from ranges."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fxpress.passes.calibration.observers import (
    Collector,
    Range,
    Statistics,
    choose_range,
    min_max,
    moving_average,
    mse,
    percentile,
)
from fxpress.passes.quantize.range_encodings import activation_encoding, natural_encoding, symmetric_encoding
from fxpress.specs.options import Aciq, Entropy, MinMax, MovingAverage, MseSearch, Observer, Percentile

OBSERVERS = [MinMax(), MovingAverage(), Percentile(), MseSearch(), Entropy(), Aciq()]


def seen(*batches: torch.Tensor) -> Statistics:
    collector = Collector(len(batches))
    for batch in batches:
        collector.add(batch)
    statistics = collector.finish()
    assert statistics is not None
    return statistics


def test_min_max_reaches_the_ends_and_zero() -> None:
    assert min_max(seen(torch.tensor([2.0, 3.0]), torch.tensor([1.0, 5.0]))) == Range(0.0, 5.0)


def test_moving_average_weighs_the_past() -> None:
    batches = [torch.tensor([-1.0, 1.0]), torch.tensor([-2.0, 3.0])]
    chosen = moving_average(seen(*batches), momentum=0.75)
    assert (chosen.low, chosen.high) == (-1.25, 1.5)


def test_percentile_leaves_out_as_much_as_it_says() -> None:
    chosen = percentile(seen(torch.arange(-500.0, 501.0)), coverage=0.9)
    assert (chosen.low, chosen.high) == (-450.0, 450.0)


def test_mse_clips_what_costs_the_others_more() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.cat([torch.randn(100_000, generator=generator), torch.tensor([60.0])])
    chosen = mse(seen(values), levels=16, candidates=100)
    assert 1.5 < chosen.high < 20.0

    def error(limit: Range) -> float:
        grid = activation_encoding(limit, bits=4)
        return float((grid.dequantize(grid.quantize(values)) - values).square().mean())

    assert error(chosen) < error(min_max(seen(values))) / 10


def test_mse_keeps_a_range_that_costs_nothing() -> None:
    values = torch.linspace(-1, 1, 10_000)
    assert mse(seen(values), levels=256, candidates=100).high > 0.95


@pytest.mark.parametrize("observer", OBSERVERS)
def test_every_observer_survives_one_value_and_zeros(observer: Observer) -> None:
    assert choose_range(seen(torch.tensor([3.0])), observer, levels=256).high == pytest.approx(3.0)
    assert choose_range(seen(torch.tensor([-3.0])), observer, levels=256).low == pytest.approx(-3.0)
    assert choose_range(seen(torch.zeros(7)), observer, levels=256) == Range(0.0, 0.0)


@pytest.mark.parametrize("observer", OBSERVERS)
@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_every_observer_works_at_any_magnitude(observer: Observer, scale: float) -> None:
    values = torch.randn(1000, generator=torch.Generator().manual_seed(0)) * scale
    chosen = choose_range(seen(values), observer, levels=256)
    assert 1.0 * scale < chosen.high < 5.0 * scale


def test_the_sample_of_a_large_tensor_is_bounded_but_its_ends_are_exact() -> None:
    values = torch.zeros(3_000_000)
    values[1] = 7.0
    statistics = seen(values)
    assert len(statistics.sample) < 200_000
    assert statistics.high == 7.0


def test_means_are_taken_over_all_batches() -> None:
    collector = Collector(2, axes=(1,))
    collector.add(torch.tensor([[[1.0, 2.0], [5.0, 6.0]]]))
    collector.add(torch.tensor([[[3.0, 4.0], [7.0, 8.0]]] * 3))
    statistics = collector.finish()
    assert statistics is not None
    torch.testing.assert_close(statistics.means[1], torch.tensor([3.0, 7.0], dtype=torch.float64))


@pytest.mark.parametrize("observer", OBSERVERS)
def test_no_observer_leaves_the_range_of_the_data(observer: Observer) -> None:
    values = torch.rand(1000, generator=torch.Generator().manual_seed(0)) * 3 - 1
    for part in (values, values.abs(), -values.abs()):
        chosen, full = choose_range(seen(part), observer, levels=256), min_max(seen(part))
        assert full.low <= chosen.low <= 0 <= chosen.high <= full.high


@given(st.floats(-1e30, 1e30), st.floats(-1e30, 1e30), st.sampled_from([8, 16]))
def test_zero_is_on_every_grid_and_the_ends_are_reached(a: float, b: float, bits: int) -> None:
    covered = Range.of(min(a, b), max(a, b))
    grid = activation_encoding(covered, bits=bits)
    reals = torch.tensor([0.0, covered.low, covered.high], dtype=torch.float64)
    back = grid.dequantize(grid.quantize(reals), dtype=torch.float64)
    assert back[0] == 0
    step = grid.scale[0]  # zero is rounded onto the grid, which moves the ends by half a step
    assert (back - reals).abs().max() <= step * 1.01


def test_a_symmetric_grid_reaches_the_farther_end() -> None:
    assert symmetric_encoding(Range(-2.54, 1.0), bits=8).scale[0] == pytest.approx(0.02)
    assert symmetric_encoding(Range(0.0, 0.0), bits=8).scale[0] == 1.0


@given(
    st.integers(1, 255),
    st.integers(0, 255),
    st.floats(1e-3, 1e3),
    st.integers(0, 1000),
)
def test_data_on_a_grid_of_their_own_are_kept_without_error(
    count: int, below: int, step: float, seed: int
) -> None:
    steps = torch.arange(count + 1) - min(below, count)
    kept = steps[torch.randperm(len(steps), generator=torch.Generator().manual_seed(seed))]
    values = kept.float() * step
    grid = natural_encoding(seen(values), bits=8)
    assert grid is not None
    torch.testing.assert_close(grid.dequantize(grid.quantize(values)), values, rtol=1e-5, atol=step * 1e-5)


def test_data_on_no_grid_have_none() -> None:
    generator = torch.Generator().manual_seed(0)
    assert natural_encoding(seen(torch.randn(100, generator=generator)), bits=8) is None
    assert natural_encoding(seen(torch.arange(300.0)), bits=8) is None


def test_values_that_share_a_grid_are_joined_batch_by_batch() -> None:
    one = seen(torch.tensor([-1.0, 1.0]), torch.tensor([-2.0, 2.0]))
    other = seen(torch.tensor([0.0, 3.0]), torch.tensor([-4.0, 1.0]))
    joined = Statistics.joined([one, other])
    assert joined.batches == ((-1.0, 3.0), (-4.0, 2.0))
    assert len(joined.sample) == 8
