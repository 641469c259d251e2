"""Blocks of weights as codewords: exact where blocks repeat, weighted by the inputs, trained afterwards."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from fxpress.compiler import compile_model
from fxpress.ir import Graph, Value, parse, rebatch, run, verify
from fxpress.passes import Context, PassError, PassResult, find_pass, product_quantize
from fxpress.passes.product_quantize import share_blocks
from fxpress.passes.training import train
from fxpress.specs import SpecError, layer_matches
from fxpress.specs.options import FinetuneOptions, ProductQuantizeOptions

NET = """
graph(%x: f32[1x4x6x6]) {
  const %a: f32[32x4x3x3]
  const %t: f32[32x16x2x2]
  const %g: f32[32x8x3x3]
  const %w: f32[24x288]
  const %wb: f32[24]
  const %small: f32[3x24]
  %c: f32[1x32x6x6] = conv{padding=(1, 1, 1, 1), clamp=(0.0, inf)}(%x, %a)   # "first", ""
  %u: f32[1x16x12x12] = conv_transpose{stride=(2, 2), padding=(0, 0, 0, 0), clamp=(0.0, inf)}(%c, %t)   # "up", ""
  %e: f32[1x32x3x3] = conv{stride=(4, 4), groups=2, padding=(0, 0, 0, 0), clamp=(0.0, inf)}(%u, %g)   # "grouped", ""
  %f: f32[1x288] = reshape{shape=(-1, 288)}(%e)
  %h: f32[1x24] = linear{clamp=(0.0, inf)}(%f, %w, %wb)   # "body", ""
  %y: f32[1x3] = linear(%h, %small)   # "head", ""
  return output: %y
}"""


def net() -> Graph:
    generator = torch.Generator().manual_seed(0)

    def fill(value: Value) -> Tensor:
        shape = value.type.shape
        return torch.randn(shape, generator=generator) / (value.type.numel / shape[0]) ** 0.5

    return parse(NET, fill=fill)


def samples(count: int = 48) -> list[tuple[Tensor, ...]]:
    x = torch.randn(count, 4, 6, 6, generator=torch.Generator().manual_seed(1))
    return [(one,) for one in (x * torch.tensor([4.0, 1.0, 0.2, 0.05]).view(4, 1, 1)).split(1)]


def context(original: Graph | None = None) -> Context:
    return Context(calibration=samples(), original=original, selects=layer_matches)


def shared(graph: Graph, **options: object) -> PassResult:
    return find_pass("product_quantize")(graph, ProductQuantizeOptions.model_validate(options), context())


def test_every_kind_of_layer_reads_its_weight_from_a_codebook() -> None:
    before = net()
    result = shared(before, block=4)
    verify(result.graph)
    applied = {d.name: d.applied for d in result.report.decisions}
    assert applied == {"a": True, "t": True, "g": True, "w": True, "small": True}
    names = set(result.graph.params)
    assert {"a.codes", "a.codewords", "w.codes", "w.codewords", "wb"} <= names and "w" not in names
    restored = {}
    for name in ("a", "t", "g", "w", "small"):
        codes, codewords = (result.graph.params[f"{name}.{part}"] for part in ("codes", "codewords"))
        assert codes.dtype is torch.uint8 and len(codewords) <= len(codes) // 4
        restored[name] = codewords[codes.long()].reshape(before.params[name].shape)
    for sample in samples(4):
        expected = run(before.with_params(restored), sample)[0]
        torch.testing.assert_close(run(result.graph, sample)[0], expected)


def test_bytes_are_those_of_codes_and_codewords() -> None:
    result = shared(net(), block=4)
    weights, summary = (table.rows for table in result.report.tables)
    after = sum(tensor.numel() * tensor.element_size() for tensor in result.graph.params.values())
    assert dict(summary) == {
        "constant_bytes_before": sum(t.numel() * 4 for t in net().params.values()),
        "constant_bytes_after": after,
    }
    assert sum(row[5] for row in weights) + 24 * 4 == after


@given(st.integers(1, 6), st.integers(2, 5), st.integers(2, 8), st.integers(0, 3))
def test_repeated_blocks_are_exact(codewords: int, block: int, repeats: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    words = torch.randn(codewords, block, generator=generator)
    order = torch.arange(codewords).repeat(4 * repeats)
    weight = words[order[torch.randperm(len(order), generator=generator)]].reshape(repeats, -1)
    made = share_blocks(weight, block, torch.eye(block).double(), ProductQuantizeOptions(codewords=64))
    assert len(made.codewords) <= 64
    torch.testing.assert_close(made.weight(weight.shape), weight)


def test_blocks_are_weighted_by_their_inputs() -> None:
    before = net()
    weight = before.params["a"]
    inputs = torch.cat([sample[0] for sample in samples()])
    options = ProductQuantizeOptions(block=4, codewords=16, layers={"*": "float32", "first": 36})
    root = torch.diag(torch.tensor([4.0, 1.0, 0.2, 0.05]).repeat_interleave(9)).double()
    plain, weighted = (
        share_blocks(weight, 36, kind, options).weight(weight.shape)
        for kind in (torch.eye(36).double(), root)
    )
    outputs = [functional.conv2d(inputs, w - weight).square().mean() for w in (plain, weighted)]
    assert float(outputs[1]) < 0.8 * float(outputs[0])
    found = find_pass("product_quantize")(before, options, context()).graph
    restored = found.params["a.codewords"][found.params["a.codes"].long()].reshape(weight.shape)
    error = functional.conv2d(inputs, restored - weight).square().mean()
    assert float(error) < 0.8 * float(outputs[0])


def test_codewords_are_trained_and_codes_stay() -> None:
    before = net()
    start = shared(before, block=8).graph
    options = FinetuneOptions.model_validate({"epochs": 12, "batch": 8, "learning_rate": 5e-3})
    trained = train(start, options, context(before))
    assert min(row[2] for row in trained.rows) < trained.rows[0][2]
    for name, tensor in trained.graph.params.items():
        assert torch.equal(tensor, start.params[name]) == name.endswith(".codes")
    assert train(start, options, context(before)).graph == trained.graph


def test_layers_can_have_other_blocks_or_stay_float() -> None:
    result = shared(net(), block=4, layers={"head": "float32", "body": 16})
    sizes = {row[0]: row[2] for row in result.report.tables[0].rows}
    assert sizes == {"a": 4, "t": 4, "g": 4, "w": 16}
    assert "small" in result.graph.params
    reasons = {d.name: d.reason for d in result.report.decisions}
    assert reasons["small"] == "stays float: the spec keeps it"


def test_a_weight_that_is_smaller_than_its_codebook_stays_float() -> None:
    text = """
