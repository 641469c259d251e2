"""Number formats with levels in a table."""

import pytest
import torch

from fxpress.backends.torch_module import to_module
from fxpress.ir import LazyTensor, dump, parse, run, run_integer, verify
from fxpress.passes.base import Context
from fxpress.passes.weight_only import weight_only
from fxpress.passes.weight_only.groupwise import quantize_groupwise
from fxpress.passes.weight_only.number_formats import FORMATS, quantize_to_format
from fxpress.specs import SpecError, layer_matches
from fxpress.specs.options import WeightOnlyOptions
from fxpress.specs.write import read_values

TEXT = """
graph(%x: f32[3x64], %i: i64[3]) {
  const %a: f32[24x64]
  const %b: f32[6x24]
  const %table: f32[10x64]
  %e: f32[3x64] = embedding(%i, %table)
  %s: f32[3x64] = add(%x, %e)
  %xa: f32[3x24] = linear(%s, %a)   # "first", "net.py:1"
  %y: f32[3x6] = linear(%xa, %b)   # "last", "net.py:2"
  return output: %y
}"""


def test_levels_are_those_of_the_formats() -> None:
    assert {name: (format.bits, len(format.levels)) for name, format in FORMATS.items()} == {
        "nf4": (4, 16),
        "fp8_e4m3": (8, 253),
        "mxfp4": (4, 15),
    }
    nf4 = FORMATS["nf4"].levels
    assert nf4[0] == -1 and nf4[7] == 0 and nf4[15] == 1
    assert float(nf4[1]) == pytest.approx(-0.6962, abs=1e-4)  # of QLoRA
    assert float(nf4[14]) == pytest.approx(0.7230, abs=1e-4)
    codes = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    assert torch.equal(FORMATS["fp8_e4m3"].levels, codes[codes.isfinite()].unique())
    assert FORMATS["mxfp4"].levels[7:].tolist() == [0, 0.5, 1, 1.5, 2, 3, 4, 6]


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("observer", ["minmax", "mse"])
@pytest.mark.parametrize("factor", [0.0, 1e-6, 1.0, 1e5])
def test_a_normal_weight_loses_little_at_any_size(name: str, observer: str, factor: float) -> None:
    weight = torch.randn(48, 64, generator=torch.Generator().manual_seed(0)) * factor
    codes, encoding = quantize_to_format(weight, FORMATS[name], group_size=32, observer=observer)  # type: ignore[arg-type]
    encoding.check((48, 64))
    assert codes.dtype is torch.uint8 and codes.max() <= encoding.qmax
    error = (encoding.dequantize(codes) - weight).norm() / max(float(weight.norm()), 1e-30)
    assert error < {"nf4": 0.1, "fp8_e4m3": 0.03, "mxfp4": 0.14}[name]


def test_nf4_loses_less_than_symmetric_levels_and_mxfp4_has_powers_of_two() -> None:
    weight = torch.randn(256, 64, generator=torch.Generator().manual_seed(0))
    codes, encoding = quantize_to_format(weight, FORMATS["nf4"], group_size=64)
    integers, plain = quantize_groupwise(weight, bits=4, group_size=64)
    error = (encoding.dequantize(codes) - weight).norm()
    assert error < (plain.dequantize(integers) - weight).norm()
    _, encoding = quantize_to_format(weight, FORMATS["mxfp4"], group_size=32)
    exponents = encoding.scale.tensor(torch.float64).log2()
    assert torch.equal(exponents, exponents.round())


@pytest.mark.parametrize("name", FORMATS)
def test_the_emitted_module_takes_levels_from_the_table(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    graph = parse(TEXT, fill=lambda v: torch.randn(v.type.shape, generator=generator))
    options = WeightOnlyOptions.model_validate({"weights": name, "layers": {"last": "int8"}})
    result = weight_only(graph, options, Context(selects=layer_matches))
    stored = verify(result.graph)
    assert parse(dump(stored), params=stored.params) == stored
    rounded = [node for node in stored.nodes if node.op.name == "fake_quantize_per_token"]
    assert [node.operand("x").name for node in rounded] == [
        "xa"
    ]  # only before the integers of the last layer
    inputs = [torch.randn(3, 64, generator=generator), torch.tensor([0, 9, 4])]
    expected = run(stored, inputs)
    torch.testing.assert_close(run_integer(stored, inputs), expected, rtol=1e-5, atol=1e-5)
    module = to_module(stored)
    torch.testing.assert_close(module(*inputs), expected[0], rtol=1e-4, atol=1e-4)
    size = sum(t.numel() * t.element_size() for t in module.state_dict().values())
    assert size == dict(result.report.table("summary").rows)["weight_bytes_after"]
    scales = "e8m0" if name == "mxfp4" else "float16"
    assert result.report.decisions[0].reason.startswith(f"{name}, a scale of {scales} for 32 weights")


def test_lazy_weights_stay_lazy() -> None:
    graph = parse(TEXT, fill=lambda v: torch.linspace(-1, 1, v.type.numel).view(v.type.shape))
    tensor = graph.params["a"]
    lazy = graph.with_params({"a": LazyTensor((24, 64), torch.float32, lambda: tensor)})
    options = WeightOnlyOptions.model_validate({"weights": "nf4"})
    stored = weight_only(lazy, options, Context()).graph
    assert isinstance(stored.params.entry("a"), LazyTensor)
    assert torch.equal(stored.params["a"], weight_only(graph, options, Context()).graph.params["a"])


def test_calibrated_rounding_of_a_table_is_refused() -> None:
    with pytest.raises(SpecError, match="`nf4` has levels in a table"):
        read_values(WeightOnlyOptions, {"weights": "nf4", "rounding": "gptq"}, name="weight_only(...)")
