"""Zero points without data."""

import pytest
import torch

from fxpress.backends.torch_module import to_module
from fxpress.ir import dump, parse, run, run_integer, verify
from fxpress.passes.base import Context
from fxpress.passes.weight_only import weight_only
from fxpress.passes.weight_only.groupwise import quantize_groupwise
from fxpress.passes.weight_only.hqq import quantize_by_hqq
from fxpress.specs.options import WeightOnlyOptions

TEXT = """
graph(%x: f32[3x64], %i: i64[3]) {
  const %a: f32[24x64]
  const %b: f32[24x86]
  const %table: f32[10x64]
  %e: f32[3x64] = embedding(%i, %table)
  %s: f32[3x64] = add(%x, %e)
  %xa: f32[3x24] = linear(%s, %a)
  %y: f32[3x86] = matmul(%xa, %b)
  return output: %y
}"""


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("group_size", [32, None])
def test_skewed_weights_lose_less_than_without_zero_points(bits: int, group_size: int | None) -> None:
    weight = torch.rand(24, 64, generator=torch.Generator().manual_seed(bits)) + 0.5

    integers, encoding = quantize_by_hqq(weight, bits=bits, group_size=group_size)
    encoding.check((24, 64))
    assert integers.min() >= encoding.qmin and integers.max() <= encoding.qmax
    error = (encoding.dequantize(integers) - weight).norm()
    integers, encoding = quantize_groupwise(weight, bits=bits, group_size=group_size)
    assert error < 0.75 * (encoding.dequantize(integers) - weight).norm()


@pytest.mark.parametrize("factor", [0.0, 1e-8, 1e6])
def test_extreme_weights_stay_finite(factor: float) -> None:
    weight = torch.randn(4, 32, generator=torch.Generator().manual_seed(0)) * factor
    integers, encoding = quantize_by_hqq(weight, bits=4, group_size=16)
    error = (encoding.dequantize(integers) - weight).norm()
    assert error <= 0.2 * weight.norm() + 1e-6


@pytest.mark.parametrize("weights", ["int4", "int3", "int8"])
def test_the_emitted_module_makes_the_reals_of_codes_and_zero_points(weights: str) -> None:
    generator = torch.Generator().manual_seed(0)
    graph = parse(TEXT, fill=lambda v: torch.rand(v.type.shape, generator=generator) - 0.2)
    options = WeightOnlyOptions.model_validate(
        {"weights": weights, "rounding": "hqq", "activations": "float32"}
    )
    result = weight_only(graph, options, Context())
    stored = verify(result.graph)
    assert parse(dump(stored), params=stored.params) == stored
    inputs = [torch.randn(3, 64, generator=generator), torch.tensor([0, 9, 4])]
    expected = run(stored, inputs)
    torch.testing.assert_close(run_integer(stored, inputs), expected, rtol=1e-5, atol=1e-5)
    module = to_module(stored)
    torch.testing.assert_close(module(*inputs), expected[0], rtol=1e-5, atol=1e-5)
    size = sum(t.numel() * t.element_size() for t in module.state_dict().values())
    assert size == dict(result.report.table("summary").rows)["weight_bytes_after"]
