"""A small project as a user has it: a model file, weights, data and a spec."""

from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn

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
