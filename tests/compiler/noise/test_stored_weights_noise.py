"""Noise of stored weights: statements of the report on outputs, and measured changes."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fxpress.compiler import Compiled, compile_model
from fxpress.compiler.cli import main


class Chain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(
            *(part for _ in range(4) for part in (nn.Linear(32, 32, bias=False), nn.ReLU()))
        )
        self.head = nn.Linear(32, 8, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.layers(x))


X = {"x": np.random.default_rng(0).normal(size=(24, 32)).astype(np.float32)}
Compile = Callable[..., Compiled]


@pytest.fixture
def compiled() -> Compile:
    def compile_with(*, data: object = X, passes: object = (), **options: object) -> Compiled:
        steps = ["clean", {"pass": "weight_only", "group_size": 32, **options}, *passes]
        inputs = {"x": torch.zeros(1, 32)}
        more = {} if data is None else {"calibration": data}
        return compile_model(Chain().eval(), inputs=inputs, passes=steps, outputs={"torch": {}}, **more)

    return compile_with


def test_wide_weights_have_a_ratio_and_no_advice(compiled: Compile) -> None:
    noise = compiled(weights="int8").report.noise
    assert noise is not None and noise.samples == 16
    (output,) = noise.outputs
    assert output.snr_db is not None and output.snr_db > 30 and not output.is_low
    assert not noise.changes


def test_narrow_weights_are_low_and_measured_changes_are_named(compiled: Compile) -> None:
    noise = compiled(weights="int2").report.noise
    assert noise is not None and noise.is_low
    changes = {change.change: change for change in noise.changes}
    assert changes.keys() == {"weights: int8", "rounding: gptq", "activations: float32"}
    assert noise.changes[0].change == "weights: int8" and noise.changes[0].is_enough
    promised = changes["weights: int8"].effects[0].snr_db_after
    reached = compiled(weights="int8").report.noise
    assert reached is not None and promised == pytest.approx(reached.outputs[0].snr_db)


def test_without_data_it_is_measured_on_what_models_are_traced_with(compiled: Compile) -> None:
    noise = compiled(data=None, weights="int2").report.noise
    assert noise is not None and noise.samples == 1 and noise.is_low
    assert {change.change for change in noise.changes} == {"weights: int8", "activations: float32"}


def test_after_training_the_trained_weights_are_measured(compiled: Compile) -> None:
    training = {"pass": "finetune", "epochs": 8, "batch": 8, "learning_rate": 2e-3}
    before, after = (compiled(weights="int2", passes=p).report.noise for p in ((), (training,)))
    assert before is not None and after is not None and not after.changes
    assert (after.outputs[0].snr_db or 0) > (before.outputs[0].snr_db or 0)


def test_the_terminal_shows_a_low_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(
        "import torch\nfrom torch import nn\n\n\nclass Net(nn.Module):\n    def __init__(self):\n"
        "        super().__init__()\n        torch.manual_seed(0)\n"
        "        self.a, self.b = nn.Linear(32, 32), nn.Linear(32, 8)\n\n"
        "    def forward(self, x):\n        return self.b(torch.relu(self.a(x)))\n"
    )
    (tmp_path / "net.yaml").write_text(
        "fxpress: 1\nmodel: {source: net.py:Net, inputs: {x: {shape: [1, 32]}}}\n"
        "passes:\n- {pass: clean}\n- {pass: weight_only, weights: int2}\noutputs: {torch: {}}\n"
    )
    assert main(["compile", "net.yaml", "-o", "out"]) == 0
    said = capsys.readouterr().out
    assert "low: output output has" in said and "helps: weights: int8: output from" in said
