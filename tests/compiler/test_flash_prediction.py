"""The flash that is predicted is the flash that is linked for a Cortex-M4, within a tenth."""

import os
import re
import shutil
from pathlib import Path

import pytest

from fxpress.backends.c.elf import read_elf
from fxpress.backends.c.toolchain import build_image, find_compiler
from fxpress.compiler import Compiled, compile_model

ROOT = Path(__file__).parents[2]
SHARED = Path(os.environ.get("FXPRESS_SHARED", ROOT.parent / "shared"))
FEW = "data.calibration.samples=4"
PRUNED = (
    "passes=[{pass: clean}, {pass: prune, budget: {macs: 40 %}, multiple: 4}, {pass: fuse}, {pass: quantize}, "
    "{pass: remove_dead_channels}]"
)

pytestmark = pytest.mark.skipif(
    shutil.which("arm-none-eabi-gcc") is None, reason="arm-none-eabi-gcc is not installed"
)
needs_shared = pytest.mark.skipif(
    not SHARED.is_dir(), reason="../shared, which holds weights and data, is absent"
)


def ratio(compiled: Compiled, folder: Path) -> float:
    """Predicted flash over linked flash."""
    assert compiled.c is not None
    compiler, entry = find_compiler("arm-none-eabi-gcc", cpu="cortex-m4f"), f"{compiled.c.name}_run"
    image = build_image(compiler, compiled.c.write(folder), folder / "net.elf", keep=[entry])
    return compiled.c.prediction.flash_bytes / read_elf(image).footprint.flash


def test_a_small_network(project: Path, tmp_path: Path) -> None:
    source = project / "net.py"
    source.write_text(source.read_text().replace("width=4", "width=16"))
    overrides = ["model.weights=null", "target.flash=1 MiB"]
    assert ratio(compile_model(project / "net.yaml", overrides=overrides), tmp_path) == pytest.approx(
        1, abs=0.1
    )


@needs_shared
@pytest.mark.parametrize("name", ["ic", "kws", "vww", "ad"])
def test_trained_networks(name: str, tmp_path: Path) -> None:
    compiled = compile_model(ROOT / "examples" / "mlperf_tiny" / f"{name}.yaml", overrides=[FEW])
    assert ratio(compiled, tmp_path) == pytest.approx(1, abs=0.05)


@needs_shared
@pytest.mark.parametrize("name", ["ic", "kws"])
def test_pruned_networks(name: str, tmp_path: Path) -> None:
    compiled = compile_model(ROOT / "examples" / "mlperf_tiny" / f"{name}.yaml", overrides=[FEW, PRUNED])
    assert ratio(compiled, tmp_path) == pytest.approx(1, abs=0.1)


@needs_shared
@pytest.mark.parametrize("name", ["ic", "kws"])
def test_trained_networks_with_coded_weights(name: str, tmp_path: Path) -> None:
    overrides = [FEW, "passes[2].codebook_bits=4", "outputs.c.weights=huffman"]
    compiled = compile_model(ROOT / "examples" / "mlperf_tiny" / f"{name}.yaml", overrides=overrides)
    assert ratio(compiled, tmp_path) == pytest.approx(1, abs=0.05)
    (flash,) = (r for r in compiled.report.resources if r.name == "flash")
    assert re.search(r"exactly \([\d,]+ B of weights as [\d,]+ B of codes\), code estimated", flash.basis)
