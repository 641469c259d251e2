"""Units of channels, on graphs small enough to count them by hand."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fxpress.ir import OPERATORS, Graph, Source, parse
from fxpress.ir.coupling import STAYS, Coupling, couple
from fxpress.ir.coupling_axes import NodeCall
from fxpress.ir.testing import drawn_constant, examples, opened
from fxpress.ir.testing.cuts import check_separate


def units(coupling: Coupling, name: str, dimension: int = 0) -> list[int]:
    value = next(v for v in coupling.graph.constants if v.name == name)
    return [int(unit) for unit in coupling.units(value, dimension)]


def test_a_residual_ties_both_branches() -> None:
    coupling = couple(
        parse("""
graph(%x: f32[1x3x8x8]) {
  const %a: f32[4x3x1x1]
  const %b: f32[4x4x1x1]
  const %c: f32[2x4x1x1]
  %h: f32[1x4x8x8] = conv(%x, %a)
  %r: f32[1x4x8x8] = relu(%h)
  %g: f32[1x4x8x8] = conv(%r, %b)
  %s: f32[1x4x8x8] = add(%g, %h)
  %y: f32[1x2x8x8] = conv(%s, %c)
  return output: %y
}""")
    )
    assert coupling.count == 4
    assert (
        units(coupling, "a") == units(coupling, "b", 0) == units(coupling, "b", 1) == units(coupling, "c", 1)
    )
    assert units(coupling, "a", 1) == [STAYS] * 3
    assert units(coupling, "c", 0) == [STAYS] * 2


def test_concat_of_a_value_with_itself_ties_both_halves() -> None:
    coupling = couple(
        parse("""
graph(%x: f32[1x3]) {
  const %a: f32[4x3]
  const %c: f32[2x8]
  %h: f32[1x4] = linear(%x, %a)
  %d: f32[1x8] = concat{axis=1}(%h, %h)
  %y: f32[1x2] = linear(%d, %c)
  return output: %y
}""")
    )
    assert units(coupling, "c", 1) == units(coupling, "a") * 2


def test_flatten_ties_all_places_of_a_channel() -> None:
    coupling = couple(
        parse("""
graph(%x: f32[1x3x2x2]) {
  const %a: f32[3x3x1x1]
  const %c: f32[2x12]
  %h: f32[1x3x2x2] = conv(%x, %a)
  %f: f32[1x12] = reshape{shape=(-1, 12)}(%h)
  %y: f32[1x2] = linear(%f, %c)
  return output: %y
}""")
    )
    assert units(coupling, "c", 1) == [unit for unit in units(coupling, "a") for _ in range(4)]


def test_slices_and_splits_keep_their_places() -> None:
    coupling = couple(
        parse("""
graph(%x: f32[1x3]) {
  const %a: f32[6x3]
  const %b: f32[2x2]
  const %c: f32[2x4]
  %h: f32[1x6] = linear(%x, %a)
  %s: f32[1x2] = slice{axis=1, start=4}(%h)
  %p: f32[1x4], %q: f32[1x2] = split{axis=1, sizes=(4, 2)}(%h)
  %t: f32[1x2] = add(%s, %q)
  %u: f32[1x2] = linear(%t, %b)
  %v: f32[1x2] = linear(%p, %c)
  return u: %u, v: %v
}""")
    )
    assert units(coupling, "a") == units(coupling, "c", 1) + units(coupling, "b", 1)
    assert len(set(coupling.groups)) == 2


SHUFFLE = """
graph(%x: f32[1x3x2x2]) {{
  const %a: f32[6x3x1x1]
  const %c: f32[2x6x1x1]
  %h: f32[1x6x2x2] = conv(%x, %a)
  %s: f32[1x2x3x2x2] = reshape{{shape=(-1, 2, 3, 2, 2)}}(%h)
  %t: f32[1x3x2x2x2] = permute{{order=(0, 2, 1, 3, 4)}}(%s)
  %u: f32[1x6x2x2] = reshape{{shape=(-1, 6, 2, 2)}}(%t)
  %y: f32[1x2x2x2] = conv(%{read}, %c)
  return output: %y
}}"""


def test_channel_shuffle_loses_the_same_channels_in_each_group() -> None:
    coupling = couple(parse(SHUFFLE.format(read="u")))
    assert units(coupling, "a") == [0, 1, 2, 0, 1, 2]
    assert units(coupling, "c", 1) == [0, 0, 1, 1, 2, 2]


def test_pixel_shuffle_ties_the_channels_of_one_pixel() -> None:
    coupling = couple(
        parse("""
