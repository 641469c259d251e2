"""Entropy calibration against the same rule written out bin by bin."""

from __future__ import annotations

from math import inf, log

import pytest
import torch

from fxpress.passes.calibration.entropy import clip_by_divergence, divergence


def divergence_bin_by_bin(counts: list[float], start: int, stop: int, levels: int) -> float:
    inside = counts[start:stop]
    p = list(inside)
    p[0] += sum(counts[:start])
    p[-1] += sum(counts[stop:])
    inside = [max(n, 1) if m > 0 else n for n, m in zip(inside, p, strict=True)]
    q = [0.0] * len(inside)
    for level in range(levels):
        bins = [j for j in range(len(inside)) if j * levels // len(inside) == level]
        filled = [j for j in bins if inside[j] > 0]
        for j in filled:
            q[j] = sum(inside[i] for i in bins) / len(filled)
    total = 0.0
    for a, b in zip(p, q, strict=True):
        if a > 0:
            total += a / sum(p) * log((a / sum(p)) / (b / sum(q)))
    return total


@pytest.mark.parametrize("seed", range(20))
def test_the_divergence_is_that_of_the_definition(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    counts = torch.randint(0, 4, (37,), generator=generator).double() * (
        torch.rand(37, generator=generator) < 0.8
    )
    for start, stop, levels in [(0, 37, 8), (5, 30, 8), (3, 4, 1), (0, 36, 16), (10, 20, 3)]:
        expected = divergence_bin_by_bin(counts.tolist(), start, stop, levels)
        assert divergence(counts, start, stop, levels=levels) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_merging_loses_nothing_where_bins_of_a_step_are_alike() -> None:
    assert divergence(torch.tensor([3.0, 3.0, 5.0, 5.0]), 0, 4, levels=2) == pytest.approx(0.0)
    assert divergence(torch.tensor([1.0, 3.0, 5.0, 5.0]), 0, 4, levels=2) > 0.01


def test_an_empty_bin_that_takes_clipped_values_holds_one() -> None:
    assert divergence(torch.tensor([2.0, 0.0, 1.0]), 0, 2, levels=2) == pytest.approx(0.0)
    assert divergence(torch.tensor([2.0, 0.0, 8.0]), 0, 2, levels=2) > 0.1


def test_a_range_without_values_is_none() -> None:
    assert divergence(torch.zeros(4), 1, 3, levels=2) == inf


def test_the_chosen_end_is_the_best_of_all_candidates() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.cat([torch.randn(20_000, generator=generator).abs(), torch.tensor([12.0, 25.0])]).double()
    counts = torch.histc(values / 25.0, 4096, 0.0, 1.0)
    stops = {round(4096 * k / 50) for k in range(1, 51)}
    expected = min((s for s in stops if s >= 256), key=lambda s: (divergence(counts, 0, s, levels=256), -s))
    found = clip_by_divergence(values, low=0.0, high=25.0, levels=256, candidates=50)
    assert found == (0.0, pytest.approx(25.0 * expected / 4096))
    assert found[1] < 13.0


def test_both_ends_are_clipped_when_both_have_outliers() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.cat([torch.randn(50_000, generator=generator), torch.tensor([-30.0, 40.0])])
    low, high = clip_by_divergence(values, low=-30.0, high=40.0, levels=256, candidates=100)
    assert -12.0 < low < -3.0
    assert 3.0 < high < 12.0


def test_more_levels_than_bins_leave_the_whole_range() -> None:
    values = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    assert clip_by_divergence(values, low=-4.0, high=4.5, levels=1 << 16, candidates=10) == (-4.0, 4.5)


def test_zeros_tell_nothing_about_the_range() -> None:
    values = torch.randn(5000, generator=torch.Generator().manual_seed(0)).abs()
    with_zeros = torch.cat([values, torch.zeros(50_000)])
    ends = [
        clip_by_divergence(v, low=0.0, high=float(values.max()), levels=64, candidates=100)
        for v in (values, with_zeros)
    ]
    assert ends[0] == ends[1]
