"""Products of two, three and four pixels with weights of 8 and 16 bits, on a simulated Cortex-M4: every byte."""

from __future__ import annotations

import importlib.util
import shutil
from math import prod
from pathlib import Path

import numpy as np
import pytest
import torch

from fxpress.backends.c import SimulatedNetwork, emit
from fxpress.backends.c.kernels.dsp.gemm import pixels_together
from fxpress.ir import Graph, Value, parse, run_integer
from fxpress.specs import COutput, load_target

pytestmark = [
    pytest.mark.skipif(
        shutil.which("arm-none-eabi-gcc") is None, reason="arm-none-eabi-gcc is not installed"
    ),
    pytest.mark.skipif(importlib.util.find_spec("unicorn") is None, reason="unicorn is not installed"),
]


def full_range(value: Value) -> torch.Tensor:
    """Weights as large as sums of 32 bits allow, and biases."""
    shape, q = value.type.shape, value.type.quantization
    assert q is not None
    largest = 2000 if q.bits == 32 else min(q.qmax, (1 << 30) // 32768 // prod(shape[1:]))
    generator = torch.Generator().manual_seed(sum(map(ord, value.name)) + prod(shape))
    return torch.randint(-largest, largest + 1, shape, dtype=value.type.dtype.torch, generator=generator)


def convolution(rng: np.random.Generator, pixels: int, bits: int) -> str:
    """A convolution over time with so many results a channel, or a linear layer of so many rows."""
    x_type, y_type = (str(rng.choice(["i8", "i16"])) for _ in range(2))
    channels, out, kernel, stride = (int(rng.integers(1, high)) for high in (13, 9, 5, 3))
    scale = f"<scale=0.002, zero={int(rng.integers(-9, 9)) if x_type == 'i8' else 0}>"
    weight, y = f"i{bits}[OUTxIN]<scale=0.0001, zero=0>", f"{y_type}[SHAPE]<scale=0.004, zero=0>"
    if rng.random() < 0.25:
        weight, y = weight.replace("OUTxIN", f"{out}x{channels}"), y.replace("SHAPE", f"{pixels}x{out}")
        return f"""graph(%x: {x_type}[{pixels}x{channels}]{scale}) {{
          const %w: {weight}
          %y: {y} = linear(%x, %w)
          return y: %y
        }}"""
    before = int(rng.integers(0, kernel))
    length = (pixels - 1) * stride + kernel - before
    call = f"conv{{stride=({stride},), padding=({before}, 0), dilation=(1,)}}"
    return f"""graph(%x: {x_type}[1x{channels}x{length}]{scale}) {{
      const %w: {weight.replace("OUTxIN", f"{out}x{channels}x{kernel}")}
      const %b: i32[{out}]<scale=2e-07, zero=0>
      %y: {y.replace("SHAPE", f"1x{out}x{pixels}")} = {call}(%x, %w, %b)
      return y: %y
    }}"""


@pytest.mark.parametrize("bits", [8, 16])
def test_few_pixels_give_the_bytes_of_the_interpreter(bits: int, draw, tmp_path: Path) -> None:
    rng, target = np.random.default_rng(bits), load_target("cortex-m4f")
    kernels: list[str] = []
    for pixels in (1, 2, 3, 4, 5, 6, 8):
        for turn in range(2):
            graph = parse(convolution(rng, pixels, bits), fill=full_range)
            place = tmp_path / f"{pixels}_{turn}"
            place.mkdir()
            artifact = emit(graph, COutput(name="net", self_test=0), target)
            kernels += [step.offer.kernel for step in artifact.program.steps if step.node == graph.nodes[0]]
            network = SimulatedNetwork.of(artifact, place, target, alignment=2)
            inputs = [draw(v, pixels) for v in graph.inputs]
            assert network.run(inputs)[0].equal(run_integer(graph, inputs)[0])
    assert (
        sum(name.endswith("_dsp") for name in kernels) > len(kernels) / 2
    )  # the others are smaller than that pays


def test_as_many_pixels_are_taken_as_a_group_has() -> None:
    assert [pixels_together(n, 8) for n in (1, 2, 3, 4, 6, 8, 25, 125)] == [2, 2, 3, 4, 3, 4, 3, 3]
    assert {pixels_together(n, 4) for n in range(1, 9)} == {3}


LAYERS = {  # of a voice detector: the bits of weights, and the most instructions of a multiply-accumulate
    ("1x1x640", "258x1x256", "1x258x4", "stride=(128,), padding=(0, 0)", 8): 0.88,
    ("1x1x640", "258x1x256", "1x258x4", "stride=(128,), padding=(0, 0)", 16): 0.78,
    ("1x128x4", "64x128x3", "1x64x2", "stride=(2,), padding=(1, 1)", 8): 1.03,
    ("1x128x1", "64x128x1", "1x64x1", "stride=(1,), padding=(0, 0)", 8): 1.35,
    ("1x128x1", "64x128x1", "1x64x1", "stride=(1,), padding=(0, 0)", 16): 0.90,
}


@pytest.mark.parametrize("layer", LAYERS)
def test_layers_of_few_pixels_waste_no_products(
    layer: tuple[str, str, str, str, int], draw, tmp_path
) -> None:
    x, w, y, attributes, bits = layer
    graph: Graph = parse(
        f"""graph(%x: i16[{x}]<scale=0.001, zero=0>) {{
          const %w: i{bits}[{w}]<scale=0.0001, zero=0>
          %y: i16[{y}]<scale=0.005, zero=0> = conv{{{attributes}, dilation=(1,)}}(%x, %w)
          return y: %y
        }}""",
        fill=full_range,
    )
    target = load_target("cortex-m4f")
    artifact = emit(graph, COutput(name="net", self_test=0), target)
    counted = SimulatedNetwork.of(artifact, tmp_path, target).profile([draw(v, 0) for v in graph.inputs])
    assert counted.instructions <= LAYERS[layer] * graph.nodes[0].macs
    assert artifact.prediction.instructions == pytest.approx(counted.instructions, rel=0.04)
