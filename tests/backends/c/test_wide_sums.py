"""Layers whose sums leave int32: they stay on integers, and every kernel adds them up to the interpreter's bytes."""

from __future__ import annotations

import pytest
import torch

from fxpress.backends.c.emit import emit
from fxpress.ir import Graph, Value, parse, run_integer, verify
from fxpress.specs.outputs import COutput

# operator, shapes of x, weight and result
LAYERS = {
    "linear, one row": ("linear", "1x1037", "5x1037", "1x5"),
    "linear, rows": ("linear", "3x1100", "4x1100", "3x4"),
    "conv 3x3": ("conv{padding=(1, 1, 1, 1)}", "1x120x3x4", "3x120x3x3", "1x3x3x4"),
    "conv 1x1": ("conv", "1x1031x2x2", "6x1031x1x1", "1x6x2x2"),
    "conv of groups": ("conv{groups=2}", "1x260x3x3", "4x130x2x3", "1x4x2x1"),
    "transposed of groups": ("conv_transpose{groups=2}", "1x260x2x2", "260x2x3x3", "1x4x4x4"),
}
SANITIZED = ("-O0", "-fsanitize=undefined", "-fno-sanitize-recover=all")


def network(layer: str, *, bits: int = 8, scale: float = 4e-6, residual: bool = False) -> Graph:
    """Weights near their ends, and inputs that make sums leave int32 by far."""
    op, x, weight, y = LAYERS[layer]
    channels = y.split("x")[1]
    operands = "%x, %w, %b, %r" if residual else "%x, %w, %b"
    text = f"""graph(%x: i16[{x}]<scale=0.001, zero=0>, %r: i16[{y}]<scale=0.001, zero=0>) {{
      const %w: i8[{weight}]<bits={bits}, scale=0.01, zero=0>
      const %b: i32[{channels}]<scale={0.001 * 0.01}, zero=0>
      %y: i16[{y}]<scale={0.001 * 0.01 / scale}, zero=0> = {op}({operands})
      return y: %y
    }}"""

    def fill(value: Value) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        if value.name == "b":
            return torch.randint(
                -(1 << 29), 1 << 29, value.type.shape, generator=generator, dtype=torch.int32
            )
        end = (1 << (bits - 1)) - 1
        return torch.randint(end - end // 4, end + 1, value.type.shape, generator=generator, dtype=torch.int8)

    return verify(parse(text, fill=fill))


def inputs(graph: Graph) -> list[list[torch.Tensor]]:
    """All ends, and numbers that nearly cancel: results are at both ends and between them."""
    generator = torch.Generator().manual_seed(1)
    x, residual = (v.type.shape for v in graph.inputs)
    ends = [torch.full(x, end, dtype=torch.int16) for end in (-32768, 32767)]
    random = [
        torch.randint(-32768 + shift, 32768, x, generator=generator, dtype=torch.int16) for shift in (0, 9000)
    ]
    added = torch.randint(-32768, 32768, residual, generator=generator, dtype=torch.int16)
    return [[data, added] for data in (*ends, *random)]


@pytest.mark.parametrize("layer", LAYERS)
def test_sums_beyond_int32_give_the_interpreters_bytes(layer, cortex_m4, assert_equal_to_interpreter):
    graph = network(layer)
    for target in (None, cortex_m4):
        assert_equal_to_interpreter(graph, target=target, inputs=inputs(graph), flags=SANITIZED)


@pytest.mark.parametrize("bits", [4, 2])
@pytest.mark.parametrize("layer", ["linear, one row", "linear, rows", "conv 3x3"])
def test_packed_weights_add_up_beyond_int32(layer, bits, cortex_m4, assert_equal_to_interpreter):
    graph = network(layer, bits=bits, scale=4e-6 * 2 ** (8 - bits))
    enlarged = {**graph.params, "b": torch.full_like(graph.params["b"], (1 << 31) - 1)}
    for target in (None, cortex_m4):
        wide = graph.with_params(enlarged)
        assert_equal_to_interpreter(wide, target=target, inputs=inputs(graph), flags=SANITIZED)


@pytest.mark.parametrize("scale", [0.7, 3.0], ids=["multiplier near 2^31", "left shift"])
def test_scales_near_and_above_one_saturate_as_the_interpreter(scale, cortex_m4, assert_equal_to_interpreter):
    graph = network("linear, rows", scale=scale)
    for target in (None, cortex_m4):
        assert_equal_to_interpreter(graph, target=target, inputs=inputs(graph), flags=SANITIZED)


def test_a_residual_joins_a_sum_beyond_int32(cortex_m4, assert_equal_to_interpreter):
    graph = network("conv 3x3", residual=True)
    for target in (None, cortex_m4):
        assert_equal_to_interpreter(graph, target=target, inputs=inputs(graph), flags=SANITIZED)


def test_bytes_in_such_numbers_that_their_folded_bias_leaves_int32(host, assert_equal_to_interpreter):
    text = """graph(%x: i8[1x140000]<scale=0.1, zero=-128>) {
      const %w: i8[2x140000]<scale=0.1, zero=0>
      %y: i8[1x2]<scale=2500000.0, zero=-128> = linear(%x, %w)
      return y: %y
    }"""
    graph = verify(parse(text, fill=lambda v: torch.full(v.type.shape, 127, dtype=torch.int8)))
    ends = [[torch.full((1, 140000), end, dtype=torch.int8)] for end in (-128, 0, 127)]
    assert_equal_to_interpreter(graph, target=host, inputs=ends, flags=SANITIZED)


def test_the_interpreter_sums_and_rounds_beyond_int32_exactly():
    graph = network("linear, one row")
    for data in inputs(graph):
        (y,) = run_integer(graph, data)
        weight, bias = graph.params["w"].long(), graph.params["b"].long()
        sums = (weight * data[0].long()).sum(1) + bias
        multiplier = round(0.001 * 0.01 / graph.outputs[0].type.quantization.scale[0] * 2**32)
        want = [max(-32768, min(32767, (int(s) * multiplier + 2**31) >> 32)) for s in sums]
        assert y.flatten().tolist() == want


def test_only_layers_that_need_it_add_up_in_int64(host):
    text = """graph(%x: i16[1x{n}]<scale=0.1, zero=0>) {{
      const %w: i8[2x{n}]<scale=0.1, zero=0>
      %y: i16[1x2]<scale=9.0, zero=0> = linear(%x, %w)
      return y: %y
    }}"""
    sources = []
    for n in (516, 517):
        graph = verify(
            parse(text.format(n=n), fill=lambda v: torch.full(v.type.shape, 127, dtype=torch.int8))
        )
        sources.append(emit(graph, COutput(name="net"), host).files["net.c"].decode())
    assert ["int64_t even" in source for source in sources] == [False, True]
