"""Fusion into layers: rules that apply, rules that must not, and an unchanged function."""

from __future__ import annotations

from itertools import pairwise
from math import inf

import pytest
import torch

from fxpress.ir import Graph, Value, dump, parse, run
from fxpress.ir.ops.binary import Sub
from fxpress.ir.ops.conv import Conv
from fxpress.ir.testing import drawn_constant
from fxpress.passes import find_pass
from fxpress.passes.report import PassReport
from fxpress.specs.options import FuseOptions


def fill(value: Value) -> torch.Tensor:
    tensor = drawn_constant(value)
    return tensor.abs() + 0.1 if "var" in value.name else tensor


def graph(text: str) -> Graph:
    return parse(text, fill=fill)


def fuse(before: Graph, **options: object) -> tuple[Graph, PassReport]:
    result = find_pass("fuse")(before, FuseOptions.model_validate(options))
    return result.graph, result.report


def operators(after: Graph) -> list[str]:
    return [node.op.name for node in after.nodes]


def assert_same_function(a: Graph, b: Graph) -> None:
    inputs = [torch.randn(v.type.shape, generator=torch.Generator().manual_seed(7)) for v in a.inputs]
    for x, y in zip(run(a, inputs), run(b, inputs), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-5)


CONV_NORM_RELU = """
graph(%x: f32[1x3x8x8]) {
  const %w: f32[4x3x3x3]
  const %gamma: f32[4]
  const %beta: f32[4]
  const %mean: f32[4]
  const %var: f32[4]
  %c: f32[1x4x8x8] = conv{padding=(1, 1, 1, 1)}(%x, %w)
  %n: f32[1x4x8x8] = batch_norm(%c, %gamma, %beta, %mean, %var)
  %r: f32[1x4x8x8] = relu(%n)
  return output: %r
}"""


def test_a_batch_norm_and_a_relu_go_into_the_convolution_before_them() -> None:
    before = graph(CONV_NORM_RELU)
    after, report = fuse(before)
    assert dump(after) == (
        "graph(%x: f32[1x3x8x8]) {\n"
        "  const %w: f32[4x3x3x3]\n"
        "  const %w_bias: f32[4]\n"
        "  %r: f32[1x4x8x8] = conv{padding=(1, 1, 1, 1), clamp=(0.0, inf)}(%x, %w, %w_bias)\n"
        "  return output: %r\n"
        "}\n"
    )
    assert_same_function(before, after)
    assert report.applied == {"fold_batchnorm": 1, "fuse_activation": 1}


def test_fusion_keeps_a_convolution_whose_result_has_another_use() -> None:
    before = graph(CONV_NORM_RELU.replace("return output: %r", "return output: %r, raw: %c"))
    after, report = fuse(before)
    assert operators(after) == ["conv", "batch_norm", "relu"]
    assert report.declined["fold_batchnorm"] == {"the result of the conv before it has another use": 1}


def test_a_rule_that_is_disabled_does_nothing() -> None:
    before = graph(CONV_NORM_RELU)
    assert operators(fuse(before, disable=("batchnorm",))[0]) == ["conv", "batch_norm", "relu"]
    assert fuse(before, disable=("batchnorm", "activation", "residual", "pad", "linear"))[0] == before


LINEAR_NORM = """
graph(%x: f32[2x6]) {
  const %w: f32[4x6]
  const %b: f32[4]
  const %mean: f32[4]
  const %var: f32[4]
  %l: f32[2x4] = linear(%x, %w, %b)
  %n: f32[2x4] = batch_norm(%l, none, none, %mean, %var)
  return output: %n
}"""


def test_a_batch_norm_without_affine_goes_into_the_linear_layer_before_it() -> None:
    before = graph(LINEAR_NORM)
    after, _ = fuse(before)
    assert operators(after) == ["linear"]
    assert_same_function(before, after)


def test_a_batch_norm_over_another_dimension_than_the_outputs_stays() -> None:
    before = graph(
        """
        graph(%x: f32[2x3x6]) {
          const %w: f32[4x6]
          const %mean: f32[3]
          const %var: f32[3]
          %l: f32[2x3x4] = linear(%x, %w)
          %n: f32[2x3x4] = batch_norm(%l, none, none, %mean, %var)
          return output: %n
        }"""
    )
    after, report = fuse(before)
    assert after == before
    reason = "the batch norm runs over another dimension than the outputs of the linear layer"
    assert report.declined["fold_batchnorm"] == {reason: 1}


