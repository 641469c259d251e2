"""`fxpress compile` in several processes: they share the work on samples, and give the bytes of one alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

NET = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.norm = nn.Embedding(32, 32), nn.RMSNorm(32)
        self.up, self.down, self.head = nn.Linear(32, 64), nn.Linear(64, 32), nn.Linear(32, 32)

    def forward(self, tokens):
        x = self.table(tokens)
        x = x + self.down(torch.relu(self.up(self.norm(x))))
        return self.head(x)
"""
SPEC = """
fxpress: 1
model: {source: "net.py:Net", inputs: {tokens: {shape: [1, 8], dtype: int64}}}
data: {calibration: {file: texts.npz, inputs: {tokens: tokens}}}
passes:
  - pass: weight_only
    budget: {weights: 50 %}
    rounding: {kind: awq, then: gptq}
outputs: {torch: {}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a language model, compiled in one process to `out1`."""
    path = tmp_path_factory.mktemp("processes")
    (path / "net.py").write_text(NET)
    (path / "spec.yaml").write_text(SPEC)
    np.savez(path / "texts.npz", tokens=np.random.default_rng(0).integers(0, 32, (24, 8)))
    compile_with(path, [sys.executable], "out1")
    return path


def compile_with(folder: Path, launcher: list[str], output: str) -> None:
    command = [*launcher, "-m", "fxpress.compiler", "compile", "spec.yaml", "-o", output]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("processes", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_any_number_of_processes_gives_the_same_bytes(folder: Path, processes: int) -> None:
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    compile_with(folder, [sys.executable, "-m", *torchrun], f"out{processes}")
    files = sorted(
        path.relative_to(folder / "out1") for path in (folder / "out1").rglob("*") if path.is_file()
    )
    assert files
    for file in files:
        assert (folder / f"out{processes}" / file).read_bytes() == (folder / "out1" / file).read_bytes(), file
