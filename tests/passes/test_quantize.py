"""Post-training quantization of small networks."""

from __future__ import annotations

import torch

from fxpress.ir import Graph, Value, parse, run, run_integer
from fxpress.passes import Context, find_pass
from fxpress.passes.base import PassResult
from fxpress.specs.options import FuseOptions, QuantizeOptions


def fill(value: Value) -> torch.Tensor:
    generator = torch.Generator().manual_seed(len(value.name))
    return torch.randn(value.type.shape, generator=generator) / 3


SMALL_CNN = """
graph(%x: f32[1x3x8x8]) {
  const %w1: f32[8x3x3x3]
  const %b1: f32[8]
  const %w2: f32[5x128]
  const %b2: f32[5]
  %c: f32[1x8x8x8] = conv{padding=(1, 1, 1, 1)}(%x, %w1, %b1)
  %r: f32[1x8x8x8] = relu(%c)
  %p: f32[1x8x4x4] = max_pool(%r)
  %f: f32[1x128] = reshape{shape=(-1, 128)}(%p)
  %y: f32[1x5] = linear(%f, %w2, %b2)
  return output: %y
}"""


def samples(graph: Graph, count: int) -> list[tuple[torch.Tensor, ...]]:
    generator = torch.Generator().manual_seed(1)
    return [tuple(torch.randn(v.type.shape, generator=generator) for v in graph.inputs) for _ in range(count)]


def quantize(graph: Graph, **options: object) -> PassResult:
    fused = find_pass("fuse")(graph, FuseOptions()).graph
    context = Context(calibration=samples(graph, 40))
    return find_pass("quantize")(fused, QuantizeOptions.model_validate(options), context)


def signal_to_noise_db(real: torch.Tensor, other: torch.Tensor) -> float:
    return float(10 * torch.log10(real.square().sum() / (real - other).square().sum()))


def test_a_small_network_computes_on_integers_near_the_float_network() -> None:
    before = parse(SMALL_CNN, fill=fill)
    after = quantize(before).graph
    assert [n.op.name for n in after.nodes] == [
        "quantize",
        "conv",
        "max_pool",
        "reshape",
        "linear",
        "dequantize",
    ]
    outputs = [(run(before, x)[0], run_integer(after, x)[0]) for x in samples(before, 20)]
    real, integer = (torch.cat(t) for t in zip(*outputs, strict=True))
    assert signal_to_noise_db(real, integer) > 30


def test_data_movement_shares_one_grid_on_both_sides() -> None:
    after = quantize(parse(SMALL_CNN, fill=fill)).graph
    grids = {v.type.quantization for n in after.nodes[1:4] for v in n.outputs}
    assert len(grids) == 1
