"""A small project as a user has it: a model file, weights, data and a spec."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from fxpress.compiler import Compiled, compile_model
from fxpress.compiler.execution import execute

OutputsOn = Callable[..., list[Tensor]]

MODEL = """
from torch import nn


class Net(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.pool = nn.MaxPool2d(2)
        self.head = nn.Linear(width * 16, 5)

    def forward(self, image):
        return self.head(self.pool(self.stem(image)).flatten(1))
"""

SPEC = """\
fxpress: 1
model:
  source: net.py:Net
  weights: net.safetensors
  inputs: {image: {shape: [1, 3, 8, 8]}}
data:
  calibration: {file: data.npz, inputs: {image: x}, samples: 16}
  evaluation: {file: data.npz, inputs: {image: x}, labels: y, metric: top1}
target: {name: cortex-m4f}
passes:
  - pass: clean
  - pass: fuse
  - pass: quantize
outputs:
  c: {name: net}
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with net.py, net.safetensors, data.npz and net.yaml."""
    return write_project(tmp_path)


@pytest.fixture(scope="session")
def compiled_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with its output directory `out`, C and torch module; for reading only."""
    folder = write_project(tmp_path_factory.mktemp("compiled"))
    compile_model(folder / "net.yaml", overrides=["outputs.torch={form: qdq}"]).write(folder / "out")
    return folder


def write_project(folder: Path) -> Path:
    """Write net.py, net.safetensors, data.npz and net.yaml; the folder."""
    (folder / "net.py").write_text(MODEL)
    (folder / "net.yaml").write_text(SPEC)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4))
    head = nn.Linear(64, 5)
    state = {f"stem.{key}": t for key, t in model.state_dict().items()}
    state |= {f"head.{key}": t for key, t in head.state_dict().items()}
    save_file({k: t.contiguous() for k, t in state.items()}, folder / "net.safetensors")
    generator = np.random.default_rng(0)
    images = generator.normal(size=(24, 3, 8, 8)).astype(np.float32)
    np.savez(folder / "data.npz", x=images, y=generator.integers(0, 5, 24))
    return folder


@pytest.fixture
def outputs_on(tmp_path: Path) -> OutputsOn:
    """First outputs of a compiled network on its evaluation samples, or else those for calibration, place by place."""

    def run(compiled: Compiled, *places: str, count: int | None = None) -> list[Tensor]:
        compiled.write(tmp_path / "out")
        samples = compiled.session.evaluation or compiled.session.calibration
        assert samples is not None
        return [execute(tmp_path / "out", samples.first(count), on=on).outputs[0] for on in places]

    return run
