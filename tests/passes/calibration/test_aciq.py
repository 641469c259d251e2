"""Analytic clipping against the table of its source, and against a search on samples."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fxpress.passes.calibration.aciq import (
    clip_activations,
    clip_scales,
    gauss_clip,
    laplace_clip,
    spread_correction,
)

SAMPLES = 200_000


def laplace(seed: int = 0) -> Tensor:
    uniform = torch.rand(SAMPLES, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) - 0.5
    return -uniform.sign() * torch.log1p(-2 * uniform.abs())


def gauss(seed: int = 0) -> Tensor:
    return torch.randn(SAMPLES, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("bits", "clip"), [(2, 2.83), (3, 3.89), (4, 5.03)])
def test_clips_of_a_laplace_distribution_are_those_of_the_source(bits: int, clip: float) -> None:
    assert laplace_clip(1 << bits) == pytest.approx(clip, abs=0.01)


@pytest.mark.parametrize(("bits", "clip"), [(2, 1.71), (3, 2.15), (4, 2.55)])
def test_clips_of_a_gauss_distribution_are_those_of_the_source(bits: int, clip: float) -> None:
    assert gauss_clip(1 << bits) == pytest.approx(clip, abs=0.01)


def error(values: Tensor, low: float, high: float, levels: int) -> float:
    """Mean squared error of a grid of `levels` equal steps over [low, high], each kept as its middle."""
    step = (high - low) / levels
    index = ((values - low) / step).floor().clamp(0, levels - 1)
    return float((low + (index + 0.5) * step - values).square().mean())


@pytest.mark.parametrize("draw", [laplace, gauss])
@pytest.mark.parametrize("bits", [3, 4, 6])
def test_no_clip_is_better_than_the_analytic_one_by_more_than_five_percent(draw: object, bits: int) -> None:
    values = 3.0 * draw() + 1.0
    low, high = clip_activations(values, levels=1 << bits)
    widths = torch.linspace(0.3, 2.0, 120).tolist()
    middle, half = (low + high) / 2, (high - low) / 2
    searched = min(error(values, middle - w * half, middle + w * half, 1 << bits) for w in widths)
    assert error(values, low, high, 1 << bits) < 1.05 * searched


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_what_a_relu_leaves_is_clipped_on_one_side_as_with_twice_the_steps(sign: float) -> None:
    values = sign * torch.relu(2.0 * laplace())
    ends = sorted(abs(end) for end in clip_activations(values, levels=16))
    assert ends[0] == 0.0
    assert ends[1] == pytest.approx(2.0 * laplace_clip(32), rel=0.02)


def test_the_likelier_distribution_decides() -> None:
    assert clip_activations(gauss(), levels=16)[1] == pytest.approx(gauss_clip(16), rel=0.02)
    assert clip_activations(laplace(), levels=16)[1] == pytest.approx(laplace_clip(16), rel=0.02)


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("draw", [laplace, gauss])
def test_scales_of_weights_are_near_the_best_ones(draw: object, bits: int) -> None:
    rows = draw().reshape(10, -1)
    qmax = (1 << (bits - 1)) - 1

    def squared_error(scales: Tensor) -> Tensor:
        step = scales[:, None]
        return ((rows / step).round().clamp(-qmax, qmax) * step - rows).square().mean(1)

    found = clip_scales(rows, bits=bits)
    searched = torch.stack([squared_error(found * f) for f in torch.linspace(0.3, 2.0, 80).tolist()]).amin(0)
    assert bool((squared_error(found) < 1.1 * searched).all())


def test_scales_of_weights_are_those_of_each_row() -> None:
    rows = torch.stack([gauss(), 1e-20 * gauss(1), 1e20 * gauss(2)])
    together = clip_scales(rows, bits=4)
    apart = torch.cat([clip_scales(row[None], bits=4) for row in rows])
    torch.testing.assert_close(together, apart, rtol=1e-12, atol=0.0)
    torch.testing.assert_close(
        together / together[0], torch.tensor([1.0, 1e-20, 1e20]).double(), rtol=0.02, atol=0.0
    )


def test_a_scale_never_reaches_beyond_the_largest_weight() -> None:
    assert clip_scales(torch.tensor([[1.0, -1.0, 1.0]]).double(), bits=8).item() == pytest.approx(1 / 127)


def test_rounded_weights_get_the_spread_of_the_real_ones_back() -> None:
    rows = laplace()[:1000].reshape(4, -1)
    step = clip_scales(rows, bits=2)[:, None]
    rounded = (rows / step).round().clamp(-1, 1) * step
    corrected = rounded * spread_correction(rows, rounded)[:, None]
    torch.testing.assert_close(corrected.std(1), rows.std(1))
    assert spread_correction(torch.zeros(1, 3), torch.zeros(1, 3)).item() == 1.0
