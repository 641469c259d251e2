"""Mixed precision in `quantize`: sources of a layer's bits, bits of values that share an encoding, conversions."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from fxpress.compiler.data import snr_db
from fxpress.ir import Graph, Value, parse, run, run_integer, verify
from fxpress.ir.testing import drawn_constant, drawn_samples
from fxpress.passes import Context, PassResult, find_pass
from fxpress.passes.quantize import layer_precisions
from fxpress.passes.quantize.layer_precisions import precision_of
from fxpress.specs.options import LayerBits, LayerPrecision, QuantizeOptions

Sample = tuple[Tensor, ...]
WIDE = LayerBits(activations="int16")


def fill(value: Value) -> Tensor:
    return drawn_constant(value) / 3


def graph(text: str) -> Graph:
    return parse(text, fill=fill)


def quantize(
    before: Graph, decided: Mapping[str, LayerPrecision] | None = None, **options: object
) -> PassResult:
    context = Context(
        calibration=drawn_samples(before, 20),
        selects=lambda pattern, module: pattern in ("*", module),
    )
    precisions = {module: precision_of(setting) for module, setting in (decided or {}).items()}
    given = before.with_precisions(precisions)
    return find_pass("quantize")(given, QuantizeOptions.model_validate(options), context)


def bits(after: Graph) -> dict[str, int]:
    """Bits of each activation that is an integer, by name."""
    values = [v for node in after.nodes for v in node.outputs]
    return {v.name: v.type.quantization.bits for v in values if v.type.quantization is not None}


def weight_bits(after: Graph) -> dict[str, int]:
    return {
        n.source.module: n.inputs[1].type.quantization.bits
        for n in after.nodes
        if n.op.name in ("conv", "linear")
    }


def signal_to_noise_db(before: Graph, after: Graph) -> float:
    outputs = [(run(before, x)[0], run_integer(after, x)[0]) for x in drawn_samples(before, 20, seed=2)]
    return snr_db(*(torch.cat(t) for t in zip(*outputs, strict=True)))


THREE_LAYERS = """
graph(%x: f32[1x3x6x6]) {
  const %w1: f32[8x3x3x3]
  const %ww2: f32[8x8x3x3]
  const %www3: f32[5x72]
  %c: f32[1x8x6x6] = conv{padding=(1, 1, 1, 1), clamp=(0.0, inf)}(%x, %w1)   # "first", ""
  %d: f32[1x8x6x6] = conv{padding=(1, 1, 1, 1)}(%c, %ww2, none, %c)   # "second", ""
  %p: f32[1x8x3x3] = max_pool(%d)
  %f: f32[1x72] = reshape{shape=(-1, 72)}(%p)
  %y: f32[1x5] = linear(%f, %www3)   # "head", ""
  return output: %y
}"""

WITH_TABLE = """
graph(%x: f32[1x4x6x6]) {
  const %w1: f32[4x4x1x1]
  const %ww2: f32[4x4x1x1]
  const %www3: f32[4x4x1x1]
  %a: f32[1x4x6x6] = conv(%x, %w1)   # "left", ""
  %s: f32[1x4x6x6] = softmax{axis=1}(%a)   # "gate", ""
  %b: f32[1x4x6x6] = conv(%a, %ww2)   # "right", ""
  %c: f32[1x4x6x6] = conv(%s, %www3)   # "after", ""
  return output: %b, other: %c
}"""


def test_a_layer_takes_the_bits_that_a_pass_before_decided() -> None:
    after = quantize(graph(THREE_LAYERS), {"first": "int4", "head": LayerBits(weights="int2")}).graph
    assert weight_bits(after) == {"first": 4, "second": 8, "head": 2}


def test_the_spec_wins_over_a_decision_and_leaves_open_what_it_does_not_say() -> None:
    decided: dict[str, LayerPrecision] = {
        "first": LayerBits(weights="int2", activations="int16"),
        "second": "int4",
        "head": "float32",
    }
    after = quantize(graph(THREE_LAYERS), decided, layers={"first": "int4", "head": "int8"}).graph
    assert weight_bits(after) == {"first": 4, "second": 4, "head": 8}
    assert bits(after)["x_q"] == 16


def test_float32_in_a_decision_keeps_a_layer_in_float() -> None:
    result = quantize(graph(THREE_LAYERS), {"head": "float32"})
    assert result.graph.producers["y"].output.type.quantization is None


def test_activation_bits_are_those_of_the_operand_and_run_through_data_movement() -> None:
    after = quantize(graph(THREE_LAYERS), {"head": WIDE}).graph
    assert bits(after) == {"x_q": 8, "c": 8, "d": 16, "p": 16, "f": 16, "y": 8}


@pytest.mark.parametrize("low", ["int4", "int2"])
def test_few_levels_are_those_that_layers_read_except_inputs(low: str) -> None:
    after = quantize(graph(THREE_LAYERS), activations=low).graph
    width = {"int4": 4, "int2": 2}[low]
    assert bits(after) == {"x_q": 8, "c": width, "d": width, "p": width, "f": width, "y": 8}
    sample = drawn_samples(graph(THREE_LAYERS), 1)[0]
    verify(after)
    codes = {}
    run_integer(after, sample, observe=lambda value, tensor: codes.update({value.name: tensor}))
    assert all(len(codes[name].unique()) <= 1 << width for name in ("c", "p"))


def test_functions_read_and_give_eight_bits_beside_layers_with_fewer() -> None:
    after = quantize(graph(WITH_TABLE), activations="int4").graph
    assert (bits(after)["a"], bits(after)["s"]) == (8, 8)


def test_one_layer_can_read_four_bits() -> None:
    after = quantize(graph(THREE_LAYERS), layers={"second": {"activations": "int4"}}).graph
    assert bits(after) == {"x_q": 8, "c": 4, "d": 8, "p": 8, "f": 8, "y": 8}


def test_values_that_share_a_grid_take_the_widest_that_a_reader_asks() -> None:
    after = quantize(graph(WITH_TABLE), {"right": WIDE, "left": LayerBits(activations="int8")}).graph
    assert (bits(after)["a"], bits(after)["x_q"]) == (16, 8)


def test_a_softmax_reads_and_gives_sixteen_bits_where_its_readers_ask() -> None:
    after = quantize(graph(WITH_TABLE), {"gate": WIDE, "after": WIDE}).graph
    assert (bits(after)["a"], bits(after)["s"]) == (16, 16)
    assert after.producers["s"].inputs[0].name == "a"


@pytest.fixture
def of_eight_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A softmax that has a form on 8 bits alone, as an operator of a package may."""
    monkeypatch.setattr(layer_precisions, "accepts_wide", lambda node: node.op.name != "softmax")


