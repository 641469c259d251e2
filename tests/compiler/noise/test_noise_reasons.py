"""Each reason on a network where it is the truth, and the change that then helps."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fxpress.compiler import Compiled
from fxpress.compiler.report import Noise, NoiseSource, TriedChange

Compile = Callable[..., Compiled]


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


class Two(nn.Module):
    """Two linear layers with something around the first result."""

    def __init__(self, between: Callable[[Tensor], Tensor] = torch.relu, width: int = 16) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.between = nn.Linear(16, width), nn.Linear(width, 4), between

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.between(self.a(x)))


def noise_of(compiled: Compiled) -> Noise:
    noise = compiled.report.noise
    assert noise is not None and noise.is_low
    return noise


def worst_source(compiled: Compiled) -> NoiseSource:
    return noise_of(compiled).sources[0]


def helping(compiled: Compiled, start: str) -> TriedChange:
    """The change whose text starts so, which must have taken the output above what is asked for."""
    change = next(change for change in noise_of(compiled).changes if change.change.startswith(start))
    assert change.helps and change.is_enough, change
    return change


def test_an_outlier_sample_is_named_by_its_index(compile_on: Compile) -> None:
    x = drawn(64, 16)
    x[37] *= 300
    compiled = compile_on(Two(), x)
    source = worst_source(compiled)
    assert source.op == "quantize" and source.share_percent > 30
    assert source.reasons[0].startswith("calibration sample 37 alone extends the range from")
    change = helping(compiled, "data.calibration.exclude: [37]")
    (effect,) = change.effects
    assert change.flash_bytes == 0 and effect.snr_db_after is not None and effect.snr_db_after > 30


def test_an_observer_that_cuts_off_is_told_with_the_one_that_does_not(compile_on: Compile) -> None:
    x = drawn(64, 16)
    x[:, :2] *= 30
    compiled = compile_on(Two(), x, observer="{kind: percentile, coverage: 80 %}")
    assert "saturate: the observer percentile covers" in worst_source(compiled).reasons[0]
    (effect,) = helping(compiled, "observer: minmax").effects
    assert effect.snr_db_before is not None and effect.snr_db_after is not None
    assert effect.snr_db_after > effect.snr_db_before + 20


class Masked(nn.Module):
    """A mask that a function other than softmax reads."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(16, 16), nn.Linear(16, 4)
        self.register_buffer("mask", torch.cat([torch.zeros(8), torch.full((8,), -1e5)]))

    def forward(self, x: Tensor) -> Tensor:
        return self.b(torch.sigmoid(self.a(x) + self.mask))


def test_a_mask_that_takes_the_range_is_named(compile_on: Compile) -> None:
    compiled = compile_on(Masked(), drawn(64, 16))
    source = worst_source(compiled)
    assert source.reasons[0].startswith("%mask contains -1e+05 as a mask: steps of")
    assert not helping(compiled, "in the model: %mask within -").is_of_spec


class Joined(nn.Module):
    """A narrow and a wide value on one grid, both read through the concat alone."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.o = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(32, 4)
        with torch.no_grad():
            self.b.weight *= 400
            self.o.weight[:, 16:] /= 40_000

    def forward(self, x: Tensor) -> Tensor:
        return self.o(torch.cat([self.a(x), self.b(x)], 1))


def test_a_narrow_member_of_a_concat_names_the_wide_one(compile_on: Compile) -> None:
    compiled = compile_on(Joined(), drawn(64, 16))
    source = worst_source(compiled)
    assert any("shares its encoding with %" in reason for reason in source.reasons)
    helping(compiled, "layers: {o: {activations: int16}}")


@pytest.mark.parametrize("bits", ["int2", "int4"])
def test_weights_of_few_bits_are_told_with_eight(compile_on: Compile, bits: str) -> None:
    compiled = compile_on(Two(), drawn(64, 16), layers=f"{{a: {bits}}}", min_snr="30 dB")
    source = worst_source(compiled)
    assert source.module == "a" and f"its weights of {bits[-1]} bits" in source.reasons[0]
    change = helping(compiled, "layers: {a: int8}")
    assert change.flash_bytes is not None and change.cycles is not None


class Divided(nn.Module):
    """A quotient whose divisor comes near zero, made of a value that a layer reads too."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.c, self.b, self.d = (nn.Linear(16, n) for n in (16, 16, 4, 4))
        with torch.no_grad():
            self.a.weight *= 5

    def forward(self, x: Tensor) -> Tensor:
        divisor = torch.sigmoid(self.a(x))
        return self.b(torch.tanh(self.c(x)) / (divisor + 0.001)) + self.d(divisor)


def test_a_divisor_near_zero_is_the_source_although_its_own_ratio_is_high(compile_on: Compile) -> None:
    compiled = compile_on(Divided(), drawn(64, 16))
    source = worst_source(compiled)
    assert source.snr_db is not None and source.snr_db > 20
    assert source.reasons[0].startswith("feeds div %div, which amplifies noise of small values")
    assert any(change.helps and "float32" in change.change for change in noise_of(compiled).changes)


class Attended(nn.Module):
    """Probabilities over many positions, most of them far below the step of a grid that reaches 1."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.softmax, self.b = nn.Linear(16, 600), nn.Softmax(-1), nn.Linear(600, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.softmax(self.a(x)))


def test_a_fixed_grid_is_told_with_its_step(compile_on: Compile) -> None:
    x = drawn(64, 16)
    x[::9] *= 40
    compiled = compile_on(Attended(), x, min_snr="25 dB")
    source = worst_source(compiled)
    assert source.module == "softmax"
    assert any(reason.startswith("softmax has a fixed step of 0.00391; half") for reason in source.reasons)
    helping(compiled, "layers: {softmax: float32, b: float32}")


def test_values_far_smaller_than_the_range_are_told_in_steps(compile_on: Compile) -> None:
    x = drawn(64, 16) * 0.01
    x[:, 0] = torch.linspace(-1000, 1000, 64)
    model = Two()
    with torch.no_grad():
        model.a.weight[:, 0] = 0
        model.a.bias.zero_()
        model.b.bias.zero_()
    compiled = compile_on(model, x)
    source = worst_source(compiled)
    assert source.op == "quantize" and "half of its values are below" in source.reasons[-1]
    assert "steps" in source.reasons[-1]
    helping(compiled, "layers: {a: float32}")
