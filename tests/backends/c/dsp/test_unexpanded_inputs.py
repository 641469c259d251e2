"""Linear layers and 1x1 convolutions without working memory, where RAM is short: every byte, at any address."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import pytest

from fxpress.backends.c import SimulatedNetwork, emit
from fxpress.ir import parse, run_integer
from fxpress.specs import COutput, load_target

pytestmark = [
    pytest.mark.skipif(
        shutil.which("arm-none-eabi-gcc") is None, reason="arm-none-eabi-gcc is not installed"
    ),
    pytest.mark.skipif(importlib.util.find_spec("unicorn") is None, reason="unicorn is not installed"),
]

LAYERS = {
    "one row": ("1x643", "22x643", "1x22", "linear"),
    "rows": ("7x130", "18x130", "7x18", "linear{clamp=(0.0, inf)}"),
    "pixels": ("1x66x5x5", "17x66x1x1", "1x17x5x5", "conv"),
    "one window": ("1x6x5x5", "33x6x5x5", "1x33x1x1", "conv"),
}
BITS = {"i8": (8, 4, 2), "i16": (8, 16)}


@pytest.mark.parametrize(("element", "bits"), [(e, bits) for e, all in BITS.items() for bits in all])
@pytest.mark.parametrize("name", LAYERS)
def test_inputs_are_read_where_they_are_if_ram_is_short(
    name: str, element: str, bits: int, fill, draw, tmp_path: Path
) -> None:
    x, w, y, op = LAYERS[name]
    scale = "<scale=0.0005, zero=0>" if element == "i16" else "<scale=0.05, zero=-3>"
    weight = f"i{max(bits, 8)}[{w}]<bits={bits}, scale=0.0001, zero=0>"
    graph = parse(
        f"""graph(%x: {element}[{x}]{scale}) {{
          const %w: {weight}
          %y: {element}[{y}]<scale=0.004, zero=0> = {op}(%x, %w)
          return y: %y
        }}""",
        fill=fill,
    )
    artifact = emit(
        graph, COutput(name="net", self_test=0), load_target("cortex-m4f").model_copy(update={"ram": 4})
    )
    assert artifact.program.steps[0].offer.kernel == "linear_dsp"
    assert artifact.plan.arena_bytes <= 4 and artifact.program.steps[0].offer.scratch_bytes == 0
    network = SimulatedNetwork.of(
        artifact, tmp_path, load_target("cortex-m4f"), alignment=2, strict_alignment=True
    )
    for seed in range(2):
        inputs = [draw(v, seed) for v in graph.inputs]
        assert network.run(inputs)[0].equal(run_integer(graph, inputs)[0])
