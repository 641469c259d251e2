"""Weights that several layers share: in flash once, for any scales and biases of the layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
from torch import Tensor

from fxpress.backends.c import CArtifact, emit
from fxpress.ir import Graph, Value, parse
from fxpress.specs.outputs import COutput
from fxpress.specs.target import Target

PADDED = "padding=(1, 1, 1, 1)"


@dataclass(frozen=True)
class Layer:
    """A layer in text form, and the kernel that a core with DSP instructions takes for two calls of it."""

    op: str
    x: tuple[int, ...]
    weight: tuple[int, ...]
    y: tuple[int, ...]
    kernel: str
    bits: int = 8
    channels: int = 0

    def graph(self, fill: Callable[[Value], Tensor], *, second: str = "w") -> Graph:
        """Two calls on inputs and for outputs of different scales; the second one has weights of the name `second`."""
        x, weight, y = ("x".join(map(str, shape)) for shape in (self.x, self.weight, self.y))
        grid = f"<bits={self.bits}, scale=0.0078125, zero=0>"
        other = f"const %copy: i8[{weight}]{grid}" if second == "copy" else ""
        channels = self.channels or self.weight[0]

        def equal(value: Value) -> Tensor:
            return fill(Value("w", value.type)) if value.name == "copy" else fill(value)

        return parse(
            f"""graph(%x: i8[{x}]<scale=0.0625, zero=-3>, %x2: i8[{x}]<scale=0.03125, zero=7>) {{
              const %w: i8[{weight}]{grid}
              {other}
              const %b: i32[{channels}]<scale=0.00048828125, zero=0>
              const %b2: i32[{channels}]<scale=0.000244140625, zero=0>
              %y: i8[{y}]<scale=0.25, zero=6> = {self.op}(%x, %w, %b)
              %y2: i8[{y}]<scale=0.125, zero=-9> = {self.op}(%x2, %{second}, %b2)
              return first: %y, second: %y2
            }}""",
            fill=equal,
        )


LAYERS = {
    "conv": Layer(f"conv{{{PADDED}}}", (1, 7, 5, 5), (6, 7, 3, 3), (1, 6, 5, 5), "conv_dsp"),
    "winograd": Layer(f"conv{{{PADDED}}}", (1, 16, 32, 32), (16, 16, 3, 3), (1, 16, 32, 32), "winograd_dsp"),
    "depthwise": Layer(
        f"conv{{{PADDED}, groups=9}}", (1, 9, 6, 6), (9, 1, 3, 3), (1, 9, 6, 6), "depthwise_dsp"
    ),
    "pointwise": Layer("conv", (1, 9, 4, 3), (7, 9, 1, 1), (1, 7, 4, 3), "conv_dsp"),
    "grouped": Layer(
        f"conv{{{PADDED}, groups=2}}", (1, 8, 4, 4), (6, 4, 3, 3), (1, 6, 4, 4), "conv_portable"
    ),
    "rows": Layer("linear", (1, 5, 24), (10, 24), (1, 5, 10), "conv_dsp"),
    "linear": Layer("linear", (1, 24), (10, 24), (1, 10), "linear_dsp"),
    "transposed": Layer(
        "conv_transpose", (1, 4, 3, 3), (4, 6, 2, 2), (1, 6, 4, 4), "conv_transpose_portable", channels=6
    ),
    "int4 conv": Layer(f"conv{{{PADDED}}}", (1, 32, 12, 12), (32, 32, 3, 3), (1, 32, 12, 12), "conv_dsp", 4),
    "int4 depthwise": Layer(
        f"conv{{{PADDED}, groups=9}}", (1, 9, 6, 6), (9, 1, 3, 3), (1, 9, 6, 6), "depthwise_dsp", 4
    ),
    "int2 linear": Layer("linear", (1, 64), (10, 64), (1, 10), "linear_dsp", 2),
}


def weights(artifact: CArtifact) -> list[str]:
    """Arrays that the calls take for weights."""
    return [a.symbol for a in artifact.source.arrays if a.symbol.startswith(("net_weights", "net_constants"))]


@pytest.mark.parametrize("name", LAYERS)
def test_two_layers_read_one_array_of_weights(
    name: str,
    fill: Callable[[Value], Tensor],
    cortex_m4: Target,
    host: Target,
    assert_equal_to_interpreter: Callable[..., CArtifact],
) -> None:
    layer = LAYERS[name]
    fast = assert_equal_to_interpreter(layer.graph(fill), target=cortex_m4)
    assert {step.offer.kernel for step in fast.program.steps} == {layer.kernel}
    assert len(weights(fast)) == 1
    assert len(weights(emit(layer.graph(fill), COutput(name="net"), host))) == 1


def test_weights_that_are_equal_are_one_array_whatever_their_names(
    fill: Callable[[Value], Tensor],
    cortex_m4: Target,
    assert_equal_to_interpreter: Callable[..., CArtifact],
) -> None:
    for name in ("conv", "linear"):
        copied = assert_equal_to_interpreter(LAYERS[name].graph(fill, second="copy"), target=cortex_m4)
        assert len(weights(copied)) == 1


def test_shared_weights_are_predicted_once(fill: Callable[[Value], Tensor], cortex_m4: Target) -> None:
    layer = Layer("linear", (1, 5, 256), (64, 256), (1, 5, 64), "conv_dsp")
    artifact = emit(layer.graph(fill), COutput(name="net"), cortex_m4)
    first, second = artifact.prediction.nodes
    assert first.constant_bytes - second.constant_bytes == 64 * 256
    assert sum(node.constant_bytes for node in artifact.prediction.nodes) == artifact.constant_bytes
