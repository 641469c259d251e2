"""Clean-up: removed nodes, kept nodes, and a graph that never grows."""

from __future__ import annotations

import torch

from fxpress.ir import Graph, LazyTensor, dump, parse, run
from fxpress.passes import PassReport, find_pass
from fxpress.passes.clean import is_unmoved
from fxpress.specs.options import CleanOptions


def clean(before: Graph, **options: object) -> tuple[Graph, PassReport]:
    result = find_pass("clean")(before, CleanOptions.model_validate(options))
    return result.graph, result.report


NO_OPS = """
graph(%x: f32[2x3x4]) {
  const %zero: f32[]
  const %one: f32[3x1]
  %a: f32[2x3x4] = add(%zero, %x)
  %b: f32[2x3x4] = mul(%a, %one)
  %c: f32[2x3x4] = reshape{shape=(-1, 3, 4)}(%b)
  %d: f32[2x4x3] = permute{order=(0, 2, 1)}(%c)
  %e: f32[2x3x4] = permute{order=(0, 2, 1)}(%d)
  %f: f32[2x12] = reshape{shape=(-1, 12)}(%e)
  %g: f32[2x3x4] = reshape{shape=(-1, 3, 4)}(%f)
  %h: f32[2x3x4] = relu(%g)
  %i: f32[2x3x4] = clamp{low=-1.0}(%h)
  %j: f32[2x3x4] = relu(%i)
  return output: %j
}"""
PARAMS = {"zero": torch.zeros(()), "one": torch.ones(3, 1)}


def test_what_computes_nothing_goes() -> None:
    before = parse(NO_OPS, params=PARAMS)
    after, report = clean(before)
    assert dump(after) == ("graph(%x: f32[2x3x4]) {\n  %h: f32[2x3x4] = relu(%x)\n  return output: %h\n}\n")
    assert report.applied == {"no_ops": 7, "movement": 2}


def test_an_addition_of_zero_that_broadcasts_stays() -> None:
    text = (
        "graph(%x: f32[3]) {\n const %zero: f32[2x3]\n %a: f32[2x3] = add(%x, %zero)\n return output: %a\n}"
    )
    before = parse(text)
    assert clean(before)[0] == before


def test_a_subtraction_from_zero_stays() -> None:
    before = parse("graph(%x: f32[3]) {\n const %z: f32[3]\n %a: f32[3] = sub(%z, %x)\n return output: %a\n}")
    assert clean(before)[0] == before


def test_a_clamp_that_cuts_stays_after_a_relu() -> None:
    before = parse(
        "graph(%x: f32[3]) {\n %a: f32[3] = relu(%x)\n %b: f32[3] = clamp{high=6.0}(%a)\n return output: %b\n}"
    )
    assert clean(before)[0] == before


def test_a_permute_of_equal_sizes_stays() -> None:
    before = parse("graph(%x: f32[3x3]) {\n %a: f32[3x3] = permute{order=(1, 0)}(%x)\n return output: %a\n}")
    assert clean(before)[0] == before


MASKED = """
graph(%x: f32[1x4]) {
  const %weight: f32[2x4]
  const %mask: f32[2x4]
  %w: f32[2x4] = mul(%weight, %mask)
  %y: f32[1x2] = linear(%x, %w)
  return output: %y
}"""


def test_what_is_computed_from_constants_becomes_a_constant() -> None:
    params = {"weight": torch.arange(8.0).view(2, 4), "mask": torch.tensor([[0.0, 1, 0, 1], [1, 0, 1, 0]])}
    after, _ = clean(parse(MASKED, params=params))
    assert [n.op.name for n in after.nodes] == ["linear"]
    assert torch.equal(after.params["w"], params["weight"] * params["mask"])


TRANSPOSED = """
graph(%x: f32[1x2]) {
  const %fc.weight: f32[2x2]
  %w: f32[2x2] = permute{order=(1, 0)}(%fc.weight)
  %v: f32[4] = reshape{shape=(4,)}(%w)
  %u: f32[2x2] = reshape{shape=(2, 2)}(%v)
  %y: f32[1x2] = linear(%x, %u)
  return output: %y
}"""


def test_a_weight_that_is_moved_keeps_its_name() -> None:
    weight = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    before = parse(TRANSPOSED, params={"fc.weight": weight})
    after, _ = clean(before)
    assert [v.name for v in after.constants] == ["fc.weight"]
    assert torch.equal(after.params["fc.weight"], weight.T)
    assert not is_unmoved(before, after, "fc.weight") and is_unmoved(before, before, "fc.weight")


def test_a_weight_that_is_read_as_it_is_and_moved_has_two_names() -> None:
    text = TRANSPOSED.replace("linear(%x, %u)", "linear(%x, %fc.weight, none, %z)").replace(
        "  %y:", "  %z: f32[1x2] = linear(%x, %u)\n  %y:"
    )
    weight = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    before = parse(text, params={"fc.weight": weight})
    after, _ = clean(before)
    assert [v.name for v in after.constants] == ["fc.weight_1", "fc.weight"]
    assert torch.equal(after.params["fc.weight"], weight)


