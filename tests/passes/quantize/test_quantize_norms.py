"""Norms by statistics compute on integers where they are between others that do, and stay in float elsewhere."""

from __future__ import annotations

import pytest

from fxpress.ir import Graph, parse
from fxpress.ir.testing import drawn_constant, drawn_samples
from fxpress.passes import Context, PassResult, find_pass
from fxpress.specs.options import QuantizeOptions

NORMS = (
    "layer_norm{shape=(8,)}(%l, %n, %m)",
    "rms_norm{shape=(8,)}(%l, %n)",
    "instance_norm(%l)",
    "group_norm(%l)",
)


def graph(body: str, *, returned: str = "%y") -> Graph:
    text = f"""
graph(%x: f32[1x4x8]) {{
  const %w: f32[8x8]
  const %n: f32[8]
  const %m: f32[8]
  {body}
  return y: {returned}
}}"""
    return parse(text, fill=drawn_constant)


BETWEEN = """%l: f32[1x4x8] = linear(%x, %w)
  %z: f32[1x4x8] = {norm}
  %y: f32[1x4x8] = linear(%z, %w)"""


def quantize(before: Graph, **options: object) -> PassResult:
    context = Context(
        calibration=drawn_samples(before, 20), selects=lambda pattern, module: pattern in ("*", module)
    )
    return find_pass("quantize")(before, QuantizeOptions.model_validate(options), context)


def reason(result: PassResult, name: str) -> str:
    return next(d.reason for d in result.report.decisions if d.name == name)


@pytest.mark.parametrize("activations", ["int8", "int16"])
@pytest.mark.parametrize("norm", NORMS)
def test_a_norm_between_layers_computes_on_integers(norm: str, activations: str) -> None:
    after = quantize(graph(BETWEEN.format(norm=norm)), activations=activations).graph
    assert [n.op.name for n in after.nodes if not n.output.type.is_quantized] == ["dequantize"]
    assert all(not v.type.is_quantized for v in after.producers["z"].operands[1:])


@pytest.mark.parametrize(
    ("body", "returned"),
    [
        ("%z: f32[1x4x8] = layer_norm{shape=(8,)}(%x) %y: f32[1x4x8] = linear(%z, %w)", "%y"),
        ("%l: f32[1x4x8] = linear(%x, %w) %z: f32[1x4x8] = layer_norm{shape=(8,)}(%l)", "%z"),
        (
            "%l: f32[1x4x8] = linear(%x, %w) %z: f32[1x4x8] = layer_norm{shape=(8,)}(%l)"
            " %y: f32[1x4x8] = log_softmax{axis=2}(%z)",
            "%y",
        ),
        (
            "%l: f32[1x4x8] = linear(%x, %w) %z: f32[1x4x8] = layer_norm{shape=(8,)}(%l)"
            " %v: f32[1x4x8] = layer_norm{shape=(8,)}(%z, %n)",
            "%v",
        ),
    ],
    ids=["of the input", "of the output", "before a float", "before a norm in float"],
)
def test_a_norm_beside_floats_stays_in_float(body: str, returned: str) -> None:
    result = quantize(graph(body, returned=returned))
    assert not result.graph.producers["z"].output.type.is_quantized
    assert reason(result, "z") == "its operand is a float, or its result is read as one"


PRE_NORM = """%z: f32[1x4x8] = layer_norm{shape=(8,)}(%x, %n, %m)
  %l: f32[1x4x8] = linear(%z, %w)
  %s: f32[1x4x8] = add(%x, %l)
  %y: f32[1x4x8] = rms_norm{shape=(8,)}(%s, %n)"""


@pytest.mark.parametrize(
    ("options", "integers"),
    [
        ({}, []),
        ({"residual": "int16"}, ["z"]),
        ({"outputs": "int16"}, ["y"]),
        ({"residual": "int16", "outputs": "int16"}, ["z", "y"]),
        ({"activations": "int16"}, ["z", "y"]),
    ],
    ids=["eight bits", "input", "output", "both", "all"],
)
def test_a_norm_beside_inputs_and_outputs_of_sixteen_bits_computes_on_integers(
    options: dict[str, str], integers: list[str]
) -> None:
    after = quantize(graph(PRE_NORM), **options).graph
    assert [name for name in ("z", "y") if after.producers[name].output.type.is_quantized] == integers


def test_movement_and_other_norms_may_be_between() -> None:
    body = """%l: f32[1x4x8] = linear(%x, %w)
  %r: f32[1x8x4] = permute{order=(0, 2, 1)}(%l)
  %z: f32[1x8x4] = layer_norm{shape=(4,)}(%r)
  %v: f32[1x8x4] = rms_norm{shape=(4,)}(%z)
  %s: f32[1x4x8] = permute{order=(0, 2, 1)}(%v)
  %y: f32[1x4x8] = linear(%s, %w)"""
    after = quantize(graph(body)).graph
    assert after.producers["z"].output.type.is_quantized and after.producers["v"].output.type.is_quantized


def test_a_norm_that_adds_to_the_root_stays_in_float() -> None:
    result = quantize(graph(BETWEEN.format(norm="layer_norm{shape=(8,), root_eps=0.1}(%l)")))
    assert not result.graph.producers["z"].output.type.is_quantized
    assert "adds to the root" in reason(result, "z")
