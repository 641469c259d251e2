"""Spoken digits from the body of the keyword network: the training gives the same bytes, and its accuracy stays."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fxpress.compiler import compile_model
from fxpress.compiler.data import correct_answers, run_samples
from fxpress.ir import run

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "examples" / "pruning"
SHARED = Path(os.environ.get("FXPRESS_SHARED", ROOT.parent / "shared"))


def trained(output: Path) -> Path:
    command = [sys.executable, FOLDER / "spoken_digits.py", "--epochs", "1", "--output", output]
    subprocess.run(command, check=True, capture_output=True)
    return output


@pytest.mark.slow
@pytest.mark.skipif(
    not (SHARED / "models" / "MODELS.md").is_file(),
    reason="the samples behind the documented figures are not in ../shared",
)
def test_a_pruned_network_learns_its_digits_again(tmp_path: Path) -> None:
    weights = trained(tmp_path / "once.safetensors")
    assert weights.read_bytes() == trained(tmp_path / "twice.safetensors").read_bytes()
    overrides = [f"model.weights={weights}", "data.calibration.samples=1280", "passes[2].epochs=3"]
    overrides += ["passes[1].budget={macs: 75 %}", "passes[1].compensation=[]"]
    compiled = compile_model(FOLDER / "spoken_digits.yaml", overrides=overrides)
    graphs = {"whole": compiled.session.captured, **{stage.name: stage.graph for stage in compiled.stages}}
    test = compiled.session.evaluation
    assert test is not None and test.labels is not None
    right = {
        name: correct_answers(run_samples(graphs[name], test, interpreter=run)[0], test.labels)
        for name in ("whole", "prune", "finetune")
    }
    assert right["prune"] < 0.8 * right["whole"]
    assert right["finetune"] > 0.95 * right["whole"] > 0.85 * len(test)
