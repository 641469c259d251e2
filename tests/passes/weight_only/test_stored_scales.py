"""Scales that are stored in 8 bits: double quantization and powers of two (E8M0)."""

from __future__ import annotations

from dataclasses import replace
from math import prod

import pytest
import torch
from torch import Tensor, nn

from fxpress.backends.torch_module import emit, to_module
from fxpress.ir import (
    Builder,
    CodedNumbers,
    DType,
    Encoding,
    Graph,
    TensorType,
    dump,
    parse,
    run,
    run_integer,
    verify,
)
from fxpress.ir.ops.convert import Cast
from fxpress.ir.ops.embedding import Embedding
from fxpress.ir.ops.linear import Linear
from fxpress.ir.ops.matmul import MatMul
from fxpress.ir.packing import packed_bytes
from fxpress.passes import PassResult
from fxpress.passes.base import Context
from fxpress.passes.weight_only import weight_only
from fxpress.passes.weight_only.groupwise import encode_groupwise, quantize_groupwise, relative_error
from fxpress.specs import SpecError, layer_matches
from fxpress.specs.options import WeightOnlyOptions
from fxpress.specs.write import read_values

STORED: dict[str, dict[str, object]] = {
    "nf4": {"weights": "nf4", "scales": "double"},
    "fp8": {"weights": "fp8_e4m3", "scales": "double", "group_size": 16},
    "int8": {"weights": "int8", "scales": "double", "group_size": None},
    "int4": {"weights": "int4", "scales": "double", "group_size": 16},
    "int3 hqq": {"weights": "int3", "scales": "double", "rounding": "hqq"},
    "mxfp4": {"weights": "mxfp4"},
    "mxfp8": {"weights": "fp8_e4m3", "scales": "e8m0", "observer": "minmax"},
    "mxfp4 rows": {"weights": "mxfp4", "group_size": None},
}


def compress(graph: Graph, **options: object) -> PassResult:
    return weight_only(graph, WeightOnlyOptions.model_validate(options), Context(selects=layer_matches))


def network(dtype: DType = DType.F32, factor: float = 1.0) -> Graph:
    """A table that is also the weight of the last layer, a layer between, and matrices of three experts."""
    generator = torch.Generator().manual_seed(3)

    def weight(*shape: int) -> Tensor:
        return (torch.randn(shape, generator=generator) * factor).to(dtype.torch)

    builder = Builder()
    tokens = builder.input("tokens", TensorType((1, 5), DType.I64))
    table = builder.constant("table", weight(41, 96))
    x = builder.add(Embedding(), tokens, table)
    x = builder.add(Linear(), x, builder.constant("middle", weight(96, 96)))
    y = builder.add(MatMul(), x, builder.constant("experts", weight(3, 96, 64)))
    last = builder.add(Linear(), x, table)
    if dtype is not DType.F32:
        y, last = (builder.add(Cast("f32"), value) for value in (y, last))
    return builder.build([y, last])


TOKENS = [torch.tensor([[0, 40, 7, 7, 2]])]


def encodings(graph: Graph) -> dict[str, Encoding]:
    return {v.name: v.type.quantization for v in graph.constants if v.type.quantization is not None}


def parts_of(module: nn.Module, graph: Graph) -> dict[str, nn.Module]:
    held = {name.split(".")[-1]: part for name, part in module.named_modules()}
    return {name: held[name] for name in encodings(graph)}


@pytest.mark.parametrize("dtype", [DType.F32, DType.BF16, DType.F16])
@pytest.mark.parametrize("name", STORED)
def test_the_module_has_the_reals_bytes_and_results_of_the_graph(name: str, dtype: DType) -> None:
    result = compress(network(dtype), **STORED[name])
    graph = verify(result.graph)
    assert len(encodings(graph)) == 3
    module = to_module(graph)
    parts = parts_of(module, graph)
    for value in graph.constants:
        encoding, shape = value.type.quantization, value.type.shape
        assert encoding is not None and isinstance(encoding.scale, CodedNumbers)
        reals = encoding.dequantize(graph.tensor(value))
        codes = graph.tensor(value).long()
        levels = (codes if encoding.levels is None else encoding.levels.tensor()[codes]).float()
        zeros = encoding.spread(encoding.zero_point.tensor().expand(len(encoding.scale)), value.type.shape)
        scales = encoding.spread(encoding.scale.tensor(), value.type.shape)
        assert torch.equal(reals, (levels - zeros) * scales)  # code x decoded scale, in float32
        found = parts[value.name].to_reals(slice(None)).flatten(0, 1)  # type: ignore[operator]
        assert torch.equal(found[: prod(shape[:-1])].view(shape), reals)
    size = sum(t.numel() * t.element_size() for t in module.state_dict().values())
    assert size == sum(packed_bytes(v.type) for v in graph.constants)
    assert size == dict(result.report.table("summary").rows)["weight_bytes_after"]
    assert size == sum(int(str(row[4])) for row in result.report.table("weights").rows)
    expected, tolerance = run(graph, TOKENS), 1e-4 if dtype is DType.F32 else 2e-2
    scale = max(float(y.abs().max()) for y in expected)
    with torch.no_grad():
        torch.testing.assert_close(module(*TOKENS), tuple(expected), rtol=tolerance, atol=tolerance * scale)
    torch.testing.assert_close(run_integer(graph, TOKENS), expected, rtol=tolerance, atol=tolerance * scale)


