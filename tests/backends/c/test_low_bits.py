"""Weights of 4 and 2 bits: packed in flash, unpacked by every kernel to the bytes of the interpreter."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from fxpress.backends.c.emit import emit
from fxpress.backends.c.lower import lower
from fxpress.ir import Graph, Value, parse
from fxpress.specs.outputs import COutput

X_SCALE, W_SCALE = 0.0625, 0.125
UNDEFINED = ("-O1", "-fsanitize=undefined", "-fno-sanitize-recover=all")
FILLS = ("random", "lowest", "highest", "alternating")


@dataclass(frozen=True)
class Layer:
    """A layer: its operator in text form, shapes of input, weight and result, and the type of its weights."""

    op: str
    x: tuple[int, ...]
    weight: tuple[int, ...]
    y: tuple[int, ...]
    bits: int
    fill: str = "random"
    y_scale: float = 1.0
    residual: bool = False
    bias: int = 3000

    def graph(self) -> Graph:
        """The layer as a network."""
        x, weight, y = ("x".join(map(str, shape)) for shape in (self.x, self.weight, self.y))
        joined = f", %r: i8[{y}]<scale={self.y_scale / 2}, zero=9>" if self.residual else ""
        return parse(
            f"""graph(%x: i8[{x}]<scale={X_SCALE}, zero=-3>{joined}) {{
              const %w: i8[{weight}]<bits={self.bits}, scale={W_SCALE}, zero=0>
              const %b: i32[{self.weight[0]}]<scale={X_SCALE * W_SCALE}, zero=0>
              %y: i8[{y}]<scale={self.y_scale}, zero=6> = {self.op}(%x, %w, %b{", %r" if self.residual else ""})
              return y: %y
            }}""",
            fill=self._constant,
        )

    def _constant(self, value: Value) -> torch.Tensor:
        generator = torch.Generator().manual_seed(self.bits)
        shape, limit = value.type.shape, 1 << (self.bits - 1)
        if value.name == "b":
            return torch.full(shape, self.bias, dtype=torch.int32)
        signs = torch.arange(value.type.numel).view(shape) % 2
        made = {
            "random": torch.randint(-limit, limit, shape, generator=generator),
            "lowest": torch.full(shape, -limit),
            "highest": torch.full(shape, limit - 1),
            "alternating": signs * (2 * limit - 1) - limit,
        }
        return made[self.fill].to(torch.int8)


@st.composite
def layers(draw: st.DrawFn) -> Layer:
    """Convolutions of any window and groups, depthwise and pointwise ones, linear layers."""
    bits, fill = draw(st.sampled_from((4, 2))), draw(st.sampled_from(FILLS))
    y_scale, residual = draw(st.sampled_from((0.01, 0.5, 4.0))), draw(st.booleans())
    inputs, outputs = draw(st.integers(1, 21)), draw(st.integers(1, 9))
    kind = draw(st.sampled_from(("conv", "pointwise", "depthwise", "groups", "linear")))
    if kind == "linear":
        rows = draw(st.integers(1, 4))
        x, y = (1, rows, inputs), (1, rows, outputs)
        return Layer("linear", x, (outputs, inputs), y, bits, fill, y_scale, residual)
    groups = {"depthwise": inputs, "groups": 2}.get(kind, 1)
    inputs, outputs = (inputs, inputs) if kind == "depthwise" else (inputs * groups, outputs * groups)
    kernel = (1, 1) if kind == "pointwise" else (draw(st.integers(1, 6)), draw(st.integers(1, 4)))
    stride = (draw(st.integers(1, 2)), draw(st.integers(1, 2)))
    edge = draw(st.integers(0, min(kernel) - 1))
    size = tuple(k + draw(st.integers(0, 4)) for k in kernel)
    out = tuple((n + 2 * edge - k) // s + 1 for n, k, s in zip(size, kernel, stride, strict=True))
    op = f"conv{{stride={stride}, padding={(edge,) * 4}, groups={groups}}}"
    weight = (outputs, inputs // groups, *kernel)
    return Layer(op, (1, inputs, *size), weight, (1, outputs, *out), bits, fill, y_scale, residual)


WINOGRAD = Layer(
    "conv{padding=(1, 1, 1, 1)}", (1, 16, 16, 16), (16, 16, 3, 3), (1, 16, 16, 16), 4, "alternating"
)


@settings(
    max_examples=12,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(layer=layers())
@example(layer=WINOGRAD)
def test_a_layer_of_any_shape_computes_the_bytes_of_the_interpreter(
    layer, cortex_m4, host, assert_equal_to_interpreter
):
    graph = layer.graph()
    ends = [[torch.full(v.type.shape, end, dtype=torch.int8) for v in graph.inputs] for end in (-128, 127)]
    few_registers = host.model_copy(update={"isa": "armv6-m"})
    assert_equal_to_interpreter(graph, target=cortex_m4, flags=UNDEFINED, inputs=ends)
    assert_equal_to_interpreter(graph, target=host, flags=UNDEFINED, seeds=1)
    assert_equal_to_interpreter(graph, target=few_registers, flags=("-O1",), seeds=1)
    assert_equal_to_interpreter(graph, target=cortex_m4, flags=("-O1",), seeds=1)


@pytest.mark.parametrize("bits", [4, 2])
def test_flash_holds_the_weights_packed_on_every_target(bits, cortex_m4, host):
    layer = Layer("conv", (1, 64, 5, 5), (64, 64, 1, 1), (1, 64, 5, 5), bits)
    for target in (cortex_m4, host):
        node = emit(layer.graph(), COutput(name="net"), target).prediction.nodes[0]
        scales = node.constant_bytes - 64 * 64 * bits // 8
        assert 64 * 4 < scales <= 64 * 8, "biases and multipliers"


def test_sums_that_could_leave_int32_while_packed_take_the_portable_form(
    cortex_m4, assert_equal_to_interpreter
):
    near = Layer("linear", (1, 64), (8, 64), (1, 8), 4, y_scale=2.0**20, bias=2**27 - 2**18)
    beyond = Layer("linear", (1, 64), (8, 64), (1, 8), 4, y_scale=2.0**20, bias=2**27)
    for layer, kernel in ((near, "linear_dsp"), (beyond, "product_portable")):
        artifact = assert_equal_to_interpreter(layer.graph(), target=cortex_m4, seeds=2)
        assert artifact.prediction.nodes[0].kernel == kernel


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize(
    ("x", "weight", "y"),
    [
        ((1, 24, 5), (10, 24, 5), (1, 10, 1)),
        ((1, 6, 3, 2), (9, 6, 3, 2), (1, 9, 1, 1)),
        ((1, 3, 7, 1), (5, 3, 7, 1), (1, 5, 1, 1)),
    ],
)
def test_a_convolution_with_a_single_window_is_a_row_of_products(
    bits, x, weight, y, cortex_m4, assert_equal_to_interpreter
):
    flat = "conv" if len(x) == 4 else "conv{stride=(1,), padding=(0, 0), dilation=(1,)}"
    artifact = assert_equal_to_interpreter(
        Layer(flat, x, weight, y, bits).graph(), target=cortex_m4, flags=UNDEFINED, seeds=2
    )
    assert "linear_dsp" in {node.kernel for node in artifact.prediction.nodes}


def test_where_the_arena_does_not_fit_weights_are_unpacked_without_it(cortex_m4):
    def lowered(ram: int | None) -> tuple[str, int]:
        target = cortex_m4.model_copy(update={"ram": ram})
        found = lower(WINOGRAD.graph(), COutput(name="net"), target)
        return found.program.steps[0].offer.kernel, found.plan.arena_bytes

    kernel, arena_bytes = lowered(None)
    assert kernel == "winograd_dsp"
    assert lowered(arena_bytes) == (kernel, arena_bytes)
    kernel, smaller_bytes = lowered(arena_bytes - 1)
    assert kernel == "conv_dsp"
    assert smaller_bytes < arena_bytes / 5


@pytest.mark.parametrize("bits", [4, 2])
def test_winograd_transforms_packed_weights_part_by_part(bits, cortex_m4, assert_equal_to_interpreter):
    layer = Layer(
        "conv{padding=(1, 1, 1, 1)}", (1, 32, 12, 12), (24, 32, 3, 3), (1, 24, 12, 12), bits, residual=True
    )
    artifact = assert_equal_to_interpreter(layer.graph(), target=cortex_m4, flags=UNDEFINED, seeds=1)
    assert artifact.prediction.nodes[0].kernel == "winograd_dsp"
    assert artifact.plan.arena_bytes < 16 * 1024
