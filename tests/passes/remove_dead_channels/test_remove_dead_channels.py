"""Dead and constant channels of integer graphs: removed channels, kept channels, and unchanged bytes."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch

from fxpress.ir import Graph, Value, parse, run_integer, verify
from fxpress.passes import Context, PassReport, find_pass
from fxpress.passes.remove_dead_channels.intervals import propagate
from fxpress.specs.options import QuantizeOptions, RemoveDeadChannelsOptions

GRAPH = """
graph(%x: f32[1x3x6x6]) {
  const %w1: f32[4x3x3x3]
  const %b1: f32[4]
  const %wd: f32[4x1x3x3]
  const %bd: f32[4]
  const %w2: f32[5x4x1x1]
  const %w3: f32[2x45]
  %c: f32[1x4x6x6] = conv{padding=(1, 1, 1, 1), clamp=(0.0, inf)}(%x, %w1, %b1)
  %d: f32[1x4x6x6] = conv{padding=(1, 1, 1, 1), groups=4, clamp=(0.0, inf)}(%c, %wd, %bd)
  %e: f32[1x5x6x6] = conv(%d, %w2)
  %p: f32[1x5x3x3] = max_pool(%e)
  %r: f32[1x45] = reshape{shape=(-1, 45)}(%p)
  %y: f32[1x2] = linear(%r, %w3)
  return output: %y
}"""


def fill(value: Value) -> torch.Tensor:
    return torch.randn(value.type.shape, generator=torch.Generator().manual_seed(ord(value.name[-1])))


def quantized(text: str = GRAPH, /, layers: Mapping[str, str] | None = None, **params: torch.Tensor) -> Graph:
    before = parse(text, params=params, fill=fill)
    generator = torch.Generator().manual_seed(0)
    samples = [
        tuple(torch.randn(v.type.shape, generator=generator) for v in before.inputs) for _ in range(16)
    ]
    options = QuantizeOptions.model_validate({"layers": layers or {}})
    return find_pass("quantize")(before, options, Context(calibration=samples)).graph


def remove(graph: Graph, **options: object) -> tuple[Graph, PassReport]:
    result = find_pass("remove_dead_channels")(graph, RemoveDeadChannelsOptions.model_validate(options))
    return result.graph, result.report


def channels(graph: Graph, name: str) -> int:
    return graph.producers[name].output.type.shape[1]


def assert_same_bytes(a: Graph, b: Graph) -> None:
    generator = torch.Generator().manual_seed(3)
    for scale in (0.1, 1.0, 100.0):
        inputs = [torch.randn(v.type.shape, generator=generator) * scale for v in a.inputs]
        for x, y in zip(run_integer(a, inputs), run_integer(b, inputs), strict=True):
            assert torch.equal(x, y)


def test_a_channel_that_a_relu_always_cuts_goes_from_every_layer_it_runs_through() -> None:
    bias = torch.tensor([0.0, -100.0, 0.0, 0.0])
    before = quantized(b1=bias, bd=torch.zeros(4))
    after, report = remove(before)
    assert [channels(after, name) for name in "cd"] == [3, 3]
    assert after.producers["e"].inputs[1].type.shape == (5, 3, 1, 1)
    assert report.applied == {"remove_dead_channels": 3}
    assert_same_bytes(before, after)


def test_a_constant_that_is_not_zero_goes_into_the_bias_of_a_layer_without_padding() -> None:
    wd, bd = fill(parse(GRAPH).producers["d"].inputs[1]), torch.tensor([1.0, 0.0, 0.0, 0.0])
    wd[0] = 0
    before = quantized(wd=wd, bd=bd)
    after, _ = remove(before)
    assert [channels(after, name) for name in "cd"] == [3, 3]
    assert after.producers["e"].optional("bias") is not None
    assert_same_bytes(before, after)


def test_a_constant_that_is_not_zero_stays_before_a_layer_that_pads() -> None:
    w1, b1 = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(0)), torch.ones(4)
    w1[2] = 0
    before = quantized(w1=w1, b1=b1)
    after, _ = remove(before)
    assert after == before


def test_a_channel_that_nobody_reads_goes_back_to_the_layer_that_makes_it() -> None:
    w2 = torch.randn(5, 4, 1, 1, generator=torch.Generator().manual_seed(0))
    w2[:, 3] = 0
    before = quantized(w2=w2)
    after, _ = remove(before)
    assert [channels(after, name) for name in "cde"] == [3, 3, 5]
    assert_same_bytes(before, after)


def test_a_channel_of_which_a_reshape_leaves_one_element_in_use_stays() -> None:
    w3 = torch.randn(2, 45, generator=torch.Generator().manual_seed(0))
    w3[:, 9:18] = 0
    w3[:, 18:26] = 0
    before = quantized(w3=w3)
    after, _ = remove(before)
    assert channels(after, "e") == 4
    assert after.producers["y"].inputs[1].type.shape == (2, 36)
    assert_same_bytes(before, after)


def test_layers_that_the_spec_keeps_lose_nothing() -> None:
    text = GRAPH.replace("(%x, %w1, %b1)", '(%x, %w1, %b1)   # "stem", ""')
    before = quantized(text, b1=torch.tensor([0.0, -100.0, 0.0, 0.0]), bd=torch.zeros(4))
    assert remove(before, keep=("stem",))[0] == before
    assert remove(before)[0] != before


def test_a_layer_in_float_keeps_its_input_channels_while_others_lose_theirs() -> None:
    text = GRAPH.replace("(%d, %w2)", '(%d, %w2)   # "body", ""').replace(
        "(%r, %w3)", '(%r, %w3)   # "head", ""'
    )
    w3 = torch.ones(2, 45)
    w3[:, 9:18] = 0
    dead = {"b1": torch.tensor([0.0, -100.0, 0.0, 0.0]), "bd": torch.zeros(4)}
    before = quantized(text, layers={"head": "float32"}, w3=w3, **dead)
    after, _ = remove(before)
    assert [channels(after, name) for name in "cde"] == [3, 3, 5]
    assert_same_bytes(before, after)


RESIDUAL = """
graph(%x: f32[1x3x6x6]) {
  const %w1: f32[4x3x1x1]
  const %w2: f32[4x4x1x1]
  const %w3: f32[4x4x1x1]
  const %w4: f32[2x8x1x1]
  %a: f32[1x4x6x6] = conv{clamp=(0.0, inf)}(%x, %w1)
  %b: f32[1x4x6x6] = conv(%a, %w2, none, %a)
  %c: f32[1x4x6x6] = conv(%a, %w3)
  %s: f32[1x4x6x6] = add(%b, %c)
  %k: f32[1x8x6x6] = concat{axis=1}(%s, %s)
  %y: f32[1x2x6x6] = conv(%k, %w4)
  return output: %y
}"""


def test_both_sides_of_additions_and_all_copies_in_a_concat_lose_the_same_channels() -> None:
    generator = torch.Generator().manual_seed(0)
    w2, w3, w4 = (torch.randn(*s, 1, 1, generator=generator) for s in ((4, 4), (4, 4), (2, 8)))
    w2[:, 1] = w3[:, 1] = w4[:, 1] = w4[:, 5] = 0
    before = quantized(RESIDUAL, w2=w2, w3=w3, w4=w4)
    after, _ = remove(before)
    assert [channels(after, name) for name in "abcsk"] == [3, 3, 3, 3, 6]
    assert_same_bytes(before, after)


def test_a_channel_read_through_one_half_of_a_concat_stays_in_both() -> None:
    generator = torch.Generator().manual_seed(0)
    w4 = torch.randn(2, 8, 1, 1, generator=generator)
    w4[:, 1] = 0
    before = quantized(RESIDUAL, w4=w4)
    assert remove(before)[0] == before


WIDE = """graph(%x: i16[1x4]<scale=0.001, zero=0>) {
  const %w: i8[4x4]<scale=0.01, zero=0>
  %a: i16[1x4]<scale=0.001, zero=0> = linear(%x, %w)
  %r: i16[1x4]<scale=0.001, zero=0> = relu(%a)
  %y: i16[1x4]<scale=0.002, zero=0> = add(%r, %a)
  return output: %y
}"""


def test_functions_of_sixteen_bits_are_bounded_at_their_ends() -> None:
    weight = torch.tensor([[64, 0, 0, 0], [0, 0, 0, 0], [100, -100, 50, 0], [0, 0, 0, 1]], dtype=torch.int8)
    intervals = propagate(parse(WIDE, params={"w": weight}))
    assert not intervals["r"].low.any()
    assert intervals["r"].high.flatten().tolist() == [20971, 0, 32767, 328]


@pytest.mark.parametrize("op", ["sin", "pow{exponent=2.0}", "abs"])
def test_a_table_is_bounded_by_its_least_and_greatest_entry_between_the_ends(op: str) -> None:
    text = """graph(%x: i8[1x1x40]<scale=0.05, zero=3>) {{
      const %w: i8[40x1x1]<scale=0.01, zero=0>
      const %b: i32[40]<scale=0.0005, zero=0>
      %q: i8[1x40x1]<scale=0.05, zero=3> = reshape{{shape=(1, 40, 1)}}(%x)
      %a: i8[1x40x1]<scale=0.05, zero=-7> = conv{{stride=(1,), padding=(0, 0), dilation=(1,), groups=40}}(%q, %w, %b)
      %y: i8[1x40x1]<scale=0.03, zero=5> = {op}(%a)
      return output: %y
    }}"""
    generator = torch.Generator().manual_seed(0)
    params = {
        "w": torch.randint(-60, 61, (40, 1, 1), generator=generator).to(torch.int8),
        "b": torch.randint(-9000, 9001, (40,), generator=generator).to(torch.int32),
    }
    graph = verify(parse(text.format(op=op), params=params))
    node = graph.nodes[-1]
    known = propagate(graph)
    ends, found = known["a"].expanded((1, 40, 1)), known["y"].expanded((1, 40, 1))
    table = node.op.table(node.operands[0].type, node.output.type)
    for low, high, least, greatest in zip(*(t.flatten().tolist() for t in (*ends, *found)), strict=True):
        between = table[low + 128 : high + 129]
        assert (least, greatest) == (int(between.min()), int(between.max()))


def test_a_channel_goes_through_a_slice_but_not_from_a_product_that_sums_over_it() -> None:
    text = """graph(%x: i8[1x3]<scale=0.05, zero=0>) {
  const %w: i8[6x3]<scale=0.01, zero=0>
  const %v: i8[2x3]<scale=0.01, zero=0>
  const %u: i8[3x3]<scale=0.01, zero=0>
  %a: i8[1x6]<scale=0.05, zero=0> = linear(%x, %w)
  %s: i8[1x3]<scale=0.05, zero=0> = slice{axis=1, stop=3}(%a)
  %t: i8[1x3]<scale=0.05, zero=0> = slice{axis=1, start=3, stop=6}(%a)
  %m: i8[1x3]<scale=0.05, zero=0> = matmul(%t, %u)
  %y: i8[1x2]<scale=0.05, zero=0> = linear(%s, %v)
  return first: %y, second: %m
}"""
    generator = torch.Generator().manual_seed(0)
    params = {
        "w": torch.randint(-9, 10, (6, 3), generator=generator).to(torch.int8),
        "u": torch.randint(-9, 10, (3, 3), generator=generator).to(torch.int8),
        "v": torch.tensor([[1, 0, 2], [3, 0, 4]], dtype=torch.int8),
    }
    before = verify(parse(text, params=params))
    after, _ = remove(before)
    assert channels(after, "a") == 5
    assert after.producers["y"].inputs[1].type.shape == (2, 2)
    inputs = [torch.tensor([[1, -2, 3]])]
    for x, y in zip(run_integer(before, inputs), run_integer(after, inputs), strict=True):
        assert torch.equal(x, y)