@pytest.mark.parametrize("name", STORED)
def test_weights_of_zeros_and_of_any_size_are_stored(name: str) -> None:
    for factor in (0.0, 1e-20, 1e10):
        graph = verify(compress(network(factor=factor), **STORED[name]).graph)
        module = to_module(graph)
        for value, part in ((v, parts_of(module, graph)[v.name]) for v in graph.constants):
            encoding = value.type.quantization
            assert encoding is not None
            reals, real = encoding.dequantize(graph.tensor(value)), network(factor=factor).params[value.name]
            assert torch.equal(part.reals(), reals)  # type: ignore[operator]
            assert float((reals - real).norm()) <= 0.3 * float(real.norm())


def test_one_row_of_zeros_among_others_stays_zero() -> None:
    weight = torch.randn(12, 64, generator=torch.Generator().manual_seed(0))
    weight[5] = 0
    graph = network()
    tensors = {"middle": torch.cat([weight.repeat(8, 2)[:, :96]])}
    stored = compress(graph.with_params(tensors), weights="nf4", scales="double").graph
    encoding = encodings(stored)["middle"]
    reals = encoding.dequantize(stored.params["middle"])
    assert bool((reals[5] == 0).all()) and float((reals - tensors["middle"]).norm()) < 0.1 * float(
        reals.norm()
    )


@pytest.mark.parametrize("name", STORED)
def test_the_written_graph_is_read_back(name: str) -> None:
    graph = compress(network(), **STORED[name]).graph
    assert parse(dump(graph), params=graph.params) == graph


def test_double_quantization_takes_an_eighth_of_a_bit_for_each_weight_and_loses_nothing_to_speak_of() -> None:
    weight = torch.randn(512, 1024, generator=torch.Generator().manual_seed(0))
    builder = Builder()
    x = builder.input("x", TensorType((1, 1024)))
    graph = builder.build([builder.add(Linear(), x, builder.constant("w", weight))])
    found = {}
    for scales in ("float32", "float16", "double"):
        rows = compress(graph, weights="nf4", group_size=64, scales=scales).report.table("weights").rows
        table = 16 * 4  # bytes of the levels
        found[scales] = ((int(str(rows[0][4])) - table) * 8 / weight.numel(), float(str(rows[0][5])))
    assert found["float32"][0] == 4.5 and found["float16"][0] == 4.25
    assert found["double"][0] == pytest.approx(4 + 0.127, abs=2e-4)  # QLoRA
    assert found["double"][1] < 1.001 * found["float32"][1]
    plain, integers = (
        compress(graph, weights="int4", group_size=64, scales=scales).report.table("weights").rows[0]
        for scales in ("float32", "double")
    )
    assert float(str(integers[5])) < 1.001 * float(str(plain[5]))
    rows = compress(graph, weights="mxfp4").report.table("weights").rows
    assert (int(str(rows[0][4])) - 15 * 4) * 8 / weight.numel() == 4.25


def test_microscaling_weights_have_the_same_reals_with_any_scales() -> None:
    weight = torch.randn(48, 64, generator=torch.Generator().manual_seed(0))
    graph = network().with_params({"middle": weight.repeat(2, 2)[:96, :96]})
    byte, half = (compress(graph, weights="mxfp4", scales=scales).graph for scales in (None, "float16"))
    assert (
        encodings(byte)["middle"].scale.form == "e8m0" and encodings(half)["middle"].scale.form == "float16"
    )
    for name, encoding in encodings(byte).items():
        assert list(encoding.scale) == list(encodings(half)[name].scale)
        assert torch.equal(byte.params[name], half.params[name])


def test_signs_of_scales_are_worth_more_than_the_bit_that_they_take() -> None:
    weight = torch.randn(256, 256, generator=torch.Generator().manual_seed(0))
    _, encoding = quantize_groupwise(weight, bits=4, group_size=32, dtype=torch.float32)

    def error(scales: Tensor) -> float:
        stored = replace(encoding, scale=CodedNumbers.of(scales, "double"))
        return relative_error(weight, encode_groupwise(weight, stored), stored)

    signed, positive = error(encoding.scale.tensor()), error(encoding.scale.tensor().abs())
    assert signed < 0.95 * positive