@pytest.mark.usefixtures("of_eight_bits")
def test_an_operator_of_eight_bits_reads_a_wide_value_through_a_conversion() -> None:
    after = quantize(graph(WITH_TABLE), {"right": WIDE}).graph
    (conversion,) = [node for node in after.nodes if node.op.name == "requantize"]
    assert (conversion.inputs[0].name, bits(after)[conversion.output.name]) == ("a", 8)
    assert after.producers["s"].inputs[0] == conversion.output
    assert after.producers["b"].inputs[0].name == "a"


@pytest.mark.usefixtures("of_eight_bits")
def test_what_an_operator_of_eight_bits_gives_stays_at_eight_and_is_told() -> None:
    result = quantize(graph(WITH_TABLE), {"after": WIDE})
    assert bits(result.graph)["s"] == 8
    assert result.report.warnings == ("after: requests 16 bits for the result of softmax %s, which has 8",)


@pytest.mark.parametrize("text", [THREE_LAYERS, WITH_TABLE])
def test_wider_operands_lower_the_error_of_a_mixed_graph(text: str) -> None:
    before = graph(text)
    ladder: list[dict[str, LayerPrecision]] = [
        {"*": "int2"},
        {"*": "int4"},
        {"*": "int8"},
        {"*": WIDE},
    ]
    ratios = []
    for layers in ladder:
        after = quantize(before, layers=layers).graph
        verify(after)
        ratios.append(signal_to_noise_db(before, after))
    assert ratios == sorted(ratios)


def test_a_layer_of_sixteen_bits_stays_on_integers_where_its_sums_leave_int32() -> None:
    before = parse(
        """
graph(%x: f32[1x600]) {
  const %w: f32[4x600]
  %y: f32[1x4] = linear(%x, %w)   # "wide", ""
  return output: %y
}""",
        fill=lambda value: torch.ones(value.type.shape),
    )
    result = quantize(before, {"wide": WIDE})
    assert result.graph.producers["y"].output.type.is_quantized
    assert result.report.table("layers").rows[0][-1] > 1 << 31
    assert signal_to_noise_db(before, result.graph) > 20
