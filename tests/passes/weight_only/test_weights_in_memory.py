"""Methods of a network whose weights are read from files: the weights that are in memory at a time."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch import Tensor, nn

from fxpress.compiler import capture
from fxpress.ir import Graph, LazyTensor, run
from fxpress.passes import rotate, smooth, weight_only
from fxpress.passes.base import Context
from fxpress.specs.options import RotateOptions, SmoothOptions, WeightOnlyOptions

BLOCKS, WIDTH = 12, 32
METHODS: dict[str, dict[str, object]] = {
    "nearest": {},
    "gptq": {"rounding": "gptq"},
    "sequential": {"rounding": {"kind": "gptq", "sequential": True}},
    "awq": {"rounding": {"kind": "awq", "then": "gptq"}},
    "hqq": {"rounding": "hqq"},
    "auto_round": {"rounding": {"kind": "auto_round", "steps": 4}},
    "budget": {"budget": {"weights": "60 %", "samples": 2}},
}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table, self.head = nn.Embedding(16, WIDTH), nn.Linear(WIDTH, 16, bias=False)
        self.norms = nn.ModuleList([nn.RMSNorm(WIDTH) for _ in range(BLOCKS)])
        self.ups = nn.ModuleList([nn.Linear(WIDTH, 2 * WIDTH, bias=False) for _ in range(BLOCKS)])
        self.downs = nn.ModuleList([nn.Linear(2 * WIDTH, WIDTH, bias=False) for _ in range(BLOCKS)])

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids)
        for norm, up, down in zip(self.norms, self.ups, self.downs, strict=True):
            x = x + down(torch.relu(up(norm(x))))
        return self.head(x)


class Memory:
    """Bytes of tensors that were read from lazy ones and are still there, and the most at any time."""

    def __init__(self) -> None:
        self.held = self.most = 0

    def lazy(self, tensor: Tensor) -> LazyTensor:
        return LazyTensor(tuple(tensor.shape), tensor.dtype, lambda: self._read(tensor))

    def _read(self, tensor: Tensor) -> Tensor:
        copy = tensor.clone()
        self._change(copy.nbytes)
        weakref.finalize(copy, self._change, -copy.nbytes)
        return copy

    def _change(self, size: int) -> None:
        self.held += size
        self.most = max(self.most, self.held)


@pytest.fixture
def graph() -> Graph:
    return capture(Net().eval(), (torch.zeros(1, 6, dtype=torch.int64),)).graph


@pytest.fixture
def context() -> Context:
    generator = torch.Generator().manual_seed(0)
    return Context(calibration=[(torch.randint(16, (1, 6), generator=generator),) for _ in range(8)])


def lazy(graph: Graph) -> tuple[Graph, Memory]:
    memory = Memory()
    return graph.with_params({name: memory.lazy(tensor) for name, tensor in graph.params.items()}), memory


@pytest.mark.parametrize("method", METHODS)
def test_weights_of_one_block_are_in_memory_and_the_integers_are_the_same(
    method: str, graph: Graph, context: Context
) -> None:
    options = WeightOnlyOptions.model_validate(METHODS[method])
    from_files, memory = lazy(graph)
    found = weight_only(from_files, options, context).graph
    expected = weight_only(graph, options, context).graph
    block = 4 * 4 * WIDTH * WIDTH
    assert memory.most <= 2.5 * block < sum(t.nbytes for t in graph.params.values()) / 4
    for value in expected.constants:
        assert torch.equal(found.params[value.name], expected.params[value.name]), value.name
        held = found.params.entry(value.name)
        assert isinstance(held, LazyTensor) or not value.type.is_quantized, value.name


@pytest.mark.parametrize("rewrite", ["smooth", "rotate"])
def test_weights_that_a_pass_computes_are_in_files_like_those_that_they_replace(
    rewrite: str, graph: Graph, context: Context
) -> None:
    from_files, memory = lazy(graph)
    if rewrite == "smooth":
        found = smooth(from_files, SmoothOptions(), context).graph
    else:
        found = rotate(from_files, RotateOptions(), context).graph
    matrices = [v for v in found.constants if v.type.rank == 2 and v.name in graph.params]
    assert matrices and all(isinstance(found.params.entry(v.name), LazyTensor) for v in matrices)
    assert memory.most <= 2.5 * 4 * 4 * WIDTH * WIDTH
    (ids,) = context.calibration[0]
    torch.testing.assert_close(run(found, [ids]), run(graph, [ids]), rtol=1e-4, atol=1e-4)