def test_calibrated_rounding_rounds_to_the_scales_that_are_stored() -> None:
    generator = torch.Generator().manual_seed(0)
    builder = Builder()
    x = builder.input("x", TensorType((1, 64)))
    weight = torch.randn(32, 64, generator=generator)
    graph = builder.build([builder.add(Linear(), x, builder.constant("w", weight))])
    mixing = torch.eye(64) + 0.3 * torch.randn(64, 64, generator=generator)
    samples = [(torch.randn(1, 64, generator=generator) @ mixing,) for _ in range(64)]

    def error(rounding: object, scales: str) -> float:
        values = {"weights": "int4", "scales": scales, "rounding": rounding, "activations": "float32"}
        context = Context(selects=layer_matches, calibration=samples)
        stored = weight_only(graph, WeightOnlyOptions.model_validate(values), context).graph
        assert encodings(stored)["w"].scale.form == scales
        return sum(float((run(stored, s)[0] - run(graph, s)[0]).norm()) for s in samples)

    nearest = error("nearest", "double")
    assert nearest < 1.02 * error("nearest", "float32")
    assert error("hqq", "double") < 1.05 * error("hqq", "float32")
    trained = ({"kind": kind, "steps": 20, "start": "nearest"} for kind in ("learned", "auto_round"))
    for rounding in ("gptq", "awq", {"kind": "gptq", "activation_order": True}, *trained):
        assert error(rounding, "double") < 1.05 * error(rounding, "float32")


@pytest.mark.parametrize("rounding", ["nearest", "hqq"])
def test_integers_are_the_nearest_on_the_stored_scales(rounding: str) -> None:
    graph = compress(network(), weights="int8", scales="double", rounding=rounding).graph
    for name, encoding in encodings(graph).items():
        # a tie of a float32 ratio may be rounded to either side
        away = encoding.quantize(network().params[name].double()) - graph.params[name]
        assert int(away.abs().max()) <= 1 and float(away.ne(0).double().mean()) < 1e-3


def test_defaults_follow_the_weights_of_each_layer() -> None:
    options = WeightOnlyOptions.model_validate({"weights": "mxfp4", "layers": {"head": "int8"}})
    assert (options.scales_of("mxfp4"), options.scales_of("nf4"), options.scales_of(None)) == (
        "e8m0",
        "float16",
        "float16",
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"weights": "int4", "scales": "e8m0"}, "`scales: e8m0` are powers of two; those of `int4` are not"),
        ({"weights": "nf4", "scales": "e8m0"}, "those of `nf4` are not"),
        ({"weights": "mxfp4", "scales": "e8m0", "layers": {"head": "int8"}}, "those of `int8` are not"),
        ({"budget": {"weights": "50 %"}, "scales": "e8m0"}, "`budget` chooses integers"),
        ({"weights": "mxfp4", "scales": "double"}, "powers of two, which `scales: double` cannot store"),
    ],
)
def test_scales_that_the_weights_do_not_have_are_refused(options: dict[str, object], words: str) -> None:
    with pytest.raises(SpecError, match=words) as caught:
        read_values(WeightOnlyOptions, options, name="weight_only(...)")
    assert [problem.code for problem in caught.value.problems] == ["S205"]


def test_decoded_scales_are_kept_by_modules_in_memory_and_follow_their_codes() -> None:
    graph = compress(network(), weights="int4", scales="double", activations="float32").graph
    module = to_module(graph).eval()
    middle = parts_of(module, graph)["middle"]
    with torch.no_grad():
        first = module(*TOKENS)
        kept = middle.packed_scales()  # type: ignore[operator]
        assert middle.packed_scales() is kept  # type: ignore[operator]
        state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
        state["middle.scale_offset"] *= 2
        state["middle.scale_step"] *= 2
        module.load_state_dict(state)
        second = module(*TOKENS)
    torch.testing.assert_close(second[1], 2 * first[1])


def test_half_leaves_the_stored_scales_as_they_are() -> None:
    graph = compress(network(), weights="nf4", scales="double").graph
    module = to_module(graph)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    module.half()
    assert all(
        torch.equal(t, before[n]) and t.dtype == before[n].dtype for n, t in module.state_dict().items()
    )


def test_rows_of_a_table_are_decoded_alone() -> None:
    graph = compress(network(), weights="nf4", scales="double", group_size=16).graph
    table = parts_of(to_module(graph), graph)["table"]
    indices = torch.tensor([[40, 0], [17, 40]])
    assert torch.equal(table.rows(indices), table.reals()[indices])  # type: ignore[operator]
    with pytest.raises(IndexError, match="outside of the 41 rows"):
        table.rows(torch.tensor([41]))  # type: ignore[operator]


def test_the_emitted_source_says_how_scales_are_stored() -> None:
    source = emit(compress(network(), weights="int4", scales="double").graph).source
    assert "PackedWeight(96, 96, bits=4, group_size=32, dtype=torch.int8, steps=2)" in source
    source = emit(compress(network(), weights="mxfp4").graph).source
    assert "DecodedWeight(96, 96, bits=4, group_size=32, dtype=torch.uint8, levels=15)" in source
