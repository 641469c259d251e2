"""A module whose tensors are read when they are used gives the results of the module in memory."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from fxpress.backends.torch_module import emit, lazy_module
from fxpress.compiler import capture
from fxpress.ir import Graph, LazyTensor, Params
from fxpress.passes import weight_only
from fxpress.specs.options import WeightOnlyOptions


class Net(nn.Module):
    """A table that is also the last layer, a recurrent layer, a norm and a constant of the root."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(16, 32)
        self.mix = nn.GRU(32, 32, batch_first=True)
        self.norm = nn.LayerNorm(32)
        self.wide = nn.Linear(32, 32)
        self.gain = nn.Parameter(torch.full((32,), 1.5))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.mix(self.table(ids))[0]
        return nn.functional.linear(self.norm(self.wide(x)) * self.gain, self.table.weight)


IDS = torch.tensor([[3, 1, 15, 0]])


def graph(dtype: torch.dtype = torch.float32) -> Graph:
    torch.manual_seed(0)
    return capture(Net().to(dtype).eval(), (IDS,)).graph


@pytest.mark.parametrize(
    "stored",
    [None, {}, {"weights": "nf4"}, {"rounding": {"kind": "hqq"}}, {"scales": "double"}, {"weights": "mxfp4"}],
)
def test_it_computes_what_the_module_in_memory_computes(stored: dict[str, object] | None) -> None:
    taken = graph()
    if stored is not None:
        taken = weight_only(taken, WeightOnlyOptions.model_validate(stored)).graph
    artifact = emit(taken)
    alive: list[str] = []
    lazy = replace(
        artifact,
        tensors=Params({name: watched(name, tensor, alive) for name, tensor in artifact.tensors.items()}),
    )
    with torch.no_grad():
        assert torch.equal(lazy_module(lazy)(IDS), artifact.build()(IDS))
    assert {"norm.weight", "gain"} <= set(alive)


def watched(name: str, tensor: Tensor, reads: list[str]) -> LazyTensor:
    def load() -> Tensor:
        reads.append(name)
        return tensor.clone()

    return LazyTensor(tuple(tensor.shape), tensor.dtype, load)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_stored_weights_of_half_precision_are_multiplied_by_the_kernel(dtype: torch.dtype) -> None:
    stored = weight_only(graph(dtype), WeightOnlyOptions())
    artifact = emit(stored.graph)
    forward = artifact.source.partition("def forward(self, ids)")[2]
    assert ".rows(" in forward and forward.count(".linear(") == 2 and not stored.report.warnings[1:]
    with torch.no_grad():
        y = artifact.build()(IDS)
        expected = nn.Module.__call__(Net().to(dtype).eval(), IDS)
    assert y.dtype is dtype and y.shape == expected.shape
