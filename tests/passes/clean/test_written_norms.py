"""Norms that are written out: which forms become the norm operators, and that they compute the same."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fxpress.compiler import capture
from fxpress.ir import Graph, parse, run
from fxpress.ir.ops.norm import LayerNorm, RmsNorm
from fxpress.passes import Context, find_pass
from fxpress.specs.options import CleanOptions

WIDTH = 8
W, B = (torch.linspace(*ends, WIDTH) for ends in ((0.5, 1.5), (-1.0, 2.0)))
ROWS = torch.randn(2, 6, WIDTH, generator=torch.Generator().manual_seed(0)) * torch.tensor(
    [0.01, 0.1, 1, 10, 100, 3]
).view(6, 1)
IMAGE = torch.randn(2, WIDTH, 4, 3, generator=torch.Generator().manual_seed(1)) + 0.5


class Net(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def mean(x: Tensor, *axes: int) -> Tensor:
    return x.mean(axes or (-1,), keepdim=True)


def centred(x: Tensor, *axes: int) -> Tensor:
    return x - mean(x, *axes)


def unbiased(x: Tensor) -> Tensor:
    return centred(x).square().sum(-1, keepdim=True) / (WIDTH - 1)


def clean(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Graph, Graph]:
    graph = capture(Net(function), (x,)).graph
    return graph, find_pass("clean")(graph, CleanOptions(), Context()).graph


RMS: dict[str, Callable[[Tensor], Tensor]] = {
    "weight outside": lambda x: W * (x * torch.rsqrt(mean(x.pow(2)) + 1e-6)),
    "weight plus one": lambda x: (x * torch.rsqrt(mean(x.pow(2)) + 1e-6)) * (1.0 + W),
    "weight first": lambda x: W * x * torch.rsqrt(mean(x * x) + 1e-6),
    "divided by the root": lambda x: x / torch.sqrt(mean(x.square()) + 1e-5) * W,
    "power": lambda x: x * (mean(x.pow(2)) + 1e-5) ** -0.5,
    "sum of squares": lambda x: x / (x.pow(2).sum(-1, keepdim=True) / WIDTH + 1e-5) ** 0.5,
    "length": lambda x: x / x.pow(2).sum(-1, keepdim=True).sqrt().clamp(min=1e-12),
    "unsqueezed": lambda x: x * torch.rsqrt(x.pow(2).mean(-1) + 1e-6).unsqueeze(-1) * W,
}
LAYER: dict[str, Callable[[Tensor], Tensor]] = {
    "root": lambda x: centred(x) / torch.sqrt(mean(centred(x).pow(2)) + 1e-5) * W + B,
    "weight first": lambda x: W * centred(x) / torch.sqrt(mean(centred(x).pow(2)) + 1e-5) + B,
    "weight at the root": lambda x: centred(x) * (torch.rsqrt(mean(centred(x).pow(2)) + 1e-5) * W) + B,
    "unbiased deviation": lambda x: W * centred(x) / (unbiased(x).sqrt() + 1e-6) + B,
}
CHANNELS: dict[str, Callable[[Tensor], Tensor]] = {
    "first": lambda x: centred(x, 1) / torch.sqrt(mean(centred(x, 1).pow(2), 1) + 1e-6) * W.view(-1, 1, 1),
    "spatial": lambda x: centred(x, 2, 3) * torch.rsqrt(mean(centred(x, 2, 3).pow(2), 2, 3) + 1e-6),
}


@pytest.mark.parametrize("form", RMS)
def test_a_written_rms_norm_becomes_one(form: str) -> None:
    before, after = clean(RMS[form], ROWS)
    (node,) = after.nodes
    assert isinstance(node.op, RmsNorm)
    torch.testing.assert_close(run(after, [ROWS])[0], run(before, [ROWS])[0], rtol=2e-6, atol=1e-7)


@pytest.mark.parametrize("form", LAYER)
def test_a_written_layer_norm_becomes_one(form: str) -> None:
    before, after = clean(LAYER[form], ROWS)
    (node,) = after.nodes
    assert isinstance(node.op, LayerNorm) and len(node.operands) == 3
    torch.testing.assert_close(run(after, [ROWS])[0], run(before, [ROWS])[0], rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("form", CHANNELS)
def test_a_norm_over_other_dimensions_names_them(form: str) -> None:
    before, after = clean(CHANNELS[form], IMAGE)
    (node,) = after.nodes
    assert isinstance(node.op, LayerNorm)
    assert node.op.axes == ((1,) if form == "first" else ())
    torch.testing.assert_close(run(after, [IMAGE])[0], run(before, [IMAGE])[0], rtol=1e-5, atol=2e-6)


def test_the_mean_of_squares_less_the_square_of_the_mean_is_a_variance() -> None:
    before, after = clean(lambda x: centred(x) / torch.sqrt(mean(x * x) - mean(x) ** 2 + 1e-5), ROWS)
    assert [type(node.op) for node in after.nodes] == [LayerNorm]
    exact = run(before, [ROWS.double()])[0].float()
    torch.testing.assert_close(run(after, [ROWS])[0], exact, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x * torch.rsqrt(mean(centred(x).pow(2)) + 1e-6),
        lambda x: centred(x) * torch.rsqrt(mean(x.pow(2)) + 1e-6),
        lambda x: x * torch.rsqrt(mean(x.pow(2), 1) + 1e-6) * torch.rsqrt(mean(x.pow(2)) - 1e-6),
        lambda x: x[:, :1] * torch.rsqrt(mean(x.pow(2)) + 1e-6),
        lambda x: x / x.pow(2).sum(-1, keepdim=True).sqrt().clamp(min=0.1),
    ],
    ids=["variance beside x", "squares beside the centred", "negative eps", "another x", "large bound"],
)
def test_what_is_no_norm_stays(function: Callable[[Tensor], Tensor]) -> None:
    _, after = clean(function, ROWS)
    assert any(node.op.name in ("rsqrt", "div") for node in after.nodes)


def test_a_statistic_that_is_an_output_keeps_the_norm_as_it_is() -> None:
    text = """
    graph(%x: f32[2x8]) {
      %s: f32[2x8] = pow(%x)
      %m: f32[2x1] = mean{axes=(1,), keepdim=True}(%s)
      %r: f32[2x1] = rsqrt(%m)
      %y: f32[2x8] = mul(%x, %r)
      return output: %y, scale: %r
    }"""
    before = parse(text)
    assert find_pass("clean")(before, CleanOptions(), Context()).graph == before
    alone = parse(text.replace(", scale: %r", ""))
    assert len(find_pass("clean")(alone, CleanOptions(), Context()).graph.nodes) == 1


def test_the_rule_can_be_switched_off() -> None:
    graph = capture(Net(RMS["weight outside"]), (ROWS,)).graph
    after = find_pass("clean")(graph, CleanOptions(disable=("norms",)), Context()).graph
    assert "rsqrt" in [node.op.name for node in after.nodes]