def test_a_batch_norm_goes_into_a_transposed_convolution_in_groups() -> None:
    before = graph(
        """
        graph(%x: f32[1x4x5x5]) {
          const %w: f32[4x3x3x3]
          const %gamma: f32[6]
          const %beta: f32[6]
          const %mean: f32[6]
          const %var: f32[6]
          %c: f32[1x6x11x11] = conv_transpose{stride=(2, 2), groups=2}(%x, %w)
          %n: f32[1x6x11x11] = batch_norm(%c, %gamma, %beta, %mean, %var)
          return output: %n
        }"""
    )
    after, _ = fuse(before)
    assert operators(after) == ["conv_transpose"]
    assert_same_function(before, after)


def test_a_batch_norm_before_a_convolution_in_groups_goes_into_it() -> None:
    before = graph(NORM_CONV.replace("PADDING", ""))
    after, _ = fuse(before)
    assert operators(after) == ["conv"]
    assert_same_function(before, after)


NORM_CONV = """
graph(%x: f32[1x4x5x5]) {
  const %w: f32[6x2x3x3]
  const %gamma: f32[4]
  const %beta: f32[4]
  const %mean: f32[4]
  const %var: f32[4]
  %n: f32[1x4x5x5] = batch_norm(%x, %gamma, %beta, %mean, %var)
  %c: f32[1x6x3x3] = conv{groups=2PADDING}(%n, %w)
  return output: %c
}"""


def test_a_batch_norm_before_a_convolution_that_pads_stays() -> None:
    before = graph(NORM_CONV.replace("PADDING", ", padding=(1, 1, 1, 1)").replace("6x3x3] =", "6x5x5] ="))
    after, report = fuse(before)
    assert after == before
    reason = "the convolution pads with zeros, which the batch norm would have shifted"
    assert report.declined["fold_batchnorm_before"] == {reason: 1}


def test_of_two_calls_of_a_shared_convolution_only_the_one_with_a_batch_norm_is_folded() -> None:
    before = graph(
        """
        graph(%x: f32[1x3x8x8]) {
          const %w: f32[3x3x1x1]
          const %mean: f32[3]
          const %var: f32[3]
          %a: f32[1x3x8x8] = conv(%x, %w)
          %n: f32[1x3x8x8] = batch_norm(%a, none, none, %mean, %var)
          %t: f32[1x3x8x8] = tanh(%n)
          %b: f32[1x3x8x8] = conv(%t, %w)
          return output: %b
        }"""
    )
    after, _ = fuse(before)
    assert operators(after) == ["conv", "tanh", "conv"]
    assert_same_function(before, after)


def test_bounds_of_a_clamp_after_a_clamp_are_merged_into_the_producer() -> None:
    before = graph(
        """
        graph(%x: f32[1x3x8x8], %y: f32[1x3x8x8]) {
          %s: f32[1x3x8x8] = sub(%x, %y)
          %a: f32[1x3x8x8] = clamp{low=-2.0, high=-0.5}(%s)
          %b: f32[1x3x8x8] = clamp{low=-1.0, high=3.0}(%a)
          %c: f32[1x3x8x8] = relu(%b)
          return output: %c, half: %b
        }"""
    )
    after, _ = fuse(before)
    assert [n.op for n in after.nodes if n.op.name == "sub"] == [Sub(clamp=(-1.0, -0.5))]
    assert_same_function(before, after)


@pytest.mark.parametrize(
    ("first", "second", "bounds"),
    [
        ((-2.0, -0.5), (1.0, 3.0), (1.0, 1.0)),
        ((2.0, 5.0), (-1.0, 1.0), (1.0, 1.0)),
        ((-3.0, -1.0), (0.0, inf), (0.0, 0.0)),
    ],
)
def test_bounds_that_do_not_overlap_leave_the_end_of_the_second(
    first: tuple[float, float], second: tuple[float, float], bounds: tuple[float, float]
) -> None:
    before = graph(
        f"""
        graph(%x: f32[1x3x8x8], %y: f32[1x3x8x8]) {{
          %s: f32[1x3x8x8] = sub(%x, %y)
          %a: f32[1x3x8x8] = clamp{{low={first[0]}, high={first[1]}}}(%s)
          %b: f32[1x3x8x8] = clamp{{low={second[0]}, high={second[1]}}}(%a)
          return output: %b
        }}"""
    )
    after, _ = fuse(before)
    assert [n.op for n in after.nodes] == [Sub(clamp=bounds)]
    assert_same_function(before, after)


