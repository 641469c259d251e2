"""Budgets of `prune` on a device: kept, nearly used up, and refused with the nearest possible cost."""

from collections.abc import Mapping

import pytest
import torch

from fxpress.ir import Graph, Node, Precision, Value, parse
from fxpress.ir.ops.conv import Conv
from fxpress.passes import Context, Cost, NodeCost, PassError, PassResult, find_pass
from fxpress.passes.base import ArenaBlock
from fxpress.specs.options import PruneOptions

NET = """
graph(%x: f32[1x3x16x16]) {
  const %a: f32[16x3x3x3]
  const %b: f32[24x16x3x3]
  const %c: f32[24x24x3x3]
  const %w: f32[5x24]
  %h: f32[1x16x16x16] = conv{padding=(1, 1, 1, 1)}(%x, %a)   # "stem", ""
  %r: f32[1x16x16x16] = relu(%h)
  %k: f32[1x24x8x8] = conv{stride=(2, 2), padding=(1, 1, 1, 1)}(%r, %b)   # "down", ""
  %q: f32[1x24x8x8] = relu(%k)
  %s: f32[1x24x8x8] = conv{padding=(1, 1, 1, 1)}(%q, %c)   # "deep", ""
  %m: f32[1x24] = mean{axes=(2, 3)}(%s)
  %y: f32[1x5] = linear(%m, %w)   # "head", ""
  return output: %y
}"""
RESOURCES = ("flash", "ram", "cycles", "instructions")


class Made:
    """A machine that likes even numbers of channels: a layer with an odd one takes twice the time."""

    flash_limit: int | None = 6000
    ram_limit: int | None = 5000

    def predict(self, graph: Graph, *, layers: Mapping[str, Precision] = {}) -> Cost:
        nodes, blocks = [], []
        for step, node in enumerate(graph.nodes):
            odd = isinstance(node.op, Conv) and node.output.type.shape[1] % 2
            weights = sum(v.type.numel for v in node.operands if graph.is_constant(v))
            work = node.macs * (2 if odd else 1)
            nodes.append(NodeCost(node.output.name, node.source.module, 60 + weights, work, 3 * work))
            users = [i for i, n in enumerate(graph.nodes) if node.output in n.operands]
            blocks.append(
                ArenaBlock(node.output.name, node.output.type.numel, step, max(users, default=step))
            )
        arena = max(sum(b.bytes for b in blocks if b.first <= i <= b.last) for i in range(len(nodes)))
        totals = [sum(getattr(n, name) for n in nodes) for name in ("flash_bytes", "instructions", "cycles")]
        return Cost(tuple(nodes), 500 + totals[0], arena, totals[1], totals[2], tuple(blocks))

    def weight_bits(self, node: Node) -> tuple[int, ...]:
        return (8,)

    def activation_bits(self, node: Node) -> tuple[int, ...]:
        return (8,)


def net() -> Graph:
    generator = torch.Generator().manual_seed(3)

    def fill(value: Value) -> torch.Tensor:
        return torch.randn(value.type.shape, generator=generator)

    return parse(NET, fill=fill)


ON_MADE = Context(cost=Made())


def prune(context: Context = ON_MADE, **options: object) -> PassResult:
    return find_pass("prune")(net(), PruneOptions.model_validate({"pass": "prune", **options}), context)


def measured(graph: Graph) -> dict[str, int]:
    cost = Made().predict(graph)
    return dict(
        zip(RESOURCES, (cost.flash_bytes, cost.arena_bytes, cost.cycles, cost.instructions), strict=True)
    )


@pytest.mark.parametrize("allocation", ["uniform", "global", "exact"])
@pytest.mark.parametrize(
    "budget",
    [
        {"flash": "5 kB"},
        {"ram": "70 %"},
        {"cycles": "1 M"},
        {"instructions": "60 %"},
        {"flash": "60 %", "cycles": "50 %", "macs": "60 %"},
    ],
)
def test_a_budget_on_the_device_is_met_and_used(allocation: str, budget: dict[str, str]) -> None:
    report = prune(budget=budget, allocation=allocation).report
    rows = {name: (before, after, limit) for name, before, after, limit in report.table("budget").rows}
    assert set(rows) == set(budget)
    assert all(after <= limit < before for before, after, limit in rows.values())
    assert max(after / limit for _, after, limit in rows.values()) > (0.9 if allocation == "exact" else 0.55)


def test_what_the_report_says_is_what_the_cut_network_takes() -> None:
    result = prune(budget={"flash": "50 %", "ram": "80 %"})
    taken = measured(result.graph)
    for name, before, after, _ in result.report.table("budget").rows:
        assert (before, after) == (measured(net())[str(name)], taken[str(name)])
    figures = dict(result.report.table("summary").rows)
    assert figures["rounds"] is not None and figures["gap"] is not None


def test_the_word_target_stands_for_its_flash_and_ram() -> None:
    result = prune(budget="target")
    assert [row[0] for row in result.report.table("budget").rows] == ["flash", "ram"]
    taken = measured(result.graph)
    assert taken["flash"] <= 6000 and taken["ram"] <= 5000


def test_several_steps_end_within_the_budget() -> None:
    result = prune(budget={"flash": "50 %", "macs": "50 %"}, steps=3)
    assert measured(result.graph)["flash"] <= 0.5 * measured(net())["flash"]


@pytest.mark.parametrize("allocation", ["uniform", "global", "exact"])
def test_an_impossible_budget_names_the_smallest_network(allocation: str) -> None:
    message = (
        r"flash: the smallest network takes [\d,]+, "
        r"the budget is 600 less 4 % that a prediction may miss, [\d,]+ too much"
    )
    with pytest.raises(PassError, match=message):
        prune(budget={"flash": "600 B", "ram": "90 %"}, allocation=allocation)


def test_a_budget_of_a_device_needs_one() -> None:
    with pytest.raises(PassError, match="the budget needs a microcontroller"):
        prune(Context(), budget={"cycles": "50 %"})


def test_a_target_without_limits_is_no_budget() -> None:
    class Roomy(Made):
        flash_limit = None
        ram_limit = None

    with pytest.raises(PassError, match="has no limit of flash or ram"):
        prune(Context(cost=Roomy()), budget="target")
