"""Findings on noisy outputs and layers, their consequences, and the cases without an examination."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fxpress.compiler import Compiled, UserError, compile_model
from fxpress.compiler.cli import main
from fxpress.compiler.compare import explain_layer
from fxpress.compiler.noise.propagation import Propagation
from fxpress.compiler.plan import plan_text
from fxpress.compiler.report import Noise, noise_lines

Compile = Callable[..., Compiled]
INT2 = "{b: int2}"


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """Two layers, and what `end` makes of the second."""

    def __init__(
        self, end: Callable[[Net, Tensor], object] = lambda net, x: net.b(torch.relu(net.a(x)))
    ) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Linear(16, 16), nn.Linear(16, 4), nn.Linear(16, 4)
        self.end = end

    def forward(self, x: Tensor) -> object:
        return self.end(self, x)


def noise_of(compiled: Compiled) -> Noise:
    assert compiled.report.noise is not None
    return compiled.report.noise


def test_a_sound_network_has_ratios_and_nothing_else(compile_on: Compile) -> None:
    compiled = compile_on(Net(), drawn(64, 16))
    noise = noise_of(compiled)
    (output,) = noise.outputs
    assert output.snr_db is not None and output.snr_db > 30 and output.least_db == 15 and not noise.is_low
    assert not noise.sources and not noise.changes and noise_lines(compiled.report) == ()
    assert all(layer.snr_db is not None and layer.snr_db > 30 for layer in compiled.report.layers)


def test_each_output_is_judged_by_itself(compile_on: Compile) -> None:
    ends = Net(lambda net, x: (net.c(x), torch.ones(1, 3), x * 0, net.b(x), torch.relu(net.b(x) - 1000)))
    noise = noise_of(compile_on(ends, drawn(64, 16), layers=INT2))
    sound, constant, zero, low, silent = noise.outputs
    assert sound.snr_db is not None and sound.snr_db > 30
    assert (constant.snr_db, constant.noise) == (None, 0) and constant.signal > 0
    assert (zero.snr_db, zero.noise, zero.signal) == (None, 0, 0)
    assert (silent.snr_db, silent.noise) == (None, 0)
    assert [output.is_low for output in noise.outputs] == [False, False, False, True, False]
    assert low.snr_db is not None and low.snr_db < 15
    assert [source.module for source in noise.sources] == ["b"] and noise.sources[0].at == "output_3"


def test_of_classes_the_ones_that_differ_are_noise(compile_on: Compile) -> None:
    model = Net(lambda net, x: torch.argmax(net.a(x).reshape(1, 4, 4), 2))
    assert not noise_of(compile_on(model, drawn(64, 16))).is_low
    noise = noise_of(compile_on(model, drawn(64, 16), layers="{a: int2}"))
    (output,) = noise.outputs
    assert output.is_low and output.signal == 64 and 6 <= output.noise <= 32
    assert [source.module for source in noise.sources] == ["a"]


def wide_beside(net: Net, x: Tensor) -> Tensor:
    """A value with the encoding of one 4,000 times as wide; `c` ignores it where its weight is zero."""
    joined = torch.cat([net.a(x), net.a(x) * 4000], 1)[:, :16]
    return net.b(x) + net.c(torch.tanh(joined))


def test_noise_that_reaches_no_output_is_not_told(compile_on: Compile) -> None:
    model = Net(wide_beside)
    with torch.no_grad():
        model.c.weight *= 0.02
    lost = noise_of(compile_on(model, drawn(64, 16), min_snr="{output: 5 dB}"))
    assert not lost.outputs[0].is_low and [layer.module for layer in lost.low_layers] == []
    with torch.no_grad():
        model.c.weight *= 50
    told = noise_of(compile_on(model, drawn(64, 16), min_snr="{output: 5 dB}"))
    assert not told.outputs[0].is_low
    (layer,) = told.low_layers
    assert (layer.name, layer.module, layer.output) == ("linear_rescaled", "a", "output")
    assert told.sources[0].name == layer.name and "shares its encoding with %" in told.sources[0].reasons[0]


def test_layers_behind_the_first_low_one_are_not_listed(compile_on: Compile) -> None:
    model = Net(lambda net, x: net.b(torch.tanh(torch.relu(net.a(x)))))
    noise = noise_of(compile_on(model, drawn(64, 16), layers="{a: int2}", min_snr="{layer: 20 dB}"))
    assert [layer.module for layer in noise.low_layers] == ["a"]
    assert [source.module for source in noise.sources] == ["a"]


def test_an_error_names_output_layer_and_what_helps(compile_on: Compile) -> None:
    expected = (
        r"passes\[2\] \(quantize\): output output has \d+\.\d dB of the 25 dB required; b \(linear %\w+ at .*"
    )
    with pytest.raises(
        UserError, match=expected + r"adds \d+ % of the noise[\s\S]*helps: layers: \{b: int8\}"
    ):
        compile_on(Net(), drawn(64, 16), layers=INT2, on_low_snr="error", min_snr="25 dB")
    compile_on(Net(), drawn(64, 16), on_low_snr="error")
    compile_on(Net(), drawn(64, 16), layers=INT2, on_low_snr="error", min_snr="5 dB")


def test_the_command_line_shows_it_and_refuses_with_status_2(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    low = ["--set", "passes[2].layers={head: int2}"]
    assert main(["compile", str(project / "net.yaml"), "-o", str(project / "out"), *low]) == 0
    shown = capsys.readouterr().out
    assert "low: output output has" in shown and "helps: layers: {head: int8}" in shown
    assert main(["explain", str(project / "out"), "head"]) == 0
    assert "head (linear %linear at net.py:13) adds" in capsys.readouterr().out
    assert main(["plan", str(project / "net.yaml"), *low]) == 0
    assert "low: output output has" in capsys.readouterr().out
    refused = [*low, "--set", "passes[2].on_low_snr=error"]
    assert main(["compile", str(project / "net.yaml"), "-o", str(project / "out2"), *refused]) == 2
    assert (
        "(head" in capsys.readouterr().err.replace("head (linear", "(head")
        and not (project / "out2").exists()
    )


def test_the_page_has_the_sources_and_what_was_tried(compile_on: Compile) -> None:
    compiled = compile_on(Net(), drawn(64, 16), layers=INT2, min_snr="25 dB")
    page = compiled.files["report.html"].decode()
    assert (
        "Noise of quantization" in page
        and "its weights of 2 bits with a scale for each output channel" in page
    )
    assert '<li class="good">helps: layers: {b: int8}' in page
    assert explain_layer(compiled.report, "b").count("of the noise of output") == 1
    assert "low: output output" in plan_text(compiled.report)


def test_the_same_is_found_twice(compile_on: Compile) -> None:
    x = drawn(64, 16)
    x[3] *= 300
    first, second = (compile_on(Net(), x).files["report.json"] for _ in range(2))
    assert first == second


def test_activations_of_16_bits_are_examined_too(compile_on: Compile) -> None:
    compiled = compile_on(Net(), drawn(64, 16), layers=INT2, activations="int16", min_snr="25 dB")
    (source,) = noise_of(compiled).sources
    assert source.module == "b" and "weights of 2 bits" in source.reasons[0]
    assert not any(change.change == "activations: int16" for change in noise_of(compiled).changes)


@pytest.fixture
def examined(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Propagation]]:
    """The propagations that are set up."""
    found: list[Propagation] = []
    prepare = Propagation.__init__

    def record(self: Propagation, *arguments: object) -> None:
        found.append(self)
        prepare(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Propagation, "__init__", record)
    yield found


def test_bits_that_a_pass_assigned_are_examined_once(project: Path, examined: list[Propagation]) -> None:
    passes = (
        "passes=[{pass: clean}, {pass: fuse}, {pass: assign_bits, budget: {weights: 60 %}}, {pass: quantize}]"
    )
    report = compile_model(project / "net.yaml", overrides=[passes]).report
    assert len(examined) == 1 and report.noise is not None
    low = compile_model(
        project / "net.yaml",
        overrides=[passes.replace("budget: {weights: 60 %}", "budget: {weights: 25 %}, weights: [2]")],
    ).report.noise
    assert low is not None and low.is_low
    assert any("int8" in change.change and change.helps for change in low.changes)


@pytest.mark.parametrize(
    ("passes", "is_measured"),
    [
        ("[{pass: clean}, {pass: fuse}]", False),
        ("[{pass: clean}, {pass: fuse}, {pass: quantize, min_snr: null, layers: {head: int2}}]", True),
        (
            "[{pass: clean}, {pass: fuse}, {pass: quantize, layers: {head: int2}}, "
            "{pass: finetune, epochs: 1, loss: mse}]",
            False,
        ),
    ],
)
def test_nothing_is_examined_without_integers_or_threshold_or_after_training(
    passes: str, is_measured: bool, project: Path
) -> None:
    overrides = [f"passes={passes}", "data.calibration.labels=y"]
    if "mse" in passes:
        arrays = dict(np.load(project / "data.npz"))
        np.savez(project / "data.npz", x=arrays["x"], y=np.ones((24, 5), np.float32))
        overrides += ["data.evaluation.labels=null", "data.evaluation.metric=snr"]
    noise = compile_model(project / "net.yaml", overrides=overrides).report.noise
    assert (noise is not None) is is_measured
    assert noise is None or (noise.outputs[0].least_db is None and not noise.is_low and not noise.sources)


def test_weights_alone_without_calibration_data_are_examined_on_those_for_evaluation(project: Path) -> None:
    overrides = [
        "passes=[{pass: weight_only, weights: int2}]",
        "data.calibration=null",
        "outputs={torch: {form: eager}}",
    ]
    noise = compile_model(project / "net.yaml", overrides=overrides).report.noise
    assert noise is not None and noise.samples == 16 and noise.outputs[0].snr_db is not None


def test_an_outlier_note_recommends_only_what_was_found_to_help(compile_on: Compile) -> None:
    x = drawn(256, 16) * 0.1
    x[5, 3] = 2e3
    model = Net()
    with torch.no_grad():
        model.a.weight[:, 3] /= 1e4
    notes = compile_on(model, x, min_snr="{output: 1 dB, layer: 1 dB}").report.notes
    assert any(note.startswith("%x: the largest value seen") and "observer" not in note for note in notes)
    helping = [note for note in notes if note.startswith("outliers in the calibration data: `observer: ")]
    assert helping and all("was tried and takes output output from" in note for note in helping)


def test_the_layer_of_most_work_that_stays_float_is_told_with_its_shares(compile_on: Compile) -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.gru, self.head = nn.GRU(8, 16, batch_first=True), nn.Linear(16, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.gru(x)[0][:, -1])

    compiled = compile_on(Recurrent(), drawn(16, 6, 8), layers="{gru: float32}")
    (layer,) = compiled.report.float_layers
    assert (
        layer.op == "gru" and layer.macs_percent > 90 and layer.reason == "the spec keeps this layer in float"
    )
    assert layer.time_percent is not None and layer.time_percent > 50 and layer.flash_percent is not None
    assert noise_lines(compiled.report)[0].startswith("float: gru (gru) stays in float, 99 % of the MACs, ")


class Normalised(nn.Module):
    """A padded convolution after means and deviations of channels, called twice."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv1d(2, 2, 3, padding=1)
        self.register_buffer("mean", torch.tensor([3.0, 7.0]).view(1, 2, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(torch.relu(self.conv(x - self.mean)))


@pytest.mark.parametrize(("rounding", "rule"), [("nearest", "fold_input"), ("{kind: adaround}", "adaround")])
def test_a_layer_on_integers_is_not_said_to_stay_float_where_another_rule_declines(
    rounding: str, rule: str, compile_on: Compile
) -> None:
    report = compile_on(Normalised(), drawn(16, 2, 8), rounding=rounding).report
    decided = [d for section in report.passes for d in section.decisions if d.rule == rule]
    assert decided and not decided[0].applied
    assert report.float_layers == () and all(x.type.startswith("i8") for x in report.layers if x.op == "conv")


class Half(nn.Module):
    """Attention with a filled mask, in half precision."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.qkv, self.head, self.dtype = nn.Linear(8, 24), nn.Linear(8, 4), dtype
        self.to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x.to(self.dtype)).chunk(3, -1)
        causal = torch.ones(6, 6, dtype=torch.bool).tril()
        scores = (q @ k.transpose(1, 2) / 3).masked_fill(~causal, float("-inf"))
        return self.head(scores.softmax(-1) @ v).float()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_network_in_half_precision_computes_on_integers_in_c(
    compile_on: Compile, dtype: torch.dtype
) -> None:
    report = compile_on(Half(dtype), drawn(64, 6, 8)).report
    assert report.float_layers == () and not any("nothing was quantized" in note for note in report.notes)
    assert report.noise is not None and not report.noise.is_low
    assert {layer.op for layer in report.layers} >= {"linear", "attention"}
    assert all(layer.type.startswith("i") for layer in report.layers if layer.op in ("linear", "attention"))
