"""Parts of networks: masks and states in addition to the value that joins the parts."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fxpress.compiler import capture
from fxpress.ir import Graph, run, verify
from fxpress.passes.calibration.block_replay import BlockReplay
from fxpress.passes.network_blocks import split_blocks


class Net(nn.Module):
    """Three layers with a mask that is computed once, and a state of each in addition to the result."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList([nn.Linear(8, 8) for _ in range(3)])

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, ...]:
        mask = (torch.arange(4) < lengths[:, None]).to(x.dtype)[..., None]
        states = []
        for layer in self.layers:
            states.append(layer(x) * mask)
            x = x + torch.relu(states[-1]) * mask
        return x, *states


def sample(seed: int) -> tuple[Tensor, Tensor]:
    x = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(seed))
    return x, torch.tensor([1 + seed % 4, 3])


def network() -> tuple[Graph, set[str]]:
    graph = capture(Net().eval(), sample(0)).graph
    return graph, {v.name for v in graph.constants if v.type.rank == 2}


def test_a_mask_is_a_part_of_its_own_and_states_are_given_where_they_are_made() -> None:
    graph, weights = network()
    mask, *blocks, end = split_blocks(graph, weights)
    assert not any(mask.is_constant(v) and v.name in weights for node in mask.nodes for v in node.operands)
    assert [len(part.params.keys() & weights) for part in (*blocks, end)] == [1, 1, 1]
    outputs = {v.name for v in graph.outputs}
    assert [len({v.name for v in part.outputs} - outputs) for part in (*blocks, end)] == [1, 1, 0]
    values = dict(zip((v.name for v in graph.inputs), sample(0), strict=True))
    for part in (mask, *blocks, end):
        verify(part)
        found = run(part, [values[v.name] for v in part.inputs])
        values |= dict(zip((v.name for v in part.outputs), found, strict=True))
    for value, expected in zip(graph.outputs, run(graph, sample(0)), strict=True):
        assert torch.equal(values[value.name], expected)


def test_a_graph_without_weights_is_one_part() -> None:
    graph = capture(nn.Softmax(-1), (torch.zeros(2, 3),)).graph
    (part,) = split_blocks(graph, set())
    assert part.outputs == graph.outputs and part.nodes == graph.nodes


def test_values_of_a_replay_are_those_of_the_graph() -> None:
    graph, weights = network()
    samples = [sample(seed) for seed in range(3)]
    seen: list[dict[str, Tensor]] = [{} for _ in samples]
    replay = BlockReplay(graph, weights, samples)
    for block in replay.blocks():
        for index, found in enumerate(seen):
            replay.run(block, index, observe=lambda value, x, found=found: found.update({value.name: x}))
    for given, found in zip(samples, seen, strict=True):
        expected: dict[str, Tensor] = {}
        run(graph, given, observe=lambda value, x, expected=expected: expected.update({value.name: x}))
        assert expected.keys() <= found.keys()
        assert all(torch.equal(found[name], x) for name, x in expected.items())
