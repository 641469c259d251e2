"""Negative places of elements: `index_put` counts them from the end, `index_copy` of torch refuses them."""

import pytest
import torch
from torch import Tensor, nn

from fxpress.compiler import capture
from fxpress.ir import Graph, run
from fxpress.ir.ops.put import IndexCopy

CACHE, ROWS, LAST = torch.zeros(1, 4, 3), torch.ones(1, 1, 3), torch.tensor([-1])


class Written(nn.Module):
    def __init__(self, *, is_copy: bool) -> None:
        super().__init__()
        self.is_copy = is_copy

    def forward(self, cache: Tensor, at: Tensor, rows: Tensor) -> Tensor:
        if self.is_copy:
            return cache.index_copy(1, at, rows)
        cache = cache.clone()
        cache[:, at] = rows
        return cache


def captured(*, is_copy: bool) -> Graph:
    graph = capture(Written(is_copy=is_copy), (CACHE, torch.tensor([2]), ROWS)).graph
    (op,) = (node.op for node in graph.nodes if isinstance(node.op, IndexCopy))
    assert op.wraps is not is_copy
    return graph


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_negative_places_count_from_the_end_where_torch_takes_them(dtype: torch.dtype) -> None:
    written = run(captured(is_copy=False), (CACHE, torch.tensor([-1]), ROWS))[0]
    assert torch.equal(written[:, 3], ROWS[:, 0]) and not written[:, :3].any()
    assert torch.equal(IndexCopy(1).reference(CACHE, LAST.to(dtype), ROWS), written)


def test_negative_places_are_refused_where_torch_refuses_them() -> None:
    with pytest.raises(Exception, match=r"out of (range|bounds)"):
        Written(is_copy=True)(CACHE, LAST, ROWS)
    with pytest.raises(Exception, match=r"out of (range|bounds)"):
        run(captured(is_copy=True), (CACHE, LAST, ROWS))
