"""Mixed precision from spec to report, on the trained networks."""

import os
from pathlib import Path

import pytest

from fxpress.compiler import Compiled, compile_model
from fxpress.compiler.compare import explain_layer

ROOT = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("FXPRESS_SHARED", ROOT.parent / "shared"))

pytestmark = pytest.mark.skipif(
    not (SHARED / "models" / "ic01_resnet8.safetensors").exists(),
    reason="the trained networks are not in ../shared",
)


@pytest.fixture(scope="module")
def compiled() -> Compiled:
    """ResNet-8 in half the bytes, as a torch module."""
    overrides = ("passes[2].samples=16", "passes[3].samples=32", "target.name=host")
    outputs = ("outputs.c=null", "outputs.torch.form=qdq")
    return compile_model(ROOT / "examples" / "mixed_precision" / "ic.yaml", overrides=(*overrides, *outputs))


def test_half_the_bytes_are_bits_of_several_widths(compiled: Compiled) -> None:
    weights = {v.name: v.type for v in compiled.graph.constants if v.type.rank > 1}
    assert sum(t.storage_bytes for t in weights.values()) <= sum(t.numel for t in weights.values()) / 2
    assert len({t.quantization.bits for t in weights.values() if t.quantization}) > 1


def test_the_compiled_network_is_far_from_guessing(compiled: Compiled) -> None:
    found = {m.stage: m.value for m in compiled.report.measurements if m.metric == "top1"}
    assert found["integer"] > 60  # of ten classes, without training or learned rounding


def test_explain_shows_the_bits_of_a_layer_and_what_others_would_cost(compiled: Compiled) -> None:
    text = explain_layer(compiled.report, "block3.conv2")
    assert "assign_bits, assign_bits: done, 4 bits, predicted loss" in text
    table = text[text.index("assign_bits, alternatives") :].splitlines()
    assert table[1].split()[:4] == ["weight_bits", "activation_bits", "chosen", "loss"]
    rows = [line.split() for line in table[2:] if line.split()]
    assert [(row[0], "yes" in row) for row in rows] == [("2", False), ("4", True), ("8", False)]


def test_the_page_shows_the_picture_of_the_mixes_in_its_pass(compiled: Compiled) -> None:
    page = compiled.files["report.html"].decode()
    decisions = page.index("<h2>Decisions</h2>")
    assert page.index("<b>assign_bits</b>", decisions) < page.index('<svg class="drawing"', decisions)
    assert page.index('<svg class="drawing"', decisions) < page.index("<b>quantize</b>", decisions)
    assert "no mix beats these" in page and "src=" not in page and "http" not in page


def test_the_files_of_the_decision_are_written(compiled: Compiled) -> None:
    names = {"passes/2.bits.yaml", "passes/2.sensitivity.json", "passes/2.pareto.svg", "passes/2.pareto.json"}
    assert names <= compiled.files.keys()
