"""Attention that a model writes out becomes the operator, which computes the same."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fxpress.compiler.frontend.capture import capture
from fxpress.ir import run
from fxpress.ir.ops.attention import Attention
from fxpress.passes.quantize.written_attention import fuse_written_attention

WINDOWS, HEADS, TOKENS, WIDTH = 4, 3, 9, 5
SCORES = (WINDOWS, HEADS, TOKENS, TOKENS)


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(len(shape)))


BIAS, MASK, OTHER = draw(HEADS, TOKENS, TOKENS), draw(1, WINDOWS, 1, TOKENS, TOKENS), draw(1, 6, TOKENS, 1)


def plain(scores: Tensor) -> Tensor:
    return scores


def scaled_and_biased(scores: Tensor) -> Tensor:
    return scores / 2 * 0.5 + BIAS[None]


def of_shifted_windows(scores: Tensor) -> Tensor:
    """As in Swin: a bias for each head, then a mask for each window."""
    apart = (scores * 0.5 + BIAS).view(1, WINDOWS, HEADS, TOKENS, TOKENS)
    return (apart + MASK).view(SCORES)


def of_other_batches(scores: Tensor) -> Tensor:
    """An addend whose dimensions have other sizes after the reshape."""
    return (scores.view(2, 6, TOKENS, TOKENS) + OTHER).view(SCORES)


class Written(nn.Module):
    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.change = change

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.change(q @ k.transpose(-2, -1)).softmax(-1) @ v


@pytest.mark.parametrize("change", [plain, scaled_and_biased, of_shifted_windows, of_other_batches])
def test_it_computes_the_same(change: Callable[[Tensor], Tensor]) -> None:
    inputs = [draw(WINDOWS, HEADS, TOKENS, WIDTH) + i for i in range(3)]
    graph = capture(Written(change), inputs).graph
    fused, decisions = fuse_written_attention(graph)
    assert [decision.applied for decision in decisions] == [True]
    assert any(isinstance(node.op, Attention) for node in fused.nodes)
    for found, expected in zip(run(fused, inputs), run(graph, inputs), strict=True):
        assert torch.allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_scores_that_are_read_elsewhere_are_left() -> None:
    class Shown(nn.Module):
        def forward(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
            scores = q @ k.transpose(-2, -1)
            return scores.softmax(-1) @ v, scores

    inputs = [draw(1, HEADS, TOKENS, WIDTH) for _ in range(3)]
    fused, decisions = fuse_written_attention(capture(Shown(), inputs).graph)
    assert decisions == () and not any(isinstance(node.op, Attention) for node in fused.nodes)