RESIDUAL = """
graph(%x: f32[1x4x8x8]) {
  const %w: f32[4x4x3x3]
  const %v: f32[4x4x1x1]
  %c: f32[1x4x8x8] = conv{padding=(1, 1, 1, 1)CLAMP}(%x, %w)
  %d: f32[1x4x8x8] = conv(%x, %v)
  %s: f32[1x4x8x8] = add(%c, %d)
  %r: f32[1x4x8x8] = relu(%s)
  return output: %r
}"""


def test_a_residual_addition_goes_into_the_later_of_two_layers_and_the_relu_after_it() -> None:
    before = graph(RESIDUAL.replace("CLAMP", ""))
    after, _ = fuse(before)
    assert operators(after) == ["conv", "conv"]
    assert [v.name for v in after.nodes[1].operands] == ["x", "v", "c"]
    assert_same_function(before, after)


def test_a_residual_addition_stays_out_of_a_layer_that_clamps_first() -> None:
    before = graph(RESIDUAL.replace("CLAMP", ", clamp=(0.0, inf)").replace("%d)\n", "%x)\n"))
    after, report = fuse(before)
    assert operators(after) == ["conv", "add"]
    assert report.declined["fuse_residual"] == {"the conv is clamped before the addition": 1}
    assert_same_function(before, after)


def test_a_residual_that_broadcasts_is_not_fused() -> None:
    before = graph(
        """
        graph(%x: f32[1x4x8x8], %g: f32[1x4x1x1]) {
          const %w: f32[4x4x1x1]
          %c: f32[1x4x8x8] = conv(%x, %w)
          %s: f32[1x4x8x8] = add(%c, %g)
          return output: %s
        }"""
    )
    after, report = fuse(before)
    assert after == before
    assert report.declined["fuse_residual"] == {"the other operand broadcasts": 1}


PAD_CONV = """
graph(%x: f32[1x2x5x5]) {
  const %w: f32[3x2x3x3]
  %p: f32[1x2x6x7] = pad{padding=(0, 1, 0, 2)FILL}(%x)
  %c: f32[1x3x2x3] = conv{stride=(2, 2), padding=(0, 0, 1, 0)}(%p, %w)
  return output: %c
}"""


def test_uneven_padding_with_zeros_goes_into_the_convolution() -> None:
    before = graph(PAD_CONV.replace("FILL", ""))
    after, _ = fuse(before)
    assert [n.op for n in after.nodes] == [Conv(stride=(2, 2), padding=(0, 1, 1, 2))]
    assert_same_function(before, after)


def test_padding_with_another_number_stays() -> None:
    before = graph(PAD_CONV.replace("FILL", ", value=1.0"))
    after, report = fuse(before)
    assert after == before
    assert report.declined["fold_pad"] == {"the padding is not with zeros": 1}


def linear_chain(sizes: list[int]) -> str:
    pairs = list(pairwise(sizes))
    constants = "".join(
        f"const %w{i}: f32[{n}x{m}]\nconst %b{i}: f32[{n}]\n" for i, (m, n) in enumerate(pairs)
    )
    names = ["x", *(f"l{i}" for i in range(len(pairs)))]
    nodes = "".join(
        f"%l{i}: f32[3x{n}] = linear(%{names[i]}, %w{i}, %b{i})\n" for i, (_, n) in enumerate(pairs)
    )
    return f"graph(%x: f32[3x{sizes[0]}]) {{\n{constants}{nodes}return output: %{names[-1]}\n}}"


def test_linear_layers_in_a_row_become_one_where_that_is_smaller() -> None:
    before = graph(linear_chain([8, 12, 10, 4]))
    after, _ = fuse(before)
    assert operators(after) == ["linear"]
    assert_same_function(before, after)


def test_a_bottleneck_of_linear_layers_stays() -> None:
    before = graph(linear_chain([16, 2, 16]))
    after, report = fuse(before)
    assert after == before
    assert report.declined["merge_linear"]["merged it has 256 weights, separately 64"] == 1


