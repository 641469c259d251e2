"""Norms on nearly constant rows, where the rounding error of the mean would be the whole result."""

from collections.abc import Callable

import pytest
import torch

from fxpress.ir import parse, run

Inspect = Callable[..., object]
LAYER_NORM = """
graph(%x: f32[3x12]) {
  %y: f32[3x12] = layer_norm{shape=(12,), eps=1e-12}(%x)
  return y: %y
}"""


@pytest.mark.parametrize("number", [0.1, -0.7, 1e6 / 3])
def test_a_constant_row_is_normalized_to_zero(number: float, assert_equal_to_interpreter: Inspect) -> None:
    graph, x = parse(LAYER_NORM), torch.full((3, 12), number)
    assert run(graph, [x])[0].abs().max() == 0
    assert_equal_to_interpreter(graph, inputs=[[x]], tolerance=0.0)
