"""A network whose layers have weights of different bits, from its spec to the simulated core."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from torch import Tensor

from fxpress.compiler import compile_model

NET = """
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU())
        self.wide = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU())
        self.deep = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.ReLU())
        self.point = nn.Sequential(nn.Conv2d(16, 24, 1), nn.ReLU())
        self.pool = nn.MaxPool2d(4)
        self.middle = nn.Sequential(nn.Linear(96, 16), nn.ReLU())
        self.head = nn.Linear(16, 5)

    def forward(self, image):
        x = self.pool(self.point(self.deep(self.wide(self.stem(image)))))
        return self.head(self.middle(x.flatten(1)))
"""
LAYERS = "{stem: int8, wide: int4, deep: int4, point: int2, middle: float32, head: int4}"
BITS = {"stem.0": 8, "wide.0": 4, "deep.0": 4, "point.0": 2, "middle.0": None, "head": 4}

pytestmark = pytest.mark.skipif(
    shutil.which("arm-none-eabi-gcc") is None, reason="arm-none-eabi-gcc is not installed"
)


def test_layers_of_eight_four_two_bits_and_float_run_as_the_integer_graph_says(
    project: Path, outputs_on: Callable[..., list[Tensor]]
) -> None:
    (project / "net.py").write_text(NET)
    overrides = ("model.weights=null", f"passes[2].layers={LAYERS}")
    compiled = compile_model(project / "net.yaml", overrides=overrides)
    weights = {
        node.source.module: value.type.quantization
        for node in compiled.graph.nodes
        for value in node.operands
        if compiled.graph.is_constant(value) and value.type.rank > 1
    }
    assert {module: q and q.bits for module, q in weights.items()} == BITS
    here, simulated, integer = outputs_on(compiled, "host", "cortex-m4f", "integer", count=8)
    grid = compiled.graph.nodes[-1].operands[0].type.quantization
    assert grid is not None
    step = grid.scale[0]
    assert len(integer.unique()) > 10
    # Sums of the float layer may be rounded otherwise, which the layer behind it shows as one step.
    for found in (here, simulated):
        assert float((found - integer).abs().max()) < 1.5 * step
