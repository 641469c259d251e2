"""`prune` by whole heads and by residual blocks: removed parts, budgets, and plans that reproduce the result."""

import json
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from fxpress.compiler import capture
from fxpress.ir import Graph, parse, run
from fxpress.ir.testing import drawn_constant
from fxpress.passes import Context, PassError, PassResult, find_pass
from fxpress.passes.prune.pruning import PLAN_FILE
from fxpress.specs.options import PruneOptions

WIDTH, HEADS, KEYS, TIME = 16, 4, 2, 5


class Layer(nn.Module):
    """A layer of a language model: grouped-query attention, then two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(WIDTH)
        self.q, self.out = nn.Linear(WIDTH, WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
        self.k, self.v = (nn.Linear(WIDTH, WIDTH // HEADS * KEYS, bias=False) for _ in range(2))
        self.up, self.down = nn.Linear(WIDTH, 24), nn.Linear(24, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        q, k, v = (
            layer(y).view(len(x), TIME, heads, -1).transpose(1, 2)
            for layer, heads in ((self.q, HEADS), (self.k, KEYS), (self.v, KEYS))
        )
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + self.out(y.transpose(1, 2).reshape(x.shape))
        return x + self.down(torch.relu(self.up(x)))


class Net(nn.Module):
    """Three such layers; the second one does next to nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, WIDTH)
        self.layers = nn.ModuleList(Layer() for _ in range(3))
        self.head = nn.Linear(WIDTH, 7)
        with torch.no_grad():
            for layer in (self.layers[1].out, self.layers[1].down):
                layer.weight.mul_(1e-3)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


@pytest.fixture(scope="module")
def graph() -> Graph:
    torch.manual_seed(0)
    return capture(Net().eval(), (tokens(0),), {}).graph


def tokens(seed: int) -> Tensor:
    return torch.randint(0, 11, (2, TIME), generator=torch.Generator().manual_seed(seed))


def prune(graph: Graph, **options: object) -> PassResult:
    calibration = [(tokens(seed),) for seed in range(3)]
    return find_pass("prune")(graph, PruneOptions.model_validate(options), Context(calibration))


def shapes(graph: Graph, *, layer: int) -> dict[str, tuple[int, ...]]:
    prefix = f"layers.{layer}."
    return {n.removeprefix(prefix): tuple(t.shape) for n, t in graph.params.items() if n.startswith(prefix)}


def test_heads_go_whole_and_nothing_else_does(graph: Graph) -> None:
    result = prune(graph, granularity="heads", budget={"params": "88 %"})
    lost = 0
    for layer in range(3):
        found = shapes(result.graph, layer=layer)
        keys = found["k.weight"][0] // (WIDTH // HEADS)
        assert found["k.weight"] == found["v.weight"] == (keys * 4, WIDTH)
        assert found["q.weight"] == (keys * 8, WIDTH)
        assert found["out.weight"] == (WIDTH, keys * 8)
        assert found["up.weight"] == (24, WIDTH)
        lost += KEYS - keys
    assert lost > 0


def test_blocks_that_do_little_go_first_and_the_sum_with_them(graph: Graph) -> None:
    result = prune(graph, granularity="blocks", budget={"macs": "72 %"})
    assert not any(name.endswith("weight") for name in shapes(result.graph, layer=1))
    assert shapes(result.graph, layer=0) == shapes(graph, layer=0)
    assert shapes(result.graph, layer=2) == shapes(graph, layer=2)
    assert len(result.graph.nodes) < len(graph.nodes)
    assert result.graph.macs <= 0.72 * graph.macs
    difference = run(result.graph, [tokens(9)])[0] - run(graph, [tokens(9)])[0]
    assert difference.abs().max() < 0.05


def test_channels_heads_and_blocks_share_one_budget(graph: Graph) -> None:
    result = prune(
        graph, granularity=("channels", "heads", "blocks"), budget={"macs": "40 %", "params": "50 %"}
    )
    figures = dict(result.report.table("summary").rows)
    assert figures["blocks_dropped"] >= 1
    assert result.graph.macs <= 0.4 * graph.macs
    assert figures["masked_error"] <= 1e-5


@pytest.mark.parametrize("granularity", [("heads",), ("blocks",), ("channels", "heads", "blocks")])
def test_plans_of_every_granularity_give_the_same_bytes(
    graph: Graph, granularity: tuple[str, ...], tmp_path: Path
) -> None:
    first = prune(graph, granularity=granularity, budget={"params": "80 %"})
    path = tmp_path / "plan.json"
    path.write_bytes(first.report.files[PLAN_FILE])
    again = prune(graph, granularity=granularity, plan=str(path))
    assert again.graph == first.graph
    assert again.report.files == first.report.files


def test_a_plan_says_itself_whether_heads_are_whole(graph: Graph, tmp_path: Path) -> None:
    first = prune(graph, granularity="heads", budget={"params": "90 %"})
    path = tmp_path / "plan.json"
    path.write_bytes(first.report.files[PLAN_FILE])
    assert json.loads(path.read_text())["steps"][0]["whole_heads"]
    assert prune(graph, plan=str(path)).graph == first.graph


def test_a_block_that_is_kept_stays(graph: Graph) -> None:
    options = {"granularity": "blocks", "budget": {"macs": "80 %"}, "keep": ("layers.1.up", "layers.1.q")}
    result = prune(graph, **options)
    assert shapes(result.graph, layer=1) == shapes(graph, layer=1)


def test_blocks_need_the_integer_program() -> None:
    options = {"granularity": "blocks", "budget": {"macs": "80 %"}, "allocation": "global"}
    with pytest.raises(ValidationError, match="allocation: exact"):
        PruneOptions.model_validate(options)


def test_where_there_is_nothing_of_that_kind_it_is_said() -> None:
    plain = parse("""
graph(%x: f32[1x3]) {
  const %a: f32[4x3]
  const %b: f32[2x4]
  %h: f32[1x4] = linear(%x, %a)
  %y: f32[1x2] = linear(%h, %b)
  return output: %y
}""", fill=drawn_constant)  # fmt: skip
    with pytest.raises(
        PassError, match="there are no removable heads and no removable blocks; add `channels`"
    ):
        options = {"pass": "prune", "granularity": ("heads", "blocks"), "budget": {"macs": "50 %"}}
        find_pass("prune")(plain, PruneOptions.model_validate(options), Context())
