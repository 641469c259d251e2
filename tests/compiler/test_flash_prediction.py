"""The flash that is predicted is the flash that is linked: at most 2 % less and 10 % more."""

import os
import re
import shutil
from pathlib import Path

import pytest

from fxpress.backends.c import emit
from fxpress.backends.c.tools.elf import read_elf
from fxpress.backends.c.tools.toolchain import build_image, target_compiler
from fxpress.compiler import Compiled, compile_model
from fxpress.specs import load_target

ROOT = Path(__file__).parents[2]
SHARED = Path(os.environ.get("FXPRESS_SHARED", ROOT.parent / "shared"))
FEW = "data.calibration.samples=4"
PRUNED = (
    "passes=[{pass: clean}, {pass: prune, budget: {macs: 40 %}, multiple: 4}, {pass: fuse}, {pass: quantize}, "
    "{pass: remove_dead_channels}]"
)

MIXED = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 24, 3, padding=1)
        self.register_buffer("table", torch.rand(8, 24, 64))
        self.gru = nn.GRU(24, 32, batch_first=True)
        self.attend = nn.MultiheadAttention(32, 4, batch_first=True)
        self.norm = nn.LayerNorm(32)
        self.head = nn.Linear(32, 5)

    def forward(self, image):
        x = torch.relu(self.conv(image)).reshape(1, 24, 64) * self.table
        x = torch.sin(x.sum(0, keepdim=True)).transpose(1, 2)
        x, _ = self.gru(x)
        x = self.norm(x + self.attend(x, x, x, need_weights=False)[0])
        return self.head(nn.functional.gelu(x).mean(1))
"""
CORES = (
    "cortex-m0plus", "cortex-m3", "cortex-m4", "cortex-m4f", "cortex-m7", "cortex-m33", "cortex-m55", "riscv32"
)  # fmt: skip
BOUNDS = (0.98, 1.10)
FORMS = {
    "int8": ["passes=[{pass: clean}, {pass: fuse}, {pass: quantize}]"],
    "int16": ["passes=[{pass: clean}, {pass: fuse}, {pass: quantize, activations: int16}]"],
    "float": ["passes=[{pass: clean}, {pass: fuse}]"],
}

pytestmark = pytest.mark.skipif(
    shutil.which("arm-none-eabi-gcc") is None, reason="arm-none-eabi-gcc is not installed"
)
needs_shared = pytest.mark.skipif(
    not (SHARED / "models" / "MODELS.md").is_file(),
    reason="the samples behind the documented figures are not in ../shared",
)


def ratio(compiled: Compiled, folder: Path) -> float:
    """Predicted flash over linked flash."""
    assert compiled.c is not None
    compiler, entry = target_compiler(load_target("cortex-m4f")), f"{compiled.c.name}_run"
    image = build_image(compiler, compiled.c.write(folder), folder / "net.elf", keep=[entry])
    return compiled.c.prediction.flash_bytes / read_elf(image).footprint.flash


def test_a_small_network(project: Path, tmp_path: Path) -> None:
    source = project / "net.py"
    source.write_text(source.read_text().replace("width=4", "width=16"))
    overrides = ["model.weights=null", "target.flash=1 MiB"]
    assert ratio(compile_model(project / "net.yaml", overrides=overrides), tmp_path) == pytest.approx(
        1, abs=0.1
    )


def ratios(compiled: Compiled, folder: Path) -> dict[str, float]:
    """Predicted flash over linked flash, for each core whose compiler is installed."""
    output = compiled.session.spec.outputs.c
    assert output is not None
    found = {}
    for core in CORES:
        target = load_target(core).model_copy(update={"ram": None, "flash": None, "stack": None})
        if not any(map(shutil.which, target.toolchain.commands)):
            continue
        artifact = emit(compiled.graph, output, target)
        sources = artifact.write(folder)
        keep = [f"{artifact.name}_run"]
        image = build_image(target_compiler(target), sources, folder / "net.elf", keep=keep)
        found[core] = round(artifact.prediction.flash_bytes / read_elf(image).footprint.flash, 3)
    return found


@pytest.mark.parametrize(
    "form", [pytest.param(form, marks=pytest.mark.slow if form == "int16" else ()) for form in FORMS]
)
def test_layers_of_every_kind_on_every_core(form: str, project: Path, tmp_path: Path) -> None:
    (project / "net.py").write_text(MIXED)
    compiled = compile_model(project / "net.yaml", overrides=["model.weights=null", *FORMS[form]])
    found = ratios(compiled, tmp_path)
    least, most = BOUNDS
    assert [core for core, ratio in found.items() if not least <= ratio <= most] == [], found


@needs_shared
@pytest.mark.parametrize(
    ("name", "most"),
    [("ic", 1.05), ("kws", 1.05), pytest.param("vww", 1.10, marks=pytest.mark.slow), ("ad", 1.05)],
)
def test_trained_networks(name: str, most: float, tmp_path: Path) -> None:
    compiled = compile_model(ROOT / "examples" / "mlperf_tiny" / f"{name}.yaml", overrides=[FEW])
    assert 0.98 <= ratio(compiled, tmp_path) <= most  # a network predicted too small would not fit


@needs_shared
@pytest.mark.parametrize("name", ["ic", pytest.param("kws", marks=pytest.mark.slow)])
def test_pruned_networks(name: str, tmp_path: Path) -> None:
    compiled = compile_model(ROOT / "examples" / "mlperf_tiny" / f"{name}.yaml", overrides=[FEW, PRUNED])
    assert ratio(compiled, tmp_path) == pytest.approx(1, abs=0.1)


@needs_shared
@pytest.mark.parametrize("name", [pytest.param("ic", marks=pytest.mark.slow), "kws"])
def test_trained_networks_with_coded_weights(name: str, tmp_path: Path) -> None:
    overrides = [FEW, "passes[2].codebook_bits=4", "outputs.c.weights=huffman"]
    compiled = compile_model(ROOT / "examples" / "mlperf_tiny" / f"{name}.yaml", overrides=overrides)
    assert ratio(compiled, tmp_path) == pytest.approx(1, abs=0.05)
    (flash,) = (r for r in compiled.report.resources if r.name == "flash")
    assert re.search(r"exactly \([\d,]+ B of weights as [\d,]+ B of codes\), code estimated", flash.basis)
