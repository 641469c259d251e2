"""Preparation before kernels are chosen: a linear layer on a flattened image reads it as memory has it."""

from collections.abc import Callable

import pytest
import torch

from fxpress.backends.c import CArtifact, predict
from fxpress.ir import Value, parse, run_integer
from fxpress.specs.target import Target

FLATTENED = """graph(%x: i8[1x3x6x6]<scale=0.0625, zero=-3>) {{
  const %w: i8[4x3x3x3]<scale=0.0078125, zero=0>
  const %b: i32[4]<scale=0.00048828125, zero=0>
  const %v: i8[5x64]<scale=0.0078125, zero=0>
  const %d: i32[5]<scale=0.001953125, zero=0>
  %c: i8[1x4x4x4]<scale=0.25, zero=6> = conv(%x, %w, %b)
  %f: i8[{rows}64]<scale=0.25, zero=6> = reshape{{shape=({shape}64,)}}(%c)
  %y: i8[{rows}5]<scale=0.5, zero=1> = linear(%f, %v, %d)
  return output: %y
}}"""


@pytest.mark.parametrize(("rows", "shape"), [("1x", "1, "), ("", "")])
def test_a_flattened_image_is_not_copied(
    rows: str,
    shape: str,
    cortex_m4: Target,
    fill: Callable[[Value], torch.Tensor],
    draw: Callable[[Value, int], torch.Tensor],
    assert_equal_to_interpreter: Callable[..., CArtifact],
) -> None:
    graph = parse(FLATTENED.format(rows=rows, shape=shape), fill=fill)
    operators = [node.operator for node in predict(graph, cortex_m4).nodes if node.code_bytes]
    assert operators == ["conv", "linear"]
    emitted = assert_equal_to_interpreter(graph).graph
    x = draw(graph.inputs[0], 0)
    assert torch.equal(run_integer(emitted, [x])[0], run_integer(graph, [x])[0])