graph(%x: f32[1x3x2x2]) {
  const %a: f32[8x3x1x1]
  const %c: f32[2x2x1x1]
  %h: f32[1x8x2x2] = conv(%x, %a)
  %s: f32[1x2x2x2x2x2] = reshape{shape=(-1, 2, 2, 2, 2, 2)}(%h)
  %t: f32[1x2x2x2x2x2] = permute{order=(0, 1, 4, 2, 5, 3)}(%s)
  %u: f32[1x2x4x4] = reshape{shape=(-1, 2, 4, 4)}(%t)
  %y: f32[1x2x4x4] = conv(%u, %c)
  return output: %y
}""")
    )
    assert units(coupling, "a") == [0] * 4 + [1] * 4
    assert units(coupling, "c", 1) == [0, 1]


def test_depthwise_convolution_carries_channels_through() -> None:
    coupling = couple(
        parse("""
graph(%x: f32[1x3x8x8]) {
  const %a: f32[4x3x1x1]
  const %d: f32[4x1x1x1]
  const %c: f32[2x4x1x1]
  %h: f32[1x4x8x8] = conv(%x, %a)
  %g: f32[1x4x8x8] = conv{groups=4}(%h, %d)
  %y: f32[1x2x8x8] = conv(%g, %c)
  return output: %y
}""")
    )
    assert units(coupling, "a") == units(coupling, "d") == units(coupling, "c", 1)


@pytest.mark.parametrize(
    ("groups", "expected"), [(2, [0, 1, 2, 3, 0, 1, 2, 3]), (4, [0, 0, 1, 1, 2, 2, 3, 3])]
)
def test_grouped_convolution_loses_places_of_all_groups_or_whole_groups(
    groups: int, expected: list[int]
) -> None:
    graph = f"""
