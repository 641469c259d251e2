"""Kernels on values far from zero, whose zero point is no integer of their own."""

from collections.abc import Callable

import pytest
import torch

from fxpress.ir import Graph, IRError, parse
from fxpress.specs.target import Target

Inspect = Callable[..., object]

NEAR, FAR = ("zero=-3>", "zero=6>"), ("zero=-2500>", "zero=900>")


def moved(text: str) -> str:
    for near, far in zip(NEAR, FAR, strict=True):
        text = text.replace(near, far)
    return text


def is_sound(graph: Graph) -> bool:
    try:
        for node in graph.nodes:
            node.op.check_quantized(node.operand_types, node.output_types)
    except IRError:  # an accumulator that could overflow, or padding without a zero
        return False
    return True


@pytest.mark.parametrize("dsp", [False, True])
def test_kernels_take_zero_points_outside_of_their_integers(
    operator_cases: dict[str, str],
    assert_equal_to_interpreter: Inspect,
    cortex_m4: Target,
    host: Target,
    join: Callable[[dict[str, str]], Graph],
    dsp: bool,
) -> None:
    texts = {
        name: moved(text)
        for name, text in operator_cases.items()
        if "f32" not in text and "i16" not in text and "= pad" not in text and "padding" not in text
    }
    sound = {name: text for name, text in texts.items() if is_sound(parse(text))}
    changed = [name for name in sound if sound[name] != operator_cases[name]]
    assert len(changed) > 20
    graph = join({name: sound[name] for name in changed})
    assert_equal_to_interpreter(graph, target=cortex_m4 if dsp else host, seeds=2)


def test_an_input_far_from_zero_is_quantized_without_saturating_first(
    assert_equal_to_interpreter: Inspect,
) -> None:
    graph = parse("""
graph(%x: f32[1x64]) {
  %q: i8[1x64]<scale=0.05, zero=-2500> = quantize(%x)
  %y: f32[1x64] = dequantize(%q)
  return y: %y, again: %x
}""")
    x = torch.linspace(118, 132, 64).view(1, 64)
    assert_equal_to_interpreter(graph, inputs=[[x]])
