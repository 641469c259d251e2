"""Outliers of activations that move into weights."""

import pytest
import torch
from torch import Tensor

from fxpress.ir import Graph, parse, run
from fxpress.passes import MissingNeedError, quantize, smooth, weight_only
from fxpress.passes.base import Context
from fxpress.specs import layer_matches

TEXT = """
graph(%x: f32[1x5x16]) {
  const %g: f32[16]
  const %b: f32[16]
  const %up: f32[32x16]
  const %up_bias: f32[32]
  const %down: f32[16x32]
  %n: f32[1x5x16] = layer_norm{shape=(16,), eps=1e-05}(%x, %g, %b)
  %u: f32[1x5x32] = linear{clamp=(0.0, inf)}(%n, %up, %up_bias)   # "up", "net.py:1"
  %d: f32[1x5x16] = linear(%u, %down)   # "down", "net.py:2"
  return output: %d
}"""


def network() -> Graph:
    """A norm with two loud channels, which a layer reads with small weights."""
    generator = torch.Generator().manual_seed(0)
    graph = parse(TEXT, fill=lambda v: torch.randn(v.type.shape, generator=generator) / 4)
    loud = torch.ones(16)
    loud[[3, 11]] = 60.0
    return graph.with_params({"g": loud, "up": graph.params["up"] / loud.sqrt()})


def samples(count: int, seed: int = 0) -> list[tuple[Tensor, ...]]:
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(1, 5, 16, generator=generator),) for _ in range(count)]


CONTEXT = Context(calibration=samples(16), selects=layer_matches)


@pytest.mark.parametrize("strength", [0.0, 0.3, 0.5, 1.0])
def test_the_function_is_kept(strength: float) -> None:
    graph = network()
    smoothed = smooth(graph, strength=strength, context=CONTEXT).graph
    (x,) = samples(1, 5)
    torch.testing.assert_close(run(smoothed, x), run(graph, x), rtol=1e-4, atol=1e-4)
    assert not torch.equal(smoothed.params["up"], graph.params["up"])


def test_channels_of_the_inputs_have_ranges_more_alike() -> None:
    rows = smooth(network(), context=CONTEXT).report.table("inputs").rows
    assert [row[0] for row in rows] == ["up", "down"]
    assert all(after < before for *_, before, after in rows)
    (first, *_) = smooth(network(), strength=1.0, context=CONTEXT).report.table("inputs").rows
    assert first[-1] == pytest.approx(1.0)


@pytest.mark.parametrize("way", ["static", "per token"])
def test_int8_activations_lose_less(way: str) -> None:
    def error(graph: Graph) -> float:
        stored = (
            quantize(graph, context=CONTEXT).graph
            if way == "static"
            else weight_only(graph, weights="int8").graph
        )
        return sum(float((run(stored, x)[0] - run(network(), x)[0]).norm()) for x in samples(8, 7))

    assert error(smooth(network(), context=CONTEXT).graph) < 0.7 * error(network())


def test_layers_that_are_kept_and_inputs_without_a_place_are_reported() -> None:
    result = smooth(network(), keep=("up",), context=CONTEXT)
    assert torch.equal(result.graph.params["g"], network().params["g"])
    assert result.report.declined["smooth"] == {"the spec keeps one of the layers": 1}
    bare = parse(
        "graph(%x: f32[1x4]) {\n  const %w: f32[2x4]\n  %y: f32[1x2] = linear(%x, %w)\n  return output: %y\n}",
        fill=lambda v: torch.ones(v.type.shape),
    )
    report = smooth(bare, context=Context(calibration=[(torch.ones(1, 4),)])).report
    assert report.declined["smooth"] == {"it is an input or a constant": 1}


def test_it_needs_samples() -> None:
    with pytest.raises(MissingNeedError, match="calibration"):
        smooth(network())