graph(%x: f32[1x4]) {
  const %w: f32[2x4]
  %y: f32[1x2] = linear(%x, %w)   # "head", ""
  return output: %y
}"""
    graph = parse(text, fill=lambda value: torch.ones(value.type.shape))
    result = product_quantize(graph, block=2, context=Context(calibration=[(torch.ones(1, 4),)]))
    (decision,) = result.report.decisions
    assert decision.applied == ("w.codes" in result.graph.params)
    assert run(result.graph, [torch.ones(1, 4)])[0].tolist() == [[4.0, 4.0]]


def test_a_batch_shares_the_weights() -> None:
    graph = shared(net(), block=4).graph
    together = run(rebatch(graph, 4), [torch.cat([sample[0] for sample in samples(4)])])[0]
    alone = torch.cat([run(graph, sample)[0] for sample in samples(4)])
    torch.testing.assert_close(together, alone)


def test_a_graph_without_weights_is_refused() -> None:
    text = """
graph(%x: f32[1x4]) {
  %y: f32[1x4] = relu(%x)
  return output: %y
}"""
    with pytest.raises(PassError, match="no convolution or linear layer has a constant float weight"):
        shared(parse(text))


@pytest.mark.parametrize("later", ["clean", "fuse", "quantize"])
def test_passes_that_need_weights_as_constants_run_before(later: str) -> None:
    module = nn.Linear(16, 16)
    x = torch.randn(8, 16)
    with pytest.raises(SpecError, match=later):
        compile_model(module, inputs=x[:1], calibration=x, passes=["product_quantize", later])


def test_the_torch_module_looks_its_weights_up() -> None:
    torch.manual_seed(0)
    module = torch.nn.Sequential(
        torch.nn.Conv2d(4, 32, 3), torch.nn.ReLU(), torch.nn.Flatten(), nn.Linear(512, 8)
    )
    x = torch.cat([sample[0] for sample in samples()])
    compiled = compile_model(
        module.eval(), inputs=x[:1], calibration=x, passes=["clean", "fuse", "product_quantize"]
    )
    expected = torch.cat([run(compiled.graph, [sample])[0] for sample in x.split(1)])
    torch.testing.assert_close(compiled.run(x, on="torch").outputs[0], expected)
    assert compiled.torch is not None
    state = compiled.torch.build().state_dict()
    stored = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    assert stored < 0.3 * sum(p.numel() * 4 for p in module.parameters())
