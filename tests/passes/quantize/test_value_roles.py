"""Roles of values: residual streams, gates and outputs of 16 bits between layers that read 8."""

from __future__ import annotations

import pytest
import torch

from fxpress.compiler.data import snr_db
from fxpress.ir import Graph, Value, parse, run, run_integer
from fxpress.ir.testing import drawn_constant, drawn_samples
from fxpress.passes import Context, PassResult, find_pass
from fxpress.specs.options import QuantizeOptions

ENCODER = """
graph(%x: f32[1x6x16]) {
  const %wq: f32[16x16]
  const %wk: f32[16x16]
  const %wv: f32[16x16]
  const %wo: f32[16x16]
  const %up: f32[32x16]
  const %down: f32[16x32]
  const %head: f32[5x16]
  %q: f32[1x6x16] = linear(%x, %wq)   # "q", ""
  %k: f32[1x6x16] = linear(%x, %wk)   # "k", ""
  %v: f32[1x6x16] = linear(%x, %wv)   # "v", ""
  %a: f32[1x6x16] = attention(%q, %k, %v)
  %s: f32[1x6x16] = linear(%a, %wo, none, %x)   # "o", ""
  %n: f32[1x6x16] = layer_norm{shape=(16,)}(%s)
  %u: f32[1x6x32] = linear(%n, %up)   # "up", ""
  %g: f32[1x6x32] = gelu(%u)
  %d: f32[1x6x16] = linear(%g, %down, none, %n)   # "down", ""
  %m: f32[1x6x16] = layer_norm{shape=(16,)}(%d)
  %y: f32[1x6x5] = linear(%m, %head)   # "head", ""
  return output: %y
}"""
GATED = """
graph(%x: f32[1x6x16]) {
  const %w1: f32[32x16]
  const %ww3: f32[32x16]
  const %www2: f32[16x32]
  %a: f32[1x6x32] = linear(%x, %w1)   # "gate", ""
  %s: f32[1x6x32] = silu(%a)
  %b: f32[1x6x32] = linear(%x, %ww3)   # "up", ""
  %p: f32[1x6x32] = mul(%s, %b)
  %y: f32[1x6x16] = linear(%p, %www2)   # "down", ""
  return output: %y
}"""
NARROW = {"q": 8, "k": 8, "v": 8, "a": 8, "s": 8, "n": 8, "u": 8, "g": 8, "d": 8, "m": 8, "y": 8, "x_q": 8}
RESCALED = {"x_rescaled": 8, "n_rescaled": 8}
ROLES = {"residual": "int16", "gates": "int16", "outputs": "int16"}


def fill(value: Value) -> torch.Tensor:
    return drawn_constant(value) / 2


def quantize(text: str, **options: object) -> tuple[Graph, PassResult]:
    before = parse(text, fill=fill)
    context = Context(
        calibration=drawn_samples(before, 20), selects=lambda pattern, module: pattern in ("*", module)
    )
    return before, find_pass("quantize")(before, QuantizeOptions.model_validate(options), context)


def bits(result: PassResult) -> dict[str, int]:
    """Bits of each activation that is an integer, by name."""
    values = [v for node in result.graph.nodes for v in node.outputs]
    return {v.name: v.type.quantization.bits for v in values if v.type.quantization is not None}


def ratio_db(before: Graph, after: Graph) -> float:
    outputs = [(run(before, x)[0], run_integer(after, x)[0]) for x in drawn_samples(before, 20, seed=2)]
    return snr_db(*(torch.cat(t) for t in zip(*outputs, strict=True)))


@pytest.mark.parametrize(
    ("options", "wide"),
    [
        ({}, {}),
        ({"residual": "int16"}, dict.fromkeys(("x_q", "s", "n", "d"), 16) | RESCALED),
        ({"gates": "int16"}, {"u": 16}),
        ({"outputs": "int16"}, {"y": 16}),
        (ROLES, dict.fromkeys(("x_q", "s", "n", "d", "u", "y"), 16) | RESCALED),
    ],
    ids=["none", "residual", "gates", "outputs", "all"],
)
def test_values_in_a_role_have_sixteen_bits_and_all_others_eight(
    options: dict[str, str], wide: dict[str, int]
) -> None:
    _, result = quantize(ENCODER, **options)
    assert bits(result) == NARROW | wide
    assert {n.op.name for n in result.graph.nodes if not n.output.type.is_quantized} == {"dequantize"}


def test_gates_are_both_factors_of_a_product_and_what_a_function_reads() -> None:
    _, result = quantize(GATED, gates="int16")
    assert bits(result) == {"x_q": 8, "a": 16, "s": 16, "b": 16, "p": 8, "y": 8}


@pytest.mark.parametrize("function", ["leaky_relu", "abs"])
def test_a_function_that_only_scales_reads_eight_bits(function: str) -> None:
    _, result = quantize(ENCODER.replace("gelu", function), gates="int16")
    assert bits(result)["u"] == 8


def test_what_is_looked_for_in_float_is_an_output() -> None:
    text = ENCODER.replace("return output: %y", "%i: i64[1x6] = argmax{axis=2}(%y)\n  return output: %i")
    assert bits(quantize(text, outputs="int16")[1])["y"] == 16


@pytest.mark.parametrize("module", ["up", "*"])
def test_a_layer_that_asks_for_sixteen_bits_reads_the_value_itself(module: str) -> None:
    layers = {module: {"activations": "int16"}}
    _, result = quantize(ENCODER, residual="int16", layers=layers)
    assert result.graph.producers["u"].operand("x").name == "n"


def test_a_value_that_is_not_the_first_operand_is_rounded_for_an_attention() -> None:
    """The values of an attention are factors of a product, too."""
    text = ENCODER.replace("%n: ", "%t: f32[1x6x16] = mul(%v, %v)\n  %n: ").replace(
        "return output: %y", "return output: %y, other: %t"
    )
    _, result = quantize(text, gates="int16")
    (attention,) = [node for node in result.graph.nodes if node.op.name == "attention"]
    assert [v.type.quantization and v.type.quantization.bits for v in attention.operands] == [8, 8, 8]
    assert bits(result)["v"] == 16


def test_each_role_raises_the_ratio_at_the_output() -> None:
    ratios = []
    for options in ({}, {"residual": "int16"}, {"residual": "int16", "gates": "int16"}, ROLES):
        before, result = quantize(ENCODER, **options)
        ratios.append(ratio_db(before, result.graph))
    assert ratios == sorted(ratios) and ratios[-1] > ratios[0] + 1, ratios


def test_gates_raise_the_ratio_of_a_gated_layer() -> None:
    plain, wide = (quantize(GATED, **options) for options in ({}, {"gates": "int16"}))
    assert ratio_db(wide[0], wide[1].graph) > ratio_db(plain[0], plain[1].graph)
