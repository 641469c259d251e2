"""Scales of weights: by row, near the best possible ones, and their effect on a layer."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fxpress.ir import BINARY_BITS, Encoding
from fxpress.ir.ops.conv import Conv
from fxpress.ir.ops.linear import Linear
from fxpress.passes.quantize.weights import QuantizedWeights, quantize_weights, row_scales
from fxpress.specs.options import WeightObserver

GRID = Encoding((0.01,))


def weights(rows: int = 6, columns: int = 200, *, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    sizes = 10.0 ** torch.linspace(-3, 3, rows, dtype=torch.float64)
    return torch.randn(rows, columns, generator=generator, dtype=torch.float64) * sizes[:, None]


def squared_errors(rows: Tensor, scales: Tensor, bits: int) -> Tensor:
    largest, step = (1 << (bits - 1)) - 1, scales[:, None]
    return ((rows / step).round().clamp(-largest, largest) * step - rows).square().sum(1)


def quantized(weight: Tensor, bits: int, observer: WeightObserver) -> QuantizedWeights:
    return quantize_weights(Linear(), weight, None, x=GRID, y=GRID, bits=bits, observer=observer)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_scale_of_each_row_is_within_ten_percent_of_a_dense_search_over_that_row(bits: int) -> None:
    rows = weights()
    found = squared_errors(rows, row_scales(rows, bits=bits, observer="mse"), bits)
    largest = rows.abs().amax(1) / ((1 << (bits - 1)) - 1)
    dense = torch.stack([squared_errors(rows, largest * k / 2000, bits) for k in range(20, 2001)]).amin(0)
    assert bool((found < 1.1 * dense).all())


@pytest.mark.parametrize("observer", ["minmax", "mse", "aciq"])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_row_has_the_scale_that_it_would_have_alone(observer: WeightObserver, bits: int) -> None:
    rows = weights()
    together = row_scales(rows, bits=bits, observer=observer)
    apart = torch.cat([row_scales(row[None], bits=bits, observer=observer) for row in rows])
    torch.testing.assert_close(together, apart, rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("bits", [2, 4])
def test_a_clipped_scale_beats_the_largest_weight_on_the_largest_integer(bits: int) -> None:
    rows = weights()
    largest = rows.abs().amax(1) / ((1 << (bits - 1)) - 1)
    clipped = squared_errors(rows, row_scales(rows, bits=bits, observer="mse"), bits)
    assert bool((clipped < squared_errors(rows, largest, bits) * 0.95).all())


@pytest.mark.parametrize("bits", [2, 4])
def test_analytic_clipping_gives_weights_their_spread_back(bits: int) -> None:
    weight = weights(columns=2000)
    made = quantized(weight, bits, "aciq")
    step, _ = made.weight_encoding.expand(tuple(weight.shape))
    back = made.weight.double() * step
    ratio = back.std(1) / weight.std(1)
    # integers are rounded anew on the corrected scale, which takes a part of the correction
    assert bool(((ratio - 1).abs() < 0.1).all())


def test_zeros_and_tiny_weights_have_no_floor() -> None:
    weight = torch.stack(
        [torch.zeros(50), torch.randn(50, generator=torch.Generator().manual_seed(0)) * 1e-30]
    )
    for observer in ("minmax", "mse", "aciq"):
        made = quantized(weight, 4, observer)
        assert not made.weight[0].any()
        assert made.weight[1].abs().max() == 7


def test_a_weight_that_is_not_contiguous_gets_one_scale_like_any_other() -> None:
    weight = weights().float()
    strided = weight.t().contiguous().t()
    made, expected = (
        quantize_weights(Linear(), w, None, x=GRID, y=GRID, bits=8, observer="minmax", per_channel=False)
        for w in (strided, weight)
    )
    assert torch.equal(made.weight, expected.weight) and made.weight_encoding == expected.weight_encoding


def test_beside_activations_of_sixteen_bits_a_short_row_takes_the_best_grid_of_many() -> None:
    weight = torch.rand(200, 4, generator=torch.Generator().manual_seed(0)).double() - 0.5

    def error(x: Encoding) -> float:
        made = quantize_weights(Linear(), weight, None, x=x, y=GRID, bits=8)
        return float((made.weight_encoding.dequantize(made.weight) - weight).square().mean())

    assert error(Encoding((1e-4,), bits=16)) < 0.2 * error(GRID)


@pytest.mark.parametrize("observer", ["minmax", "mse", "aciq"])
@pytest.mark.parametrize("per_channel", [True, False])
def test_a_bias_of_a_million_times_its_weights_keeps_its_value(
    observer: WeightObserver, per_channel: bool
) -> None:
    weight = torch.randn(3, 5, generator=torch.Generator().manual_seed(0)).double() * 1e-3
    bias = torch.tensor([1000.0, -1000.0, 2e-3], dtype=torch.float64)
    made = quantize_weights(
        Linear(), weight, bias, x=GRID, y=GRID, bits=8, observer=observer, per_channel=per_channel
    )
    assert made.bias is not None and made.bias_encoding is not None
    assert int(made.bias.abs().max()) <= 1 << 29
    steps = torch.tensor(made.bias_encoding.scale, dtype=torch.float64)
    assert bool(((made.bias * steps - bias).abs() <= steps / 2 * (1 + 1e-9)).all())
    exact = torch.tensor(made.weight_encoding.scale, dtype=torch.float64) * GRID.scale[0]
    torch.testing.assert_close(steps, exact, rtol=0.0, atol=0.0)


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("observer", ["minmax", "mse", "aciq"])
def test_binary_weights_are_the_sign_times_the_mean_magnitude(
    observer: WeightObserver, per_channel: bool
) -> None:
    weight = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    weight[1, 0, 0, 0] = 0.0
    unit = Encoding((1.0,))
    op = Conv(padding=(1, 1, 1, 1))
    made = quantize_weights(
        op, weight, None, x=unit, y=unit, bits=BINARY_BITS, per_channel=per_channel, observer=observer
    )
    assert set(made.weight.unique().tolist()) == {-1, 1}
    assert torch.equal(made.weight > 0, weight >= 0)
    means = weight.abs().mean((1, 2, 3)) if per_channel else weight.abs().mean()[None]
    torch.testing.assert_close(made.weight_encoding.scale.tensor(torch.float32), means)


def test_a_binary_channel_of_zeros_adds_less_than_a_step() -> None:
    unit = Encoding((1.0,))
    made = quantize_weights(Conv(), torch.zeros(2, 64, 3, 3), None, x=unit, y=unit, bits=BINARY_BITS)
    assert 128 * 64 * 9 * max(made.weight_encoding.scale) < 0.5
