"""Scales of input channels, folded into the producers of the inputs of linear layers."""

import pytest
import torch
from torch import Tensor

from fxpress.ir import Builder, Graph, TensorType, parse, run
from fxpress.ir.ops.binary import Mul
from fxpress.ir.ops.linear import Linear
from fxpress.ir.ops.norm import LayerNorm, RmsNorm
from fxpress.passes import PassResult
from fxpress.passes.base import Context
from fxpress.passes.channel_scales import NoSite, Site, find_sites
from fxpress.passes.weight_only import weight_only
from fxpress.specs.options import WeightOnlyOptions

GENERATOR = torch.Generator().manual_seed(0)
LOUD = torch.where(torch.arange(32) % 8 == 0, 12.0, 1.0)


def block(norm: LayerNorm | RmsNorm, dtype: torch.dtype = torch.float32) -> Graph:
    """A norm whose output has loud channels, read by gate and up, whose product a third layer reads."""
    generator = torch.Generator().manual_seed(1)

    def weight(*shape: int) -> Tensor:
        return (torch.randn(shape, generator=generator) / shape[-1] ** 0.5).to(dtype)

    builder = Builder()
    x = builder.input("x", TensorType((1, 6, 32)) if dtype is torch.float32 else _half((1, 6, 32)))
    parameters = [builder.constant("norm.weight", LOUD.to(dtype))]
    if isinstance(norm, LayerNorm):
        parameters.append(builder.constant("norm.bias", torch.linspace(-1, 1, 32).to(dtype)))
    y = builder.add(norm, x, *parameters)
    gate = builder.add(Linear(clamp=(0.0, float("inf"))), y, builder.constant("gate.weight", weight(64, 32)))
    up = builder.add(
        Linear(), y, builder.constant("up.weight", weight(64, 32)), builder.constant("up.bias", weight(64))
    )
    y = builder.add(Mul(), gate, up)
    return builder.build([builder.add(Linear(), y, builder.constant("down.weight", weight(32, 64)))])


def _half(shape: tuple[int, ...]) -> TensorType:
    return TensorType.of(torch.zeros(shape, dtype=torch.bfloat16))


def samples(count: int, seed: int = 0) -> list[tuple[Tensor, ...]]:
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(1, 6, 32, generator=generator),) for _ in range(count)]


def compress(graph: Graph, **options: object) -> PassResult:
    settings = WeightOnlyOptions.model_validate({"activations": "float32", **options})
    return weight_only(graph, settings, Context(calibration=samples(32)))


NORMS = [LayerNorm((32,), 1e-5), RmsNorm((32,), 1e-5)]


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("seed", range(4))
def test_scales_that_move_keep_the_function(norm: LayerNorm | RmsNorm, seed: int) -> None:
    graph = block(norm)
    generator = torch.Generator().manual_seed(seed)
    sites = [site for site in find_sites(graph) if isinstance(site, Site)]
    assert [[v.name for v in site.weights] for site in sites] == [
        ["gate.weight", "up.weight"],
        ["down.weight"],
    ]
    moved = graph
    for site in sites:
        scale = torch.exp(3 * torch.randn(site.value.type.shape[-1], generator=generator))
        moved = moved.with_params(site.scaled(moved, scale))
    (x,) = samples(1, seed)
    torch.testing.assert_close(run(moved, x), run(graph, x), rtol=1e-4, atol=1e-4)
    assert not torch.equal(moved.params["down.weight"], graph.params["down.weight"])


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("bits", ["int4", "int3", "int2"])
def test_the_error_is_never_above_that_of_rounding_to_nearest(norm: LayerNorm | RmsNorm, bits: str) -> None:
    rows = compress(block(norm), weights=bits, rounding="awq").report.table("awq").rows
    assert len(rows) == 2
    assert all(error <= nearest for _, _, nearest, error in rows)


def test_loud_channels_lose_less_and_at_no_cost_in_bytes() -> None:
    graph = block(NORMS[1])
    nearest, awq = (compress(graph, weights="int3", rounding=kind) for kind in ("nearest", "awq"))
    held_out = samples(16, seed=9)

    def error(result: PassResult) -> float:
        return sum(float((run(result.graph, x)[0] - run(graph, x)[0]).square().sum()) for x in held_out)

    assert error(awq) < 0.8 * error(nearest)
    assert nearest.report.table("weights").rows[0][4] == awq.report.table("weights").rows[0][4]


def test_it_combines_with_gptq() -> None:
    graph = block(NORMS[1])
    both = compress(graph, weights="int3", rounding={"kind": "awq", "then": "gptq"})
    alone = compress(graph, weights="int3", rounding="awq")
    assert not torch.equal(both.graph.params["gate.weight"], alone.graph.params["gate.weight"])


REFUSED = """
graph(%x: f32[1x8], %z: f32[1x8]) {
  const %a: f32[8x8]
  const %b: f32[8x8]
  const %g: f32[8]
  const %c: f32[8x8]
  const %d: f32[8x8]
  const %e: f32[8x8]
  %xa: f32[1x8] = linear(%x, %a)
  %t: f32[1x8] = tanh(%xa)
  %tb: f32[1x8] = linear(%t, %b)
  %n: f32[1x8] = rms_norm{shape=(8,), eps=1e-05}(%tb, %g)
  %nc: f32[1x8] = linear(%n, %c)
  %r: f32[1x8] = add(%n, %nc)
  %m: f32[1x8] = rms_norm{shape=(8,), eps=1e-05}(%r)
  %me: f32[1x8] = linear(%m, %e)
  %md: f32[1x8] = linear(%me, %d)
  %mdd: f32[1x8] = linear(%md, %d)
  return output: %mdd
}"""


def test_layers_whose_input_takes_no_factor_are_named_with_the_reason() -> None:
    graph = parse(REFUSED, fill=lambda v: torch.randn(v.type.shape, generator=GENERATOR))
    reasons = [site.reason for site in find_sites(graph) if isinstance(site, NoSite)]
    assert reasons == [
        "it is an input or a constant",
        "tanh computes it, and does not propagate a factor",
        "other operators read it, too, or it is an output",
        "rms_norm computes it, without a weight",
        "a weight of its readers is shared, or not float",
        "a weight of its readers is shared, or not float",
    ]
    calibration = [(torch.randn(1, 8, generator=GENERATOR),) * 2 for _ in range(8)]
    options = WeightOnlyOptions.model_validate({"rounding": "awq"})
    report = weight_only(graph, options, Context(calibration=calibration)).report
    assert report.declined["awq"] == {f"no scales: {reason}": reasons.count(reason) for reason in reasons}
