"""Attention to repeated heads of keys and values reads them without the repetition, and computes the same."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fxpress.backends.repeated_heads import group_repeated_heads
from fxpress.backends.torch_module import emit
from fxpress.compiler import capture
from fxpress.ir import Graph, run
from fxpress.ir.ops.attention import Attention

HEADS, REPEATS, LENGTH, WIDTH = 2, 3, 5, 8


def expanded(x: Tensor) -> Tensor:
    lead, rest = x.shape[:-2], x.shape[-2:]
    return x.unsqueeze(-3).expand(*lead, REPEATS, *rest).reshape(*lead[:-1], -1, *rest)


REPETITIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "repeat_interleave": lambda x: x.repeat_interleave(REPEATS, -3),
    "repeat_interleave_by_position": lambda x: x.repeat_interleave(REPEATS, dim=x.ndim - 3),
    "expanded": expanded,
    "copied": lambda x: expanded(x.clone()).contiguous(),
}
OTHERS: dict[str, Callable[[Tensor], Tensor]] = {
    "tiled": lambda x: x.repeat(*[1] * (x.ndim - 3), REPEATS, 1, 1),
    "of_positions": lambda x: x.repeat_interleave(REPEATS, -3).repeat_interleave(2, -2),
    "in_another_order": lambda x: (
        x.unsqueeze(-4).expand(REPEATS, HEADS, LENGTH, WIDTH).reshape(-1, LENGTH, WIDTH)
    ),
}


class Net(nn.Module):
    def __init__(self, repeat: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.repeat = repeat

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        k, v = self.repeat(k), self.repeat(v)
        mask = torch.arange(k.shape[-2]) <= 2
        return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask[None])


def tensors(*lead: int, queries: int = 4, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    sizes = ((HEADS * REPEATS, queries, WIDTH), (HEADS, LENGTH, WIDTH), (HEADS, LENGTH, WIDTH))
    return tuple(torch.randn(*lead, *size, generator=generator).to(dtype) for size in sizes)


def is_grouped(graph: Graph) -> bool:
    (op,) = (node.op for node in graph.nodes if isinstance(node.op, Attention))
    return op.grouped


@pytest.mark.parametrize("repetition", REPETITIONS)
@pytest.mark.parametrize("lead", [(), (1,), (2,)])
@pytest.mark.parametrize("queries", [1, 4])
def test_repeated_heads_are_read_once(repetition: str, lead: tuple[int, ...], queries: int) -> None:
    inputs = tensors(*lead, queries=queries)
    graph = capture(Net(REPETITIONS[repetition]), inputs).graph
    grouped = group_repeated_heads(graph)
    assert is_grouped(grouped) and not is_grouped(graph) and len(grouped.nodes) < len(graph.nodes)
    assert torch.equal(run(grouped, inputs)[0], run(graph, inputs)[0])
    assert group_repeated_heads(grouped) is grouped


@pytest.mark.parametrize("other", OTHERS)
def test_other_repetitions_stay(other: str) -> None:
    inputs = tensors()
    graph = capture(Net(OTHERS[other]), inputs).graph
    assert group_repeated_heads(graph) is graph


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_emitted_module_has_no_copy_of_the_heads(dtype: torch.dtype) -> None:
    inputs = tensors(1, dtype=dtype)
    artifact = emit(capture(Net(REPETITIONS["repeat_interleave"]), inputs).graph)
    assert "repeat_interleave" not in artifact.source and "enable_gqa=True" in artifact.source
    assert torch.equal(artifact.build()(*inputs), Net(REPETITIONS["repeat_interleave"])(*inputs))
