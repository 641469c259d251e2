"""Networks whose outputs are moved after the last node: every view of a report has a row for the movement."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fxpress.compiler import Compiled, compile_model
from fxpress.compiler.compare import diff_reports, explain_layer
from fxpress.compiler.execution import execute
from fxpress.compiler.plan import plan_text

MODEL = """
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(3, 5, 3)
        self.image = nn.Conv2d(3, 4, 3)

    def forward(self, x, image):
        y, z = self.conv(x), self.image(image)
        return y, z, z.movedim(1, -1), x, y[:, 1:3]
"""
SPEC = """
fxpress: 1
model:
  source: net.py:Net
  inputs: {x: {shape: [1, 3, 9]}, image: {shape: [1, 3, 5, 4]}}
data:
  calibration: {file: data.npz}
target: {name: cortex-m4f}
passes: [{pass: clean}, {pass: fuse}, {pass: quantize}]
outputs:
  c: {name: net, layouts: {output_1: nchw}}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with net.py, data.npz and net.yaml."""
    generator = np.random.default_rng(0)
    (tmp_path / "net.py").write_text(MODEL)
    (tmp_path / "net.yaml").write_text(SPEC)
    arrays = {"x": (8, 3, 9), "image": (8, 3, 5, 4)}
    np.savez(tmp_path / "data.npz", **{n: generator.normal(size=s).astype("f4") for n, s in arrays.items()})
    return tmp_path


def compiled_in(folder: Path, *overrides: str) -> Compiled:
    """The network as compiled."""
    torch.manual_seed(0)
    return compile_model(folder / "net.yaml", overrides=overrides)


def test_every_view_of_a_report_shows_the_movements(folder: Path) -> None:
    compiled = compiled_in(folder)
    report = compiled.report
    moved = [(layer.op, layer.module) for layer in report.layers if layer.op in ("layout", "output")]
    assert ("layout", "conv") in moved
    assert ("layout", "image") in moved
    rows = [layer for layer in report.layers if layer.op in ("layout", "output")]
    assert all(row.time and row.kernel and not row.macs and not row.constant_bytes for row in rows)
    total = next(r.used for r in report.resources if r.name == "instructions")
    assert sum(layer.instructions or 0 for layer in report.layers) == total
    assert "convert_layout" in plan_text(report)
    assert "conv: layout -> " in explain_layer(report, "conv")
    page = compiled.files["report.html"].decode()
    assert page.count("convert_layout") == sum(row.kernel == "convert_layout" for row in rows)
    plain = compiled_in(folder, "outputs.c.layouts={}").report
    assert "convert_layout" in diff_reports(plain, report)
    assert not diff_reports(report, report)


@pytest.mark.parametrize("buffers", ["caller", "arena"])
def test_all_forms_give_equal_outputs(buffers: str, folder: Path) -> None:
    compiled = compiled_in(folder, f"outputs.c.buffers={buffers}")
    steps = range(len(compiled.report.layers))
    assert all(block.first in steps and block.last in steps for block in compiled.report.arena)
    samples = compiled.session.calibration
    assert samples is not None
    compiled.write(folder / "out")
    first = samples.first(3)
    integers, host, core = (execute(folder / "out", first, on=on) for on in ("integer", "host", "cortex-m4f"))
    for expected, on_host, on_core in zip(integers.outputs, host.outputs, core.outputs, strict=True):
        assert torch.equal(expected, on_host)
        assert torch.equal(expected, on_core)
