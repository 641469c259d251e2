"""Signal-to-noise ratios of samples."""

import math

import pytest
import torch

from fxpress.compiler.noise.ratios import Powers


def ratio(reference: list[float], actual: list[float]) -> float:
    return Powers.of(torch.tensor(reference), torch.tensor(actual), samples=len(reference)).snr_db


def test_a_ratio_is_that_of_signal_and_noise_power() -> None:
    assert ratio([10.0, -10.0, 10.0], [11.0, -11.0, 9.0]) == pytest.approx(20.0)


def test_one_large_sample_does_not_hide_what_all_others_lose() -> None:
    assert ratio([1000.0, 1.0, 1.0], [1000.0, 0.0, 0.0]) == pytest.approx(0.0)


def test_without_noise_a_ratio_is_infinite_and_without_signal_minus_infinite() -> None:
    assert ratio([0.0, 0.0], [0.0, 0.0]) == math.inf
    assert ratio([0.5, 0.5], [0.5, 0.5]) == math.inf
    assert ratio([0.0, 0.0], [0.1, 0.0]) == -math.inf


def test_of_whole_numbers_each_element_counts_the_same() -> None:
    reference = torch.tensor([[1], [7], [3], [2], [2], [9], [4], [5], [6], [0]])
    actual = reference.clone()
    actual[1] = 1000
    assert Powers.of(reference, actual, samples=10).snr_db == pytest.approx(10.0)


def test_what_is_infinite_in_the_reference_is_left_out() -> None:
    reference, actual = torch.tensor([[-math.inf, 10.0]]), torch.tensor([[-1e9, 11.0]])
    assert Powers.of(reference, actual, samples=1).snr_db == pytest.approx(20.0)
