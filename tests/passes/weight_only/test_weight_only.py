"""Weights as integers, activations as they are."""

import pytest
import torch

from fxpress.ir import Builder, DType, Graph, TensorType, parse, run, run_integer, verify
from fxpress.ir.ops.embedding import Embedding
from fxpress.ir.ops.linear import Linear
from fxpress.passes import PassError, PassResult
from fxpress.passes.base import Context
from fxpress.passes.weight_only.groupwise import nearest_group_size, quantize_groupwise
from fxpress.passes.weight_only.weight_storage import weight_only
from fxpress.specs import layer_matches
from fxpress.specs.options import WeightOnlyOptions


def tied_graph() -> Graph:
    """An embedding [32, 64] whose table is also the weight of the last layer, and a layer between."""
    generator = torch.Generator().manual_seed(3)
    builder = Builder()
    tokens = builder.input("tokens", TensorType((1, 5), DType.I64))
    table = builder.constant("table", torch.randn(32, 64, generator=generator))
    weight = builder.constant("middle.weight", torch.randn(64, 64, generator=generator))
    x = builder.add(Embedding(), tokens, table)
    x = builder.add(Linear(), x, weight)
    return builder.build([builder.add(Linear(), x, table)])


def compress(graph: Graph, **options: object) -> PassResult:
    return weight_only(graph, WeightOnlyOptions.model_validate(options), Context(selects=layer_matches))


TOKENS = [torch.tensor([[0, 31, 7, 7, 2]])]


def test_a_tied_weight_is_stored_once_and_read_twice() -> None:
    graph = compress(tied_graph()).graph
    quantized = [value for value in graph.constants if value.type.is_quantized]
    assert len(quantized) == 2
    assert [node.op.name for node in graph.nodes].count("dequantize") == 2
    assert len(graph.constants) == 2


@pytest.mark.parametrize("group_size", [None, 16, 32])
def test_both_interpreters_agree_on_integer_weights(group_size: int | None) -> None:
    graph = verify(compress(tied_graph(), group_size=group_size).graph)
    torch.testing.assert_close(run(graph, TOKENS), run_integer(graph, TOKENS), rtol=1e-6, atol=1e-5)


def test_error_falls_as_bits_rise_and_as_groups_shrink() -> None:
    def error(**options: object) -> float:
        result = compress(tied_graph(), **options)
        return float((run(result.graph, TOKENS)[0] - run(tied_graph(), TOKENS)[0]).norm())

    by_bits = [error(weights=name) for name in ("int2", "int4", "int8")]
    assert by_bits == sorted(by_bits, reverse=True)
    assert error(weights="int4", group_size=8) < error(weights="int4", group_size=None)


def test_a_layer_may_keep_its_floats_or_more_bits() -> None:
    graph = parse(
        """
graph(%x: f32[1x8]) {
  const %a.weight: f32[8x8]
  const %b.weight: f32[8x8]
  %y: f32[1x8] = linear(%x, %a.weight)   # "a", "net.py:1"
  %z: f32[1x8] = linear(%y, %b.weight)   # "b", "net.py:2"
  return output: %z
}""",
        fill=lambda value: torch.linspace(-1, 1, 64).view(value.type.shape),
    )
    result = compress(graph, layers={"a": "float32", "b": "int8"})
    bits = {v.name: v.type.quantization and v.type.quantization.bits for v in result.graph.constants}
    assert sorted(bits.values(), key=str) == [8, None]
    assert [d.applied for d in result.report.decisions] == [False, True]


