"""Learned rounding of one layer, against the best rounding there is."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

from fxpress.ir.ops.accumulate import Clamp
from fxpress.passes.quantize.adaround import LayerSamples, learn_rounding


def layer_samples(weight: Tensor, *, clamp: Clamp = None, seed: int = 0) -> LayerSamples:
    """Correlated inputs, for which rounding each weight for itself is not the best."""
    generator = torch.Generator().manual_seed(seed)
    groups, _, k = weight.shape
    mix = torch.randn(groups, k, k, generator=generator)
    x = torch.randn(groups, 800, k, generator=generator) @ mix + 1.0
    return LayerSamples(x, 0.0, x @ weight.mT, clamp)


def learn(
    weight: Tensor, step: Tensor, given: LayerSamples, *, largest: int = 7, iterations: int = 600
) -> Tensor:
    bias = torch.zeros(weight.shape[0], 1, weight.shape[1])
    generator = torch.Generator().manual_seed(0)
    return learn_rounding(
        weight,
        step,
        bias,
        given,
        largest=largest,
        iterations=iterations,
        learning_rate=0.03,
        generator=generator,
    )


def weights(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("seed", range(6))
def test_the_rounding_is_near_the_best_of_all(seed: int) -> None:
    weight, step, bias = weights(1, 1, 8, seed=seed), torch.tensor(0.3), torch.zeros(1, 1, 1)
    given = layer_samples(weight, seed=seed)
    learned = given.error(learn(weight, step, given) * step, bias)
    below = (weight / step).floor()
    choices = (below + torch.tensor(up, dtype=torch.float32) for up in product((0, 1), repeat=8))
    best = min(given.error(integers.clamp(-7, 7) * step, bias) for integers in choices)
    nearest = given.error((weight / step).round().clamp(-7, 7) * step, bias)
    assert best <= learned <= max(3 * best, 1e-9)
    assert learned <= nearest


@pytest.mark.parametrize("clamp", [None, (0.0, float("inf")), (0.0, 6.0)])
@pytest.mark.parametrize(("bits", "size"), [(2, 1.0), (4, 0.3), (8, 0.03)])
def test_every_integer_is_beside_its_weight_and_the_error_falls(clamp: Clamp, bits: int, size: float) -> None:
    weight, largest = weights(2, 5, 12), (1 << (bits - 1)) - 1
    step, bias = torch.full((2, 5, 1), size), torch.zeros(2, 1, 5)
    given = layer_samples(weight, clamp=clamp)
    integers = learn(weight, step, given, largest=largest)
    ratio = (weight / step).clamp(-largest, largest)
    assert bool(((integers == ratio.floor()) | (integers == ratio.ceil())).all())
    nearest = ratio.round()
    assert given.error(integers * step, bias) < 0.9 * given.error(nearest * step, bias)


def test_steps_may_differ_from_group_to_group_of_weights() -> None:
    weight = weights(1, 4, 16)
    step = torch.tensor([0.2, 0.4]).repeat_interleave(8).expand(1, 4, 16)
    given = layer_samples(weight)
    integers = learn(weight, step, given)
    assert bool(((integers * step - weight).abs() <= step * 1.001)[(weight / step).abs() < 7].all())
    nearest = (weight / step).round().clamp(-7, 7)
    bias = torch.zeros(1, 1, 4)
    assert given.error(integers * step, bias) < 0.7 * given.error(nearest * step, bias)


def test_the_same_seed_gives_the_same_integers() -> None:
    weight, step = weights(1, 5, 12), torch.tensor(0.3)
    given = layer_samples(weight)
    assert torch.equal(learn(weight, step, given, iterations=50), learn(weight, step, given, iterations=50))


def test_weights_that_are_integers_already_stay() -> None:
    weight, step = torch.tensor([[[1.0, -2.0, 0.0, 3.0]]]), torch.tensor(0.5)
    assert torch.equal(learn(weight, step, layer_samples(weight)), weight / step)


def test_a_lesson_with_inputs_of_mean_zero_has_one_bias_for_all_weights() -> None:
    weight = weights(2, 3, 6)
    given = layer_samples(weight)
    shortfalls = [given.centred().shortfall(w) for w in (weight, torch.zeros_like(weight))]
    torch.testing.assert_close(shortfalls[0], shortfalls[1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(given.shortfall(weight), torch.zeros(2, 1, 3), rtol=0.0, atol=1e-5)
