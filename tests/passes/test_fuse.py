"""Fusion into layers: what fires, what must not, and that the function stays."""

from __future__ import annotations

import torch
from fxpress.ir import Graph, Value, dump, parse, run
from fxpress.passes import find_pass
from fxpress.passes.report import PassReport
from fxpress.specs.options import FuseOptions


def fill(value: Value) -> torch.Tensor:
    generator = torch.Generator().manual_seed(len(value.name))
    tensor = torch.randn(value.type.shape, generator=generator)
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
        "  const %wbias: f32[4]\n"
        "  %r: f32[1x4x8x8] = conv{padding=(1, 1, 1, 1), clamp=(0.0, inf)}(%x, %w, %wbias)\n"
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