def test_bytes_of_the_report_are_those_of_integers_and_scales() -> None:
    rows = compress(tied_graph(), weights="int4", group_size=32).report.table("weights").rows
    assert [row[4] for row in rows] == [32 * 64 // 2 + 2 * 64, 64 * 64 // 2 + 2 * 128]


def test_a_group_that_does_not_divide_gives_way_to_the_nearest_that_does() -> None:
    assert nearest_group_size(172, 32) == 43
    assert nearest_group_size(64, 32) == 32
    assert nearest_group_size(64, None) == 64
    assert nearest_group_size(7, 32) == 7


def test_weights_on_the_grid_stay_as_they_are() -> None:
    weight = torch.randint(-7, 8, (4, 32), generator=torch.Generator().manual_seed(0)).float()
    weight[:2, ::16], weight[2:, ::16] = -8.0, 8.0
    weight[2:] *= 0.5
    integers, grid = quantize_groupwise(weight, bits=4, group_size=16, observer="minmax")
    assert torch.equal(grid.dequantize(integers), weight)


def test_a_group_of_zeros_has_a_scale() -> None:
    integers, grid = quantize_groupwise(torch.zeros(2, 32), bits=4, group_size=16)
    assert not integers.any() and all(scale > 0 for scale in grid.scale)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_least_squares_are_no_worse_than_any_of_300_scales(bits: int, dtype: torch.dtype) -> None:
    weight = torch.randn(64, 32, generator=torch.Generator().manual_seed(bits))
    integers, grid = quantize_groupwise(weight, bits=bits, group_size=32, dtype=dtype)
    assert grid.scale.dtype.torch is dtype
    found = (grid.dequantize(integers) - weight).square().sum()
    lowest = -(1 << (bits - 1))
    unit = weight.gather(1, weight.abs().argmax(1, keepdim=True)) / lowest
    scales = torch.linspace(0.2, 1.2, 300)[:, None, None] * unit
    errors = ((weight / scales).round().clamp(lowest, -lowest - 1) * scales - weight).square().sum(-1)
    assert found <= 1.15 * errors.amin(0).sum()


@pytest.mark.parametrize("factor", [1e-8, 1e-5, 1e6])
def test_scales_of_half_precision_are_never_zero_or_infinite(factor: float) -> None:
    weight = torch.randn(4, 32, generator=torch.Generator().manual_seed(0)) * factor
    integers, grid = quantize_groupwise(weight, bits=4, group_size=32)
    assert grid.dequantize(integers).isfinite().all()


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_a_sign_of_the_scale_gives_the_largest_weight_the_lowest_level(bits: int) -> None:
    """The squared error falls by 37, 30 and 19 % against symmetric integers (a bound of 25, 20, 12 here)."""
    weight = torch.randn(256, 32, generator=torch.Generator().manual_seed(0))
    integers, grid = quantize_groupwise(weight, bits=bits, group_size=32, dtype=torch.float32)
    found = (grid.dequantize(integers) - weight).square().sum()
    largest = (1 << (bits - 1)) - 1
    scales = torch.linspace(0.2, 1.2, 300)[:, None, None] * weight.abs().amax(1, keepdim=True) / largest
    errors = ((weight / scales).round().clamp(-largest, largest) * scales - weight).square().sum(-1)
    assert found < {2: 0.75, 3: 0.8, 4: 0.88}[bits] * errors.amin(0).sum()


def test_a_graph_without_weights_is_refused() -> None:
    graph = parse("graph(%x: f32[1x8]) {\n  %y: f32[1x8] = relu(%x)\n  return output: %y\n}")
    with pytest.raises(PassError, match="no linear layer, embedding"):
        compress(graph)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_minmax_reaches_the_largest_weight_at_every_width(bits: int) -> None:
    weight = torch.randn(4, 32, generator=torch.Generator().manual_seed(0))
    _, grid = quantize_groupwise(weight, bits=bits, group_size=None, observer="minmax", dtype=torch.float32)
    largest = weight.abs().amax(1) / 2 ** (bits - 1)
    torch.testing.assert_close(grid.scale.tensor().abs(), largest)


PRODUCTS = """
graph(%x: ELEMENT[1x3x16]) {
  const %c.weight: ELEMENT[16x32]
  const %w: ELEMENT[32x8]
  const %experts: ELEMENT[4x8x16]
  const %others: ELEMENT[4x12x16]
  const %q: ELEMENT[12x8]
  const %gain: ELEMENT[3x8]
  %t: ELEMENT[32x16] = permute{order=(1, 0)}(%c.weight)
  %a: ELEMENT[1x3x32] = linear(%x, %t)
  %b: ELEMENT[1x3x8] = matmul(%a, %w)
  %d: ELEMENT[4x3x16] = matmul(%b, %experts)
  %u: ELEMENT[4x16x12] = permute{order=(0, 2, 1)}(%others)
  %e: ELEMENT[4x3x12] = matmul(%d, %u)
  %f: ELEMENT[4x3x8] = torch_call{call="aten.einsum.default('etd,dk->etk', [x0, x1])"}(%e, %q)
  %y: ELEMENT[4x3x8] = mul(%f, %gain)
  return output: %y
}
"""


def products(element: str) -> Graph:
    generator = torch.Generator().manual_seed(0)
    return parse(
        PRODUCTS.replace("ELEMENT", element),
        fill=lambda v: torch.randn(v.type.shape, generator=generator).to(v.type.dtype.torch),
    )


@pytest.mark.parametrize("element", ["f32", "bf16", "f16"])
def test_weights_of_every_product_and_element_type_become_integers(element: str) -> None:
    graph = products(element)
    result = compress(graph, weights="int8", group_size=8)
    weights = {"c.weight", "w", "experts", "others", "q"}
    assert {d.name for d in result.report.decisions if d.applied} == weights
    assert {v.name for v in result.graph.constants if v.type.is_quantized} >= {"w", "experts"}
    x = [
        torch.randn(1, 3, 16, generator=torch.Generator().manual_seed(1)).to(graph.inputs[0].type.dtype.torch)
    ]
    (found,), (expected,) = run(verify(result.graph), x), run(graph, x)
    assert found.dtype is expected.dtype
    assert float((found - expected).norm() / expected.norm()) < 0.03


def test_a_matrix_that_stays_float_has_a_decision_with_bytes_and_reason() -> None:
    result = compress(products("f32"), weights="int8", group_size=8)
    (kept,) = [d for d in result.report.decisions if not d.applied]
    assert kept.name == "gain"
    assert kept.reason == "stays float, 96 bytes: mul reads it, which is not a matrix product or embedding"


@pytest.mark.parametrize("factor", [1e-12, 1e-7, 1e8])
def test_scales_beyond_half_precision_are_stored_in_single_precision(factor: float) -> None:
    weight = torch.randn(8, 32, generator=torch.Generator().manual_seed(0)) * factor
    integers, grid = quantize_groupwise(weight, bits=8, group_size=32)
    assert grid.scale.dtype is DType.F32
    assert float((grid.dequantize(integers) - weight).norm() / weight.norm()) < 0.02


def test_a_group_of_zeros_adds_nothing_to_large_inputs() -> None:
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(0))
    weight[:, :32] = 0
    integers, grid = quantize_groupwise(weight, bits=4, group_size=32)
    assert float((grid.dequantize(integers.float() + 0.5) - weight)[:, :32].abs().max()) < 1e-6


def test_products_that_no_kernel_computes_are_named() -> None:
    notes = compress(products("f32"), weights="int8", group_size=8).report.warnings
    (slow,) = [note for note in notes if "dequantized in each call" in note]
    assert "experts" in slow or "more" in slow
    assert not [n for n in compress(tied_graph()).report.warnings if "dequantized" in n]
