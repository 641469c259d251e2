"""Proposed changes: pasted into the spec, they have the effects that the report states."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fxpress.compiler import Compiled
from fxpress.compiler.report import Noise, TriedChange, noise_lines, noise_problems

Compile = Callable[..., Compiled]


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Three linear layers, and what `end` makes of them."""

    def __init__(self, end: Callable[[Net, Tensor], object]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Linear(16, 16), nn.Linear(16, 4), nn.Linear(16, 4)
        self.register_buffer("mean", torch.linspace(0, 4000, 16))
        self.end = end

    def forward(self, x: Tensor) -> object:
        return self.end(self, x)


def chain(net: Net, x: Tensor) -> Tensor:
    return net.b(torch.relu(net.a(x)))


def normalised(net: Net, x: Tensor) -> Tensor:
    """Means are taken off by functions of no module."""
    return chain(net, torch.tanh(x - net.mean))


def noise_of(compiled: Compiled) -> Noise:
    noise = compiled.report.noise
    assert noise is not None and noise.is_low
    return noise


def named(noise: Noise, text: str) -> TriedChange:
    (change,) = [change for change in noise.changes if change.change == text]
    return change


def with_outlier(x: Tensor) -> Tensor:
    x[37] *= 300
    return x


NETS: dict[str, tuple[Net, Tensor, Mapping[str, str]]] = {
    "2 bits": (Net(chain), drawn(64, 16), {"weights": "int2"}),
    "patterns": (Net(chain), drawn(64, 16), {"layers": '{"*": int2, b: {activations: int16}}'}),
    "no module": (Net(normalised), drawn(64, 16) + torch.linspace(0, 4000, 16), {}),
    "an outlier": (Net(chain), with_outlier(drawn(64, 16)), {"weights": "int4", "min_snr": "30 dB"}),
    "learned": (
        Net(chain),
        drawn(64, 16),
        {"weights": "int2", "rounding": "{kind: adaround, iterations: 50}"},
    ),
}


@pytest.mark.parametrize("net", NETS)
def test_what_is_said_to_help_does_so_in_the_spec(net: str, compile_on: Compile) -> None:
    model, x, options = NETS[net]
    noise = noise_of(compile_on(model, x, **options))
    helping = [change for change in noise.changes if change.helps and change.settings]
    assert helping and all(
        change.settings or change.change.startswith("in the model: ") for change in noise.changes
    )
    for change in helping[:3]:
        assert change.change.startswith(
            ", ".join(f"{name}: {value}" for name, value in change.settings.items())
        )
        pasted = compile_on(model, x, **{**options, **change.settings, "min_snr": "null"}).report.noise
        assert pasted is not None
        (effect,) = change.effects
        if (
            change.is_of_spec and "data.calibration.exclude" not in change.settings
        ):  # which leaves other samples to measure
            assert effect.snr_db_after == pytest.approx(pasted.outputs[0].snr_db, abs=0.05), change.change


def test_weights_of_few_bits_are_tried_wider_together_and_with_learned_rounding(compile_on: Compile) -> None:
    noise = noise_of(compile_on(Net(chain), drawn(64, 16), weights="int2"))
    for text in ("layers: {a: int8, b: int8}", "weights: int8"):
        assert named(noise, text).is_enough
    assert {"weights: int4", "rounding: {kind: adaround, iterations: 200}", "layers: {a: int8}"} <= {
        c.change for c in noise.changes
    }
    shown = [
        line.strip() for line in noise_lines(compile_on(Net(chain), drawn(64, 16), weights="int2").report)
    ]
    first = next(line for line in shown if line.startswith("helps: "))
    assert first.startswith("helps: rounding: adaround") or "int8" in first


def test_all_weights_get_eight_bits_whatever_patterns_and_passes_say(compile_on: Compile) -> None:
    noise = noise_of(compile_on(Net(chain), drawn(64, 16), layers='{"*": int2}', weights="int4"))
    assert named(noise, 'weights: int8, layers: {"*": int8}').is_enough


def test_a_layer_keeps_what_a_pattern_says_of_it_otherwise(compile_on: Compile) -> None:
    options = {"layers": '{"*": {weights: int2, activations: int16}}'}
    noise = noise_of(compile_on(Net(chain), drawn(64, 16), **options))
    texts = {change.change for change in noise.changes}
    own = "{weights: int8, activations: int16}"
    assert f'layers: {{"*": {{weights: int2, activations: int16}}, a: {own}, b: {own}}}' in texts


def test_functions_of_no_module_are_named_in_words_alone(compile_on: Compile) -> None:
    noise = noise_of(compile_on(Net(normalised), drawn(64, 16) + torch.linspace(0, 4000, 16)))
    assert all("%sub" not in value for change in noise.changes for value in change.settings.values())
    (change,) = [c for c in noise.changes if c.change.startswith("in the model: %sub at ")]
    assert change.is_enough and not change.is_of_spec
    assert change.change.endswith("keeps in float32, or applied to the data before the network")


def test_an_outlier_that_is_not_all_is_left_out_together_with_the_next_change(compile_on: Compile) -> None:
    x = with_outlier(drawn(64, 16))
    noise = noise_of(compile_on(Net(chain), x, weights="int4", min_snr="30 dB"))
    alone = named(noise, "data.calibration.exclude: [37]")
    assert alone.helps and not alone.is_enough
    assert named(noise, "weights: int8, data.calibration.exclude: [37]").is_enough
    again = {"weights": "int4", "min_snr": "30 dB", "data.calibration.exclude": "[0, 37]"}
    x[5] *= 300
    assert named(noise_of(compile_on(Net(chain), x, **again)), "data.calibration.exclude: [0, 5, 37]").helps


def test_an_outlier_among_the_measured_samples_does_not_count_where_it_is_left_out(
    compile_on: Compile,
) -> None:
    x = drawn(12, 16)
    x[3] *= 300
    assert named(noise_of(compile_on(Net(chain), x)), "data.calibration.exclude: [3]").is_enough


def test_each_change_is_measured_at_each_low_output(compile_on: Compile) -> None:
    two = Net(lambda net, x: (net.b(torch.relu(x)), net.c(torch.tanh(net.a(x)))))
    report = compile_on(two, drawn(64, 16), layers="{b: int2, c: int2}").report
    assert report.noise is not None
    change = named(report.noise, "layers: {b: int8, c: int8}")
    assert [(effect.at, effect.helps) for effect in change.effects] == [
        ("output_0", True),
        ("output_1", True),
    ]
    partly = named(report.noise, "layers: {c: int2, b: int8}")
    assert [(effect.at, effect.helps) for effect in partly.effects] == [
        ("output_0", True),
        ("output_1", False),
    ]
    shown = [line for line in noise_lines(report) if "{c: int2, b: int8}" in line]
    assert len(shown) == 1 and shown[0].startswith("  helps: ") and "dB (no help there), " in shown[0]
    for (fact, hint), at in zip(noise_problems(report.noise), ("output_0", "output_1"), strict=True):
        assert fact.startswith(f"output {at} has") and f"{at} from" in hint


def test_what_the_target_has_no_kernel_for_is_not_proposed(compile_on: Compile, tmp_path: Path) -> None:
    target = "name: narrow\ndescription: no kernel for int16\ncore: cortex-m4f\nactivation_bits: [8]\n"
    (tmp_path / "narrow.yaml").write_text(target)
    options = {"weights": "int2", "target.name": f'"{tmp_path / "narrow.yaml"}"'}
    noise = noise_of(compile_on(Net(chain), drawn(64, 16), **options))
    assert noise.changes and not any("int16" in change.change for change in noise.changes)