def test_a_constant_that_would_take_much_more_room_is_not_folded() -> None:
    before = parse(
        "graph(%x: f32[1x1]) {\n const %c: f32[1x1]\n %e: f32[400x400] = expand{shape=(400, 400)}(%c)\n"
        " %y: f32[400x400] = sub(%x, %e)\n return output: %y\n}"
    )
    after, report = clean(before)
    assert after == before
    assert report.declined["constants"] == {
        "the result has 640,000 bytes, the limit for its operands is 65,536": 1
    }


RANDOM = """
graph(%x: f32[8]) {
  %a: f32[8] = torch_call{call='aten.rand_like.default(x0)'}(%x)
  %b: f32[8] = torch_call{call='aten.rand_like.default(x0)'}(%x)
  %y: f32[8] = sub(%a, %b)
  return output: %y
}"""


def test_equal_computations_are_done_once_but_random_ones_are_not() -> None:
    random = parse(RANDOM)
    assert clean(random)[0] == random
    after, report = clean(parse(RANDOM.replace("rand_like", "sinh")))
    assert [n.op.name for n in after.nodes] == ["torch_call", "sub"]
    assert report.applied == {"duplicates": 1}


def test_each_rule_can_be_switched_off() -> None:
    before = parse(NO_OPS, params=PARAMS)
    after, _ = clean(before, disable=("constants", "no_ops", "movement", "duplicates"))
    assert after == before


def test_outputs_may_become_inputs_and_keep_their_names() -> None:
    before = parse("graph(%x: f32[3]) {\n %a: f32[3] = copy(%x)\n return first: %a, second: %x\n}")
    after, _ = clean(before)
    assert (after.output_names, after.nodes) == (("first", "second"), ())
    assert torch.equal(run(after, [torch.arange(3.0)])[0], torch.arange(3.0))


TABLES = """
graph(%x: f32[4x8]) {
  const %angles: f32[4x8]
  const %half: f32[]
  const %half_again: f32[]
  %a: f32[4x8] = cos(%angles)
  %b: f32[4x8] = cos(%angles)
  %c: f32[4x8] = mul(%a, %half)
  %d: f32[4x8] = mul(%b, %half_again)
  %e: f32[4x8] = mul(%x, %c)
  %f: f32[4x8] = add(%e, %d)
  return output: %f
}"""


def test_equal_folded_tables_are_one_constant() -> None:
    params = {
        "angles": torch.arange(32.0).view(4, 8),
        "half": torch.tensor(0.5),
        "half_again": torch.tensor(0.5),
    }
    before = parse(TABLES, params=params)
    after, _ = clean(before)
    assert list(after.params) == ["c"]
    x = torch.randn(4, 8)
    assert torch.equal(run(after, [x])[0], run(before, [x])[0])


def test_equal_masks_of_two_layers_are_one_constant_but_equal_weights_stay_two() -> None:
    before = parse(
        "graph(%x: f32[3]) {\n const %m: bool[3]\n const %n: bool[3]\n const %u: f32[3]\n const %v: f32[3]\n"
        " %a: f32[3] = where(%m, %x, %u)\n %b: f32[3] = mul(%a, %v)\n %c: f32[3] = where(%n, %b, %x)\n"
        " return output: %c\n}",
        params={
            **{name: torch.tensor([True, False, True]) for name in "mn"},
            **{name: torch.tensor([1.0, 2, 3]) for name in "uv"},
        },
    )
    after, _ = clean(before)
    assert list(after.params) == ["m", "u", "v"]


def test_folded_constants_filled_with_one_number_stay_apart() -> None:
    before = parse(
        "graph(%x: f32[3]) {\n const %u: f32[3]\n const %v: f32[3]\n %a: f32[3] = exp(%u)\n %b: f32[3] = exp(%v)\n"
        " %c: f32[3] = mul(%x, %a)\n %d: f32[3] = add(%c, %b)\n return output: %d\n}",
        params={name: torch.ones(3) for name in "uv"},
    )
    assert list(clean(before)[0].params) == ["a", "b"]


def test_a_large_lazy_constant_is_moved_when_it_is_read() -> None:
    text = """
graph(%x: f32[1x256]) {
  const %w: f32[256x128]
  %t: f32[128x256] = permute{order=(1, 0)}(%w)
  %y: f32[1x128] = linear(%x, %t)
  return output: %y
}"""
    weight, reads = torch.randn(256, 128, generator=torch.Generator().manual_seed(0)), list[int]()

    def load() -> torch.Tensor:
        reads.append(1)
        return weight

    after, report = clean(parse(text, params={"w": LazyTensor((256, 128), torch.float32, load)}))
    assert report.applied == {"constants": 1} and not reads
    assert torch.equal(after.params["w"], weight.T) and len(reads) == 1
