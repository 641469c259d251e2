"""`fxpress explain DIR LAYER`: figures and decisions of a layer, call by call."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sample_project import write_project

from fxpress.compiler import compile_model, main
from fxpress.compiler.compare import explain_layer

TWICE = """
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.norm, self.last = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)

    def forward(self, x):
        return self.last(self.fc(self.norm(self.fc(x)).relu()).relu())
"""


@pytest.fixture
def explained(tmp_path: Path) -> str:
    """Explanation of a layer that is called twice, with a batch norm after the first call."""
    (tmp_path / "net.py").write_text(TWICE)
    np.savez(tmp_path / "data.npz", x=np.random.default_rng(0).normal(size=(32, 4)).astype("f4"))
    (tmp_path / "net.yaml").write_text(
        "fxpress: 1\nextends: preset/int8-torch\nmodel: {source: net.py:Net, inputs: {x: {shape: [1, 4]}}}\n"
        "data: {calibration: {file: data.npz}}\noutputs: {torch: {}}\n"
    )
    return explain_layer(compile_model(tmp_path / "net.yaml").report, "fc")


def test_decisions_stand_under_the_call_that_they_are_about(explained: str) -> None:
    first, second, earlier = (part.splitlines() for part in explained.split("\nfc"))
    for call, result in ((first, "%relu"), (second, "%relu_1")):
        assert f"  result: {result}" in call
        assert [line for line in call if line.startswith("  quantize, quantize")] == [
            "  quantize, quantize: done, computes on integers"
        ]
        assert not any("fuse" in line for line in call)
    assert earlier[0] == ", before these nodes were created"
    assert any("fold_batchnorm_before, %linear" in line for line in earlier[1:])
    assert all(line.startswith("  ") and ", %" in line for line in earlier[1:])


def test_a_run_of_layers_by_rows_has_the_reason_for_its_end(tmp_path: Path) -> None:
    spec = write_project(tmp_path) / "net.yaml"
    report = compile_model(spec, overrides=["target={name: cortex-m4f, ram: 200 B}"]).report
    (first, last), head = [layer for layer in report.layers if layer.rows], report.layers[-1]
    assert "  by rows: steps 0 to 1" in explain_layer(report, first.module).splitlines()
    (shown,) = [line for line in explain_layer(report, last.module).splitlines() if "by rows" in line]
    assert shown == "  by rows: steps 0 to 1; ends here: permute is a view of its whole operand"
    assert "by rows" not in explain_layer(report, head.module)


def test_settings_are_shown_as_yaml(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "net.yaml"
    path.write_text(
        "fxpress: 1\nmodel: {source: net.py:Net, inputs: {x: {shape: [1, 4]}}}\n"
        "target: {name: cortex-m4, ram: 64 KiB, features: [dsp]}\n"
        "passes:\n  - {pass: prune, budget: {macs: 60 %}, granularity: [channels, heads], compensation: []}\n"
        "outputs: {torch: {}}\n"
    )
    shown = {}
    for setting in ("passes[0]", "target"):
        assert main(["explain", str(path), setting]) == 0
        lines = capsys.readouterr().out.splitlines()[1:]
        shown |= {line.split()[0]: " ".join(line.split()[1:]) for line in lines}
    for setting, value in (
        ("passes[0].budget.macs", "60 %"),
        ("passes[0].budget.ram", "null"),
        ("passes[0].budget.target", "false"),
        ("passes[0].granularity", "[channels, heads]"),
        ("passes[0].compensation", "[]"),
        ("target.ram", "65536 B"),
        ("target.features", "[dsp]"),
    ):
        assert shown[setting].startswith(f"{value} "), (setting, shown[setting])