graph(%x: f32[1x3x2x2]) {{
  const %a: f32[8x3x1x1]
  const %g: f32[8x{8 // groups}x1x1]
  const %c: f32[2x8x1x1]
  %h: f32[1x8x2x2] = conv(%x, %a)
  %k: f32[1x8x2x2] = conv{{groups={groups}}}(%h, %g)
  %y: f32[1x2x2x2] = conv(%k, %c)
  return output: %y
}}"""
    assert units(couple(parse(graph)), "a") == expected


def test_group_norm_keeps_groups_of_one_size() -> None:
    coupling = couple(
        parse("""
graph(%x: f32[1x3x2x2]) {
  const %a: f32[8x3x1x1]
  const %c: f32[2x8x1x1]
  %h: f32[1x8x2x2] = conv(%x, %a)
  %n: f32[1x8x2x2] = group_norm{groups=2}(%h)
  %y: f32[1x2x2x2] = conv(%n, %c)
  return output: %y
}""")
    )
    assert units(coupling, "a") == [0, 1, 2, 3] * 2
    assert "n" in coupling.pooled


FUSED_QKV = """
graph(%x: f32[1x5x6]) {
  const %w: f32[24x6]
  const %o: f32[6x8]
  %h: f32[1x5x24] = linear(%x, %w)
  %s: f32[1x5x3x2x4] = reshape{shape=(-1, 5, 3, 2, 4)}(%h)
  %t: f32[3x1x2x5x4] = permute{order=(2, 0, 3, 1, 4)}(%s)
  %q: f32[1x2x5x4] = select{axis=0, index=0}(%t)
  %k: f32[1x2x5x4] = select{axis=0, index=1}(%t)
  %v: f32[1x2x5x4] = select{axis=0, index=2}(%t)
  %a: f32[1x2x5x4] = attention(%q, %k, %v)
  %p: f32[1x5x2x4] = permute{order=(0, 2, 1, 3)}(%a)
  %r: f32[1x5x8] = reshape{shape=(-1, 5, 8)}(%p)
  %y: f32[1x5x6] = linear(%r, %o)
  return output: %y
}"""


def test_fused_attention_heads_lose_the_same_places() -> None:
    coupling = couple(parse(FUSED_QKV))
    assert units(coupling, "w") == [0, 1, 2, 3] * 6
    assert units(coupling, "o", 1) == [0, 1, 2, 3] * 2


def test_a_key_head_hangs_together_with_all_its_query_heads() -> None:
    coupling = couple(
        parse("""
graph(%x: f32[1x5x6]) {
  const %wq: f32[4x1x6]
  const %wk: f32[2x1x6]
  const %wv: f32[2x1x6]
  const %o: f32[4x1x1]
  %b: f32[1x1x5x6] = reshape{shape=(-1, 1, 5, 6)}(%x)
  %q: f32[1x4x5x6] = mul(%b, %wq)
  %k: f32[1x2x5x6] = mul(%b, %wk)
  %v: f32[1x2x5x6] = mul(%b, %wv)
  %a: f32[1x4x5x6] = attention{grouped=True}(%q, %k, %v)
  %m: f32[1x4x5x6] = mul(%a, %o)
  %y: f32[1x5x6] = sum{axes=(1,)}(%m)
  return output: %y
}""")
    )
    assert units(coupling, "wk") == units(coupling, "wv") == [0, 1]
    assert units(coupling, "wq") == units(coupling, "o") == [0, 0, 1, 1]


def test_tied_weights_are_one_constant_with_one_fate() -> None:
    coupling = couple(
        parse("""
graph(%i: i64[1x5]) {
  const %w: f32[50x4]
  const %a: f32[4x4]
  %e: f32[1x5x4] = embedding(%i, %w)
  %h: f32[1x5x4] = linear(%e, %a)
  %y: f32[1x5x50] = linear(%h, %w)
  return output: %y
}""")
    )
    assert units(coupling, "w", 0) == [STAYS] * 50
    assert units(coupling, "w", 1) == units(coupling, "a", 0) == units(coupling, "a", 1)


def test_gates_of_a_recurrent_layer_belong_to_hidden_units() -> None:
    coupling = couple(
        parse("""
graph(%x: f32[1x7x3]) {
  const %i: f32[12x3]
  const %h: f32[12x4]
  const %c: f32[2x4]
  %y: f32[1x7x4], %s: f32[1x1x4] = gru{bias=False, batch_first=True}(%x, none, %i, %h)
  %z: f32[1x7x2] = linear(%y, %c)
  return output: %z
}""")
    )
    assert units(coupling, "i") == units(coupling, "h", 0) == units(coupling, "h", 1) * 3 == [0, 1, 2, 3] * 3
    assert units(coupling, "c", 1) == [0, 1, 2, 3]


def test_an_operator_without_a_rule_is_refused_with_the_users_line() -> None:
    graph = parse("""
graph(%x: f32[1x3x2x2]) {
  const %a: f32[4x3x1x1]
  const %c: f32[2x4x1x1]
  %h: f32[1x4x2x2] = conv(%x, %a)
  %r: f32[1x4x2x2] = torch_call{call="aten.rot90.default(x0, 1, [2, 3])"}(%h)
  %y: f32[1x2x2x2] = conv(%r, %c)
  return output: %y
}""")
    line = Source("net.spin", "net.py:7")
    coupling = couple(replace(graph, nodes=tuple(replace(node, source=line) for node in graph.nodes)))
    assert coupling.count == 0
    (refusal,) = coupling.refusals
    assert str(refusal) == "%r (net.spin at net.py:7): aten.rot90.default has no rule for channel coupling"


def test_a_reshape_that_leaves_no_rectangle_keeps_its_channels() -> None:
    coupling = couple(
        parse("""
graph(%x: f32[1x3x2x2]) {
  const %a: f32[4x3x1x1]
  %h: f32[1x4x2x2] = conv(%x, %a)
  %y: f32[1x2x8] = reshape{shape=(-1, 2, 8)}(%h)
  return output: %y
}""")
    )
    assert coupling.count == 0
    assert not coupling.refusals


def chain(length: int) -> Graph:
    lines = [f"  %h{i + 1}: f32[1x4] = linear(%h{i}, %w{i})" for i in range(length)]
    constants = [f"  const %w{i}: f32[4x4]" for i in range(length)]
    return parse(
        "\n".join(["graph(%h0: f32[1x4]) {", *constants, *lines, f"  return output: %h{length}", "}"])
    )


def test_long_chains_are_walked_without_recursion() -> None:
    coupling = couple(chain(3000))
    assert coupling.count == 4 * 2999
    assert len(np.unique(coupling.groups)) == 2999


def test_whole_heads_go_where_that_is_asked_for() -> None:
    coupling = couple(parse(FUSED_QKV), whole_heads=True)
    assert units(coupling, "w") == [0] * 4 + [1] * 4 + [0] * 4 + [1] * 4 + [0] * 4 + [1] * 4
    assert units(coupling, "o", 1) == [0] * 4 + [1] * 4
    assert coupling.head_groups.tolist() == [True]


def test_channels_beside_whole_heads_are_no_heads() -> None:
    text = FUSED_QKV.replace("const %o: f32[6x8]", "const %o: f32[7x8]\n  const %z: f32[2x7]")
    text = text.replace(
        "%y: f32[1x5x6] = linear(%r, %o)",
        "%g: f32[1x5x7] = linear(%r, %o)\n  %y: f32[1x5x2] = linear(%g, %z)",
    )
    coupling = couple(parse(text), whole_heads=True)
    assert coupling.head_groups.tolist() == [True, False]


REPEATED_KEYS = """
graph(%x: f32[2x5x6]) {
  const %wq: f32[16x6]
  const %wk: f32[8x6]
  const %wv: f32[8x6]
  const %o: f32[6x16]
  %q1: f32[2x5x16] = linear(%x, %wq)
  %q2: f32[2x5x4x4] = reshape{shape=(-1, 5, 4, 4)}(%q1)
  %q: f32[2x4x5x4] = permute{order=(0, 2, 1, 3)}(%q2)
  %k1: f32[2x5x8] = linear(%x, %wk)
  %k2: f32[2x5x2x4] = reshape{shape=(-1, 5, 2, 4)}(%k1)
  %k3: f32[2x5x2x1x4] = reshape{shape=(-1, 5, 2, 1, 4)}(%k2)
  %k4: f32[2x5x2x2x4] = expand{shape=(-1, -1, -1, 2, -1)}(%k3)
  %k5: f32[2x5x4x4] = reshape{shape=(-1, 5, 4, 4)}(%k4)
  %k: f32[2x4x4x5] = permute{order=(0, 2, 3, 1)}(%k5)
  %v1: f32[2x5x8] = linear(%x, %wv)
  %v2: f32[2x5x2x4] = reshape{shape=(-1, 5, 2, 4)}(%v1)
  %v3: f32[2x5x4x4] = torch_call{call="aten.repeat_interleave.self_int(x0, 2, 2)"}(%v2)
  %v: f32[2x4x5x4] = permute{order=(0, 2, 1, 3)}(%v3)
  %s: f32[2x4x5x5] = matmul(%q, %k)
  %m: f32[2x4x5x5] = softmax{axis=3}(%s)
  %a: f32[2x4x5x4] = matmul(%m, %v)
  %p: f32[2x5x4x4] = permute{order=(0, 2, 1, 3)}(%a)
  %r: f32[2x5x16] = reshape{shape=(-1, 5, 16)}(%p)
  %y: f32[2x5x6] = linear(%r, %o)
  return output: %y
}"""


def test_a_head_of_keys_goes_with_the_queries_it_is_repeated_for() -> None:
    coupling = couple(parse(REPEATED_KEYS), whole_heads=True)
    assert units(coupling, "wk") == units(coupling, "wv") == [0] * 4 + [1] * 4
    assert units(coupling, "wq") == units(coupling, "o", 1) == [0] * 8 + [1] * 8


MIXING = frozenset(
    {
        "torch_call"
    }  # of the overloads that are listed for pruning none is in integers, so sums are not declared
)


@pytest.mark.parametrize("name", [n for n in sorted(OPERATORS) if n not in MIXING])
@settings(max_examples=max(6, settings.default.max_examples // 8), deadline=None)
@given(st.data(), st.integers(0, 99))
def test_a_unit_that_no_operator_sums_over_changes_its_own_channels_only(
    name: str, data: st.DataObject, seed: int
) -> None:
    example = data.draw(examples(name))
    graph, samples = opened(example.graph, example.inputs)
    check_separate(graph, samples, seed=seed)


def test_a_sum_that_is_not_declared_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = parse(
        """graph() {
  const %a: f32[4x4]
  const %b: f32[4x4]
  %y: f32[4x4] = matmul(%a, %b)
  %s: f32[4x4] = add(%y, %a)
  %z: f32[] = sum{axes=(0, 1)}(%s)
  return output: %z
}""",
        fill=drawn_constant,
    )
    check_separate(graph, [], seed=0)
    monkeypatch.setattr(NodeCall, "sum_over", lambda call, *axes: None)
    with pytest.raises(AssertionError, match="changes other channels of %y"):
        for seed in range(8):
            check_separate(graph, [], seed=seed)
