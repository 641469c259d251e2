"""Networks that take bytes: from the spec to C on the host and on a simulated core."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from fxpress.compiler import compile_model
from fxpress.compiler.execution import execute, read_interface

MODEL = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]))
        self.register_buffer("deviation", torch.tensor([0.229, 0.224, 0.225]))
        self.conv, self.head = nn.Conv2d(3, 4, 3, stride=2), nn.Linear(4, 3)

    def forward(self, image):
        x = (image / 255 - self.mean[:, None, None]) / self.deviation[:, None, None]
        return self.head(torch.relu(self.conv(x)).mean((2, 3)))
"""
IO: dict[str, tuple[object, str, str]] = {
    "auto": ("auto", "u8", "i8"),
    "named": ({"image": "int8", "scores": "uint8"}, "i8", "u8"),
    "int16": ("int16", "i16", "i16"),
    "float": ({"scores": "float"}, "u8", "f32"),
}


@pytest.mark.parametrize("case", IO)
def test_bytes_go_in_and_results_are_those_of_the_integers(tmp_path: Path, case: str) -> None:
    io, taken, given = IO[case]
    torch.manual_seed(0)
    (tmp_path / "net.py").write_text(MODEL)
    images = np.random.default_rng(0).integers(0, 256, (6, 3, 9, 9)).astype(np.uint8)
    np.savez(tmp_path / "data.npz", image=images)
    spec = {
        "fxpress": 1,
        "model": {
            "source": "net.py:Net",
            "inputs": {"image": {"shape": [1, 3, 9, 9], "dtype": "uint8"}},
            "outputs": ["scores"],
        },
        "data": {"calibration": {"file": "data.npz"}, "evaluation": {"file": "data.npz"}},
        "passes": [{"pass": "clean"}, {"pass": "fuse"}, {"pass": "quantize"}],
        "outputs": {"c": {"name": "net", "io": io}, "torch": {}},
    }
    (tmp_path / "net.yaml").write_text(json.dumps(spec))
    made = compile_model(tmp_path / "net.yaml")
    made.write(tmp_path / "out")
    interface = read_interface(tmp_path / "out")
    assert (interface.inputs[0].c_dtype, interface.outputs[0].c_dtype) == (taken, given)
    assert interface.inputs[0].dtype == "u8" and interface.inputs[0].offset == 0.0
    assert made.session.evaluation is not None
    (exact,) = execute(tmp_path / "out", made.session.evaluation, on="integer").outputs
    for on in ("host", "cortex-m4"):
        (got,) = execute(tmp_path / "out", made.session.evaluation, on=on).outputs
        assert torch.allclose(got, exact, atol=1e-6), on


CAMERA = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]))
        self.register_buffer("deviation", torch.tensor([0.229, 0.224, 0.225]))
        self.conv, self.mask = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 2, 1)

    def forward(self, frame):
        x = ((frame[:, 1:-1] / 255 - self.mean) / self.deviation).movedim(-1, 1)
        return self.mask(torch.relu(self.conv(x))).permute(0, 2, 3, 1)
"""


@pytest.mark.parametrize("passes", [[], ["clean", "fuse", "quantize"]])
def test_a_model_of_images_channels_last_takes_and_gives_them_as_they_are(
    tmp_path: Path, passes: list[str]
) -> None:
    torch.manual_seed(0)
    (tmp_path / "net.py").write_text(CAMERA)
    frames = np.random.default_rng(0).integers(0, 256, (6, 7, 9, 3)).astype(np.uint8)
    np.savez(tmp_path / "data.npz", frame=frames)
    spec = {
        "fxpress": 1,
        "model": {
            "source": "net.py:Net",
            "inputs": {"frame": {"shape": [1, 7, 9, 3], "dtype": "uint8"}},
            "outputs": ["mask"],
        },
        "data": {"calibration": {"file": "data.npz"}, "evaluation": {"file": "data.npz"}},
        "passes": [{"pass": name} for name in passes],
        "outputs": {"c": {"name": "net"}},
    }
    (tmp_path / "net.yaml").write_text(json.dumps(spec))
    made = compile_model(tmp_path / "net.yaml")
    made.write(tmp_path / "out")
    interface = read_interface(tmp_path / "out")
    (frame,), (mask,) = interface.inputs, interface.outputs
    assert frame.to_c(torch.from_numpy(frames[0])) == frames[0].tobytes()
    assert mask.c_order == (0, 1, 2, 3)
    assert made.session.evaluation is not None
    (exact,) = execute(tmp_path / "out", made.session.evaluation, on="integer").outputs
    (got,) = execute(tmp_path / "out", made.session.evaluation, on="host").outputs
    assert torch.allclose(got, exact, atol=1e-5)
    assert not made.report.notes
