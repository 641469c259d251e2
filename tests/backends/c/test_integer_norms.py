"""Networks with norms, quantized: the C gives every byte of the integer graph, and shares functions between calls."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fxpress.backends.c import CArtifact
from fxpress.ir import Graph, parse
from fxpress.ir.testing import drawn_constant, drawn_samples
from fxpress.passes import Context, find_pass
from fxpress.specs.options import QuantizeOptions
from fxpress.specs.target import Target

ENCODER = """
graph(%x: f32[1x6x16]) {
  const %w: f32[16x16]
  const %v: f32[16x16]
  const %n: f32[16]
  const %m: f32[16]
  %a: f32[1x6x16] = linear(%x, %w)
  %b: f32[1x6x16] = add(%a, %x)
  %c: f32[1x6x16] = layer_norm{shape=(16,), eps=1e-12}(%b, %n, %m)
  %d: f32[1x6x16] = relu(%c)
  %e: f32[1x6x16] = linear(%d, %w)
  %f: f32[1x6x16] = add(%e, %c)
  %g: f32[1x6x16] = layer_norm{shape=(16,), eps=1e-12}(%f, %n, %m)
  %h: f32[1x6x16] = rms_norm{shape=(16,)}(%g, %m)
  %y: f32[1x6x16] = linear(%h, %v)
  return y: %y
}"""


def quantized(activations: str) -> Graph:
    graph = parse(ENCODER, fill=drawn_constant)
    options = QuantizeOptions.model_validate({"activations": activations})
    return find_pass("quantize")(graph, options, Context(calibration=drawn_samples(graph, 20))).graph


@pytest.mark.parametrize("activations", ["int8", "int16"])
def test_a_network_of_norms_gives_the_bytes_of_the_interpreter(
    activations: str, cortex_m4: Target, assert_equal_to_interpreter: Callable[..., CArtifact]
) -> None:
    graph = quantized(activations)
    norms = [node for node in graph.nodes if node.op.name.endswith("_norm")]
    assert len(norms) == 3 and all(node.output.type.is_quantized for node in norms)
    for target in (None, cortex_m4):
        assert_equal_to_interpreter(graph, target=target, seeds=20, tolerance=0.0)


def test_calls_of_one_norm_share_its_parameters_and_its_function(
    cortex_m4: Target, assert_equal_to_interpreter: Callable[..., CArtifact]
) -> None:
    artifact = assert_equal_to_interpreter(quantized("int8"), target=cortex_m4)
    arrays = [array.symbol.split("_")[1] for array in artifact.source.arrays]
    functions = [f.symbol.rpartition("_")[0] for f in artifact.source.functions]
    assert [arrays.count(role) for role in ("weights", "parameters", "numbers")] == [1, 2, 3]
    assert functions.count("net_layer_norm") == 1
