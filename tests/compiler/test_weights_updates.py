"""Weights in a binary file: compiled folders that run with it, and updates of the weights for the same code."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from fxpress.compiler import Compiled, compile_model, load_compiled

NET = """
from torch import nn


def net():
    return nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 3))
"""
TRAINED = [
    {"pass": "clean"},
    {"pass": "fuse"},
    {"pass": "quantize"},
    {"pass": "finetune", "epochs": 3, "batch": 8, "learn_steps": False, "learning_rate": 0.01},
]


def compiled(folder: Path, *, labels_seed: int, target: str = "cortex-m4", **finetune: object) -> Compiled:
    folder.mkdir(exist_ok=True)
    (folder / "net.py").write_text(NET)
    x = np.random.default_rng(0).normal(size=(64, 6)).astype(np.float32)
    y = np.random.default_rng(labels_seed).integers(0, 3, 64)
    np.savez(folder / "data.npz", x=x, y=y)
    torch.manual_seed(0)
    spec = {
        "fxpress": 1,
        "model": {"source": "net.py:net", "inputs": {"x": {"shape": [1, 6]}}},
        "data": {"calibration": {"file": "data.npz", "inputs": {"x": "x"}, "labels": "y"}},
        "target": {"name": target},
        "passes": [*TRAINED[:-1], TRAINED[-1] | finetune],
        "outputs": {"c": {"name": "net", "weights_file": "binary"}},
    }
    (folder / "net.yaml").write_text(json.dumps(spec))
    return compile_model(folder / "net.yaml")


def test_training_with_fixed_steps_gives_weights_for_the_same_code(tmp_path: Path) -> None:
    first, second = (compiled(tmp_path / str(seed), labels_seed=seed).c for seed in (1, 2))
    assert first is not None and second is not None
    assert first.macros["NET_WEIGHTS_DIGEST"] == second.macros["NET_WEIGHTS_DIGEST"]
    assert first.files["net_weights.bin"] != second.files["net_weights.bin"]
    steps = compiled(tmp_path / "3", labels_seed=2, learn_steps=True).c
    assert steps is not None
    assert steps.macros["NET_WEIGHTS_DIGEST"] != first.macros["NET_WEIGHTS_DIGEST"]


@pytest.mark.parametrize("target", ["host", "cortex-m4", "cortex-m0plus", "riscv32"])
def test_a_compiled_folder_runs_with_its_file(tmp_path: Path, target: str) -> None:
    made = compiled(tmp_path / "net", labels_seed=1, target=target)
    made.write(tmp_path / "out")
    assert made.session.calibration is not None
    samples = made.session.calibration.first(4)
    loaded = load_compiled(tmp_path / "out")
    (integer,), (found,) = (loaded.run(samples, on=place).outputs for place in ("integer", target))
    assert torch.equal(integer, found)


def test_the_report_counts_the_file_beside_the_flash(tmp_path: Path) -> None:
    made = compiled(tmp_path / "net", labels_seed=1)
    assert made.c is not None
    used = {resource.name: resource for resource in made.report.resources}
    assert used["weights file"].used == len(made.c.files["net_weights.bin"])
    assert used["flash"].used == made.c.prediction.flash_bytes
    assert "net_weights.bin" in used["weights file"].basis and used["flash"].basis == "code, estimated"
