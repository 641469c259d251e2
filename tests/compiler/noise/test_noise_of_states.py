"""Errors that add up in a state: measurements along sequences, and notes on them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fxpress.compiler import UserError, compile_model
from fxpress.compiler.report.noise_text import noise_lines

NET = """
from torch import nn


class Net(nn.Module):
    def forward(self, x, start, total):
        total = total + start + 0.01 * x
        return {"y": x * 2, "sum": total}
"""
SPEC = """
fxpress: 1
model:
  source: net.py:Net
  inputs: {x: {shape: [1, 4]}, start: {shape: [1, 4]}, total: {shape: [1, 4]}}
  state: {total: sum}
data: {calibration: {file: x.npz}}
target: {name: cortex-m4f}
passes: [{pass: clean}, {pass: fuse}, {pass: quantize, observer: minmax}]
outputs: {c: {name: net}}
"""


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    (tmp_path / "net.py").write_text(NET)
    samples = np.random.default_rng(0).uniform(0.2, 0.6, (120, 4)).astype(np.float32)
    starts = np.zeros((120, 4), np.float32)
    starts[:2] = [[5.0], [-5.0]]  # the step of the sum is 0.04, what is added later at most 0.006
    np.savez(tmp_path / "x.npz", x=samples, start=starts)
    (tmp_path / "net.yaml").write_text(SPEC)
    return tmp_path / "net.yaml"


def test_a_sum_whose_terms_are_below_a_step_is_low_along_the_sequence(spec: Path) -> None:
    report = compile_model(spec).report
    noise = report.noise
    assert noise is not None and not any(output.is_low for output in noise.outputs)
    rows = {row.name: row for row in noise.sequences}
    assert rows["sum"].is_low and not rows["y"].is_low and noise.is_low
    helping = [change for change in noise.changes if change.is_enough]
    assert helping and helping[0].settings == {"activations": "int16"}
    text = "\n".join(noise_lines(report))
    assert "low: output sum has " in text and "along sequences, where states pass their error" in text
    repaired = compile_model(spec, overrides=["passes[2].activations=int16"]).report.noise
    assert repaired is not None and not repaired.is_low and len(repaired.sequences) == 2


def test_it_is_an_error_where_the_spec_makes_it_one(spec: Path) -> None:
    with pytest.raises(UserError, match=r"output sum has .* along sequences.*int16.*P604"):
        compile_model(spec, overrides=["passes[2].on_low_snr=error"])


def test_a_model_without_states_has_no_sequences(project: Path) -> None:
    noise = compile_model(project / "net.yaml").report.noise
    assert noise is not None and noise.sequences == ()
