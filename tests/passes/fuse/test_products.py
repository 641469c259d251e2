"""Matrix products with a constant become linear layers, constants added to channels biases."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fxpress.compiler import compile_model
from fxpress.ir import Graph, parse, run
from fxpress.ir.testing import check_rewrite, drawn_constant, drawn_samples
from fxpress.passes import PassResult, find_pass
from fxpress.specs.options import FuseOptions

ALONE = ("batchnorm", "activation", "residual", "pad", "linear", "magnitude")


def fuse(before: Graph) -> PassResult:
    return find_pass("fuse")(before, FuseOptions.model_validate({"disable": ALONE}))


def graph(x: str, constants: str, body: str, y: str) -> Graph:
    consts = "\n  ".join(f"const %{name}" for name in constants.split("; "))
    text = f"graph(%x: f32[{x}]) {{\n  {consts}\n  {body}\n  return output: %y\n}}"
    return parse(text.replace("%y =", f"%y: f32[{y}] ="), fill=drawn_constant)


FUSED = {
    "rows": ("3x4", "w: f32[4x2]", "%y = matmul(%x, %w)", "3x2"),
    "a vector": ("4", "w: f32[4x2]", "%y = matmul(%x, %w)", "2"),
    "batches": ("2x3x5x4", "w: f32[4x2]", "%y = matmul(%x, %w)", "2x3x5x2"),
    "a matrix with a batch of one": ("2x3x4", "w: f32[1x4x2]", "%y = matmul(%x, %w)", "2x3x2"),
    "a bias": ("2x4", "w: f32[4x3]; b: f32[3]", "%p: f32[2x3] = matmul(%x, %w) %y = add(%b, %p)", "2x3"),
    "a bias after another": (
        "2x4",
        "w: f32[3x4]; c: f32[3]; b: f32[1x3]",
        "%p: f32[2x3] = linear(%x, %w, %c) %y = add{clamp=(0.0, inf)}(%p, %b)",
        "2x3",
    ),
    "a number": ("2x4", "w: f32[3x4]; b: f32[]", "%p: f32[2x3] = linear(%x, %w) %y = add(%p, %b)", "2x3"),
    "channels of an image": (
        "1x2x5x6",
        "w: f32[3x2x1x1]; b: f32[3x1x1]",
        "%p: f32[1x3x5x6] = conv(%x, %w) %y = add(%p, %b)",
        "1x3x5x6",
    ),
}
LEFT = {
    "two activations": ("3x3", "w: f32[3]", "%y = matmul(%x, %x)", "3x3", "activations"),
    "a matrix for each batch": ("2x3x4", "w: f32[2x4x2]", "%y = matmul(%x, %w)", "2x3x2", "each batch"),
    "more dimensions": ("3x4", "w: f32[1x4x2]", "%y = matmul(%x, %w)", "1x3x2", "more dimensions"),
    "a constant from the left": ("4x3", "w: f32[2x4]", "%y = matmul(%w, %x)", "2x3", "activations"),
    "a constant vector": ("3x4", "w: f32[4]", "%y = matmul(%x, %w)", "3", "a vector"),
    "rows of a constant": (
        "2x4",
        "w: f32[3x4]; b: f32[2x1]",
        "%p: f32[2x3] = linear(%x, %w) %y = add(%p, %b)",
        "2x3",
        "other dimensions",
    ),
    "a larger result": (
        "1x4",
        "w: f32[3x4]; b: f32[2x3]",
        "%p: f32[1x3] = linear(%x, %w) %y = add(%p, %b)",
        "2x3",
        "another type",
    ),
    "a clamp": (
        "2x4",
        "w: f32[3x4]; b: f32[3]",
        "%p: f32[2x3] = linear{clamp=(0.0, inf)}(%x, %w) %y = add(%p, %b)",
        "2x3",
        "clamped",
    ),
}


@pytest.mark.parametrize("case", FUSED)
def test_one_layer_computes_the_same(case: str) -> None:
    before = graph(*FUSED[case])
    after = fuse(before).graph
    assert [node.op.name for node in after.nodes] == ["conv" if "image" in case else "linear"]
    for sample in drawn_samples(before, 2):
        torch.testing.assert_close(run(after, sample), run(before, sample), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("case", LEFT)
def test_what_is_no_layer_stays_and_is_told(case: str) -> None:
    *parts, reason = LEFT[case]
    before = graph(*parts)
    result = fuse(before)
    assert [node.op for node in result.graph.nodes] == [node.op for node in before.nodes]
    assert any(reason in decision.reason for decision in result.report.decisions)


def test_the_rule_has_the_properties_of_a_rewrite() -> None:
    around = [graph(*FUSED["a bias"]), graph(*FUSED["channels of an image"])]
    check_rewrite(lambda before: fuse(before).graph, tolerance=1e-6, around=around, changes=6)


def test_layers_written_with_parameters_take_the_kernels_of_layers() -> None:
    class Written(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            generator = torch.Generator().manual_seed(0)
            self.w = nn.Parameter(torch.randn(16, 4, 8, generator=generator) / 4)
            self.b = nn.Parameter(torch.randn(4, 8, generator=generator))

        def forward(self, x: Tensor) -> Tensor:
            return torch.einsum("btd,dhe->bthe", x, self.w).flatten(2) + self.b.flatten()

    x = torch.randn(16, 6, 16, generator=torch.Generator().manual_seed(1))
    network = compile_model(
        Written(),
        inputs=x[:1],
        calibration=x,
        passes=["clean", "fuse", "quantize"],
        target="cortex-m4f",
        outputs="c",
    )
    assert network.c is not None
    kernels = {step.offer.kernel for step in network.c.program.steps}
    assert not any("matmul" in kernel for kernel in kernels) and any("dsp" in kernel for kernel in kernels)


@pytest.mark.parametrize("never", [float("-inf"), -1e9, -100.0])
def test_a_mask_that_is_added_to_scores_stays_a_mask(never: float) -> None:
    body = "%p: f32[2x3] = linear(%x, %w) %y = add(%p, %c)"
    before = graph("2x4", "w: f32[3x4]; c: f32[3]", body, "2x3")
    masked = before.with_params({"c": torch.tensor([0.0, never, 0.0])})
    result = fuse(masked)
    assert [node.op.name for node in result.graph.nodes] == ["linear", "add"]
    assert any("what is added is a mask" in decision.reason for decision in result.report.decisions)
