"""DSP kernels on activations of 16 bits, on a simulated Cortex-M4 against the integer interpreter; counts are exact."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from fxpress.backends.c.emit import CArtifact, emit
from fxpress.backends.c.tools.simulated_network import SimulatedNetwork
from fxpress.ir import Graph, TensorType, Value, parse, run_integer
from fxpress.ir.ops.conv import Conv
from fxpress.specs import load_target
from fxpress.specs.outputs import COutput

pytestmark = [
    pytest.mark.skipif(
        shutil.which("arm-none-eabi-gcc") is None, reason="arm-none-eabi-gcc is not installed"
    ),
    pytest.mark.skipif(importlib.util.find_spec("unicorn") is None, reason="unicorn is not installed"),
]
GRID = "<scale=0.001, zero=0>"
# Instructions of the form of 16 bits, and how far the estimate may be off.
LAYERS = {
    "pointwise": ("1x64x25x5", "64x64x1x1", "1x64x25x5", "", 0.03),
    "pointwise_8": ("1x8x24x24", "16x8x1x1", "1x16x24x24", "", 0.03),
    "k3_16": ("1x16x16x16", "16x16x3x3", "1x16x16x16", "padding=(1, 1, 1, 1)", 0.03),
    "rgb": ("1x3x32x32", "16x3x3x3", "1x16x32x32", "padding=(1, 1, 1, 1)", 0.04),
    "speech": ("1x1x49x10", "64x1x10x4", "1x64x25x5", "stride=(2, 2), padding=(4, 5, 1, 1)", 0.04),
    "depthwise": ("1x64x25x5", "64x1x3x3", "1x64x25x5", "padding=(1, 1, 1, 1), groups=64", 0.03),
    "depthwise_2": (
        "1x16x24x24",
        "16x1x3x3",
        "1x16x12x12",
        "stride=(2, 2), padding=(0, 1, 0, 1), groups=16",
        0.03,
    ),
    "linear": ("1x640", "128x640", "1x128", "", 0.03),
}


class Core:
    """The C of a graph on a simulated Cortex-M4, whose buffers are at addresses that are multiples of two only.

    `strict` faults where several words are read at such an address; the simulator may lose the condition of an
    instruction in an IT block while it looks at an access, so this is for code without any.
    """

    def __init__(self, graph: Graph, target, folder: Path, *, strict: bool = False) -> None:
        self.artifact: CArtifact = emit(graph, COutput(name="net", self_test=0), target)
        self._network = SimulatedNetwork.of(
            self.artifact, folder, load_target("cortex-m4f"), alignment=2, strict_alignment=strict
        )

    def check(self, vector) -> None:
        """Asserts that the outputs are those of the interpreter."""
        expected = run_integer(self.artifact.graph, list(vector))
        for port, got, wanted in zip(self._network.outputs, self._network.run(vector), expected, strict=True):
            assert got.equal(wanted), port.name

    def instructions(self, vector) -> int:
        """Instructions of one run."""
        return self._network.profile(vector).instructions


def layer(name: str, element: str) -> str:
    """A layer in text form, with activations of this element type."""
    x, w, y, attributes, _ = LAYERS[name]
    call = f"conv{{{attributes}}}" if w.count("x") == 3 else "linear"
    return f"""graph(%x: {element}[{x}]{GRID}) {{
      const %w: i8[{w}]<scale=0.01, zero=0>
      %y: {element}[{y}]<scale=0.005, zero=0> = {call}(%x, %w)
      return y: %y
    }}"""


@pytest.mark.parametrize("name", LAYERS)
def test_sixteen_bits_cost_no_more_instructions_than_eight(name, cortex_m4, fill, draw, tmp_path):
    counts = {}
    for element in ("i8", "i16"):
        core = Core(parse(layer(name, element), fill=fill), cortex_m4, tmp_path)
        counts[element] = core.instructions([draw(v, 0) for v in core.artifact.graph.inputs])
    assert counts["i16"] <= counts["i8"]
    assert core.artifact.program.steps[0].offer.kernel.endswith("_dsp")
    assert core.artifact.prediction.instructions == pytest.approx(counts["i16"], rel=LAYERS[name][-1])


def random_convolution(rng: np.random.Generator) -> str:
    """A convolution of any kernel, stride, padding, dilation and grouping, between 8 and 16 bits."""
    x_type, y_type = rng.choice([("i16", "i16"), ("i16", "i8"), ("i8", "i16")])
    kernel, stride, dilation = ([int(n) for n in rng.integers(1, high, 2)] for high in (5, 4, 3))
    channels, out = (int(n) for n in rng.integers(1, 20, 2))
    groups = channels if rng.random() < 0.3 else 1
    out, dilation = (channels, [1, 1]) if groups > 1 else (out, dilation)
    padding = [int(rng.integers(0, (kernel[i // 2] - 1) * dilation[i // 2] + 1)) for i in range(4)]
    size = [(kernel[i] - 1) * dilation[i] + 1 + int(n) for i, n in enumerate(rng.integers(0, 8, 2))]
    op = Conv(tuple(stride), tuple(padding), tuple(dilation), groups)
    x, w = TensorType((1, channels, *size)), TensorType((out, channels // groups, *kernel))
    shape = "x".join(map(str, op.infer(x, w)[0].shape))
    zero = int(rng.integers(-9, 9)) if rng.random() < 0.5 else 0
    clamp = rng.choice(["", ", clamp=(0.0, inf)", ", clamp=(-0.5, 1.0)"])
    residual = groups == 1 and rng.random() < 0.4
    attributes = f"stride={op.stride}, padding={op.padding}, dilation={op.dilation}, groups={groups}{clamp}"
    scale = 0.0005 if x_type == y_type else 0.2 if y_type == "i8" else 0.0001
    added = f", %r: {rng.choice(['i8', 'i16'])}[{shape}]<scale={scale}, zero=3>" if residual else ""
    return f"""graph(%x: {x_type}[1x{channels}x{size[0]}x{size[1]}]<scale=0.0002, zero={zero}>{added}) {{
      const %w: i8[{out}x{channels // groups}x{kernel[0]}x{kernel[1]}]<scale=0.01, zero=0>
      %y: {y_type}[{shape}]<scale={scale}, zero={zero}> = conv{{{attributes}}}(%x, %w{", none, %r" if residual else ""})
      return y: %y
    }}"""


@pytest.mark.parametrize("seed", range(3))
def test_any_convolution_is_exact_wherever_its_operands_lie(seed, join, cortex_m4, draw, tmp_path):
    rng = np.random.default_rng(seed)
    core = Core(join({f"conv{i}": random_convolution(rng) for i in range(20)}), cortex_m4, tmp_path)
    for run in range(2):
        core.check([draw(v, 100 * run + i) for i, v in enumerate(core.artifact.graph.inputs)])


@pytest.mark.parametrize("name", ["k3_16", "depthwise", "linear", "speech"])
@pytest.mark.parametrize("weight", [-127, 127])
def test_the_ends_of_the_range_are_exact(name, weight, cortex_m4, tmp_path):
    def whole(value: Value) -> torch.Tensor:
        taps = value.type.numel // value.type.shape[0]  # as many as an int32 can sum at the ends of the range
        row = torch.where(torch.arange(taps) < 500, weight, 0).to(torch.int8)
        return row.expand(value.type.shape[0], taps).reshape(value.type.shape)

    core = Core(parse(layer(name, "i16"), fill=whole), cortex_m4, tmp_path, strict=True)
    shape = core.artifact.graph.inputs[0].type.shape
    low, high = (torch.full(shape, end, dtype=torch.int16) for end in (-32768, 32767))
    mixed = torch.where(torch.arange(low.numel()).view(shape) % 2 == 0, low, high)
    for x in (low, high, mixed):
        core.check([x])