def test_a_convolution_takes_in_the_pointwise_convolution_after_it_where_that_is_smaller() -> None:
    before = graph(
        """
        graph(%x: f32[1x2x6x6]) {
          const %w: f32[8x2x3x3]
          const %b: f32[8]
          const %v: f32[3x8x1x1]
          %c: f32[1x8x6x6] = conv{padding=(1, 1, 1, 1)}(%x, %w, %b)
          %d: f32[1x3x6x6] = conv{clamp=(0.0, inf)}(%c, %v)
          return output: %d
        }"""
    )
    after, _ = fuse(before)
    assert operators(after) == ["conv"]
    assert_same_function(before, after)


def test_a_depthwise_convolution_and_the_pointwise_after_it_stay_apart() -> None:
    before = graph(
        """
        graph(%x: f32[1x8x6x6]) {
          const %w: f32[8x1x3x3]
          const %v: f32[3x8x1x1]
          %c: f32[1x8x4x4] = conv{groups=8}(%x, %w)
          %d: f32[1x3x4x4] = conv(%c, %v)
          return output: %d
        }"""
    )
    after, report = fuse(before)
    assert after == before
    assert report.declined["merge_conv"]["a convolution in groups"] == 1


def test_a_relu_after_another_function_says_which_layers_take_it() -> None:
    before = graph(
        "graph(%x: f32[4]) {\n%s: f32[4] = sigmoid(%x)\n%r: f32[4] = relu(%s)\nreturn output: %r\n}"
    )
    _, report = fuse(before)
    (refused,) = [d.reason for d in report.decisions if d.rule == "fuse_activation"]
    assert refused == (
        "its operand comes from sigmoid, not from conv or conv_transpose or linear or add or sub or mul"
    )


MAGNITUDE = """
graph(%x: f32[1x6x4]) {
  %re: f32[1x3x4], %im: f32[1x3x4] = split{axis=1, sizes=(3, 3)}(%x)
  %a: f32[1x3x4] = FIRST
  %b: f32[1x3x4] = pow(%im)
  %s: f32[1x3x4] = add(%a, %b)
  %y: f32[1x3x4] = sqrt(%s)
  return output: %y
}"""


def test_the_root_of_two_squares_is_a_magnitude_of_the_same_bits() -> None:
    before = graph(MAGNITUDE.replace("FIRST", "pow(%re)"))
    after, report = fuse(before)
    assert operators(after) == ["split", "magnitude"] and report.applied["magnitude"] == 1
    x = torch.randn(1, 6, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(run(before, [x])[0], run(after, [x])[0])


def test_products_with_itself_are_squares_too() -> None:
    text = MAGNITUDE.replace("FIRST", "mul(%re, %re)").replace("pow(%im)", "mul(%im, %im)")
    assert operators(fuse(graph(text))[0]) == ["split", "magnitude"]


@pytest.mark.parametrize(
    ("first", "rule"), [("pow{exponent=3.0}(%re)", "the exponent is not 2"), ("mul(%re, %im)", "")]
)
def test_another_sum_under_a_root_stays(first: str, rule: str) -> None:
    before = graph(MAGNITUDE.replace("FIRST", first))
    after, report = fuse(before)
    assert "magnitude" not in operators(after)
    assert not rule or rule in report.declined["magnitude"]


@pytest.mark.parametrize(
    ("image", "kernel", "result", "attributes", "left"),
    [
        (1, 3, 1, "padding=(1, 1), stride=(1,), dilation=(1,)", 1),
        (2, 3, 1, "padding=(1, 1), stride=(2,), dilation=(1,)", 2),
        (2, 5, 2, "padding=(8, 0), stride=(1,), dilation=(2,)", 1),
        (2, 3, 3, "padding=(3, 0), stride=(1,), dilation=(1,)", 2),
        (4, 3, 4, "padding=(1, 1), stride=(1,), dilation=(1,)", 3),
    ],
)
def test_taps_that_meet_padding_only_are_left_out(
    image: int, kernel: int, result: int, attributes: str, left: int
) -> None:
    before = graph(f"""graph(%x: f32[1x2x{image}]) {{
  const %w: f32[3x2x{kernel}]
  %y: f32[1x3x{result}] = conv{{{attributes}}}(%x, %w)
  return output: %y
}}""")
    after, report = fuse(before)
    assert after.params["w"].shape == (3, 2, left)
    assert report.applied.get("trim_taps", 0) == (left < kernel)
    assert_same_function(before, after)
