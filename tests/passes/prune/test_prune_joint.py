"""Numbers of channels and bits of layers decided in one program: optimal, within the budget, reported, and replayed."""

from collections.abc import Mapping
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from fxpress.ir import Graph, Node, Precision, Value, parse
from fxpress.ir.coupling import Coupling, couple
from fxpress.passes import Context, Cost, MissingNeedError, NodeCost, PassError, PassResult, find_pass
from fxpress.passes.prune.allocation import allocate
from fxpress.passes.prune.bit_choices import BYTES, BitChoices, measure_bit_choices, with_bit_costs
from fxpress.passes.prune.channel_costs import costs_of
from fxpress.passes.prune.channel_program import ROUNDING, Measured, levels_of, solve
from fxpress.passes.prune.ranking import rank
from fxpress.specs.options import PruneOptions, QuantizeOptions

NET = """
graph(%x: f32[1x3x8x8]) {
  const %a: f32[6x3x3x3]
  const %b: f32[8x6x3x3]
  const %w: f32[5x8]
  %h: f32[1x6x8x8] = conv{padding=(1, 1, 1, 1)}(%x, %a)   # "stem", ""
  %r: f32[1x6x8x8] = relu(%h)
  %k: f32[1x8x4x4] = conv{stride=(2, 2), padding=(1, 1, 1, 1)}(%r, %b)   # "down", ""
  %q: f32[1x8x4x4] = relu(%k)
  %m: f32[1x8] = mean{axes=(2, 3)}(%q)
  %y: f32[1x5] = linear(%m, %w)   # "head", ""
  return output: %y
}"""
WEIGHTS = {"stem": "a", "down": "b", "head": "w"}
WHOLE_BYTES = 6 * 3 * 9 + 8 * 6 * 9 + 5 * 8


class Board:
    """A machine that takes a cycle for each multiply-accumulate, one more below 8 bits, and a byte for 8 bits."""

    flash_limit: int | None = None
    ram_limit: int | None = None

    def predict(self, graph: Graph, *, layers: Mapping[str, Precision] = {}) -> Cost:
        nodes = []
        for node in graph.nodes:
            bits = layers.get(node.source.module, Precision(8)).weights or 8
            size = sum(v.type.numel for v in node.operands if graph.is_constant(v)) * bits // 8
            work = node.macs * (1 if bits == 8 else 2)
            nodes.append(NodeCost(node.output.name, node.source.module, size, work, work))
        flash = 400 + sum(n.flash_bytes for n in nodes)
        work = sum(n.cycles for n in nodes)
        return Cost(tuple(nodes), flash, 1000, work, work)

    def weight_bits(self, node: Node) -> tuple[int, ...]:
        return (2, 4, 8)

    def activation_bits(self, node: Node) -> tuple[int, ...]:
        return (8,)


def net() -> Graph:
    generator = torch.Generator().manual_seed(4)

    def fill(value: Value) -> torch.Tensor:
        return torch.randn(value.type.shape, generator=generator)

    return parse(NET, fill=fill)


def samples(count: int = 12) -> list[tuple[torch.Tensor, ...]]:
    generator = torch.Generator().manual_seed(5)
    return [(torch.randn(1, 3, 8, 8, generator=generator),) for _ in range(count)]


def prune(*, cost: Board | None = None, **options: object) -> PassResult:
    given = PruneOptions.model_validate({"pass": "prune", "bits": (2, 4, 8), "score": "l1", **options})
    return find_pass("prune")(net(), given, Context(calibration=samples(), cost=cost))


def bytes_of(result: PassResult) -> float:
    """Bytes of the weights that are left, as stored."""
    total = 0.0
    for module, name in WEIGHTS.items():
        bits = result.graph.precisions[module].weights or 8
        total += result.graph.params[name].numel() * bits / 8
    return total


def random_problem(seed: int) -> tuple[Coupling, BitChoices, Measured]:
    """The network with losses of groups and widths that were drawn."""
    coupling, drawn = couple(net()), np.random.default_rng(seed)
    options = PruneOptions.model_validate({"pass": "prune", "budget": {"macs": "50 %"}, "floor": "30 %"})
    ranked = rank(coupling, drawn.random(coupling.count), np.zeros(coupling.count, dtype=bool), options)
    levels = levels_of(ranked)
    losses = tuple(np.append(-np.sort(-drawn.random(len(found) - 1)), 0.0) for found in levels)
    choices = measure_bit_choices(net(), (2, 4, 8), samples(2), None, lambda label, done, total: None)
    assert choices.table is not None
    falling = {2: 1.0, 4: 0.3, 8: 0.02}
    scores = tuple(
        replace(s, loss=float(falling[s.bits] * drawn.random()), error=0.0) for s in choices.table.scores
    )
    return coupling, replace(choices, table=replace(choices.table, scores=scores)), Measured(levels, losses)


@pytest.mark.parametrize("seed", range(6))
def test_the_program_finds_what_brute_force_finds(seed: int) -> None:
    coupling, choices, utility = random_problem(seed)
    options = PruneOptions.model_validate({"pass": "prune", "budget": {"macs": "50 %"}, "floor": "30 %"})
    scores = np.random.default_rng(seed).random(coupling.count)
    ranked = rank(coupling, scores, np.zeros(coupling.count, dtype=bool), options)
    costs = with_bit_costs(costs_of(coupling), coupling, choices)
    limits = {BYTES: 0.3 * WHOLE_BYTES, "macs": 0.7 * costs.evaluate("macs", ranked.sizes)}
    best = np.inf
    for kept in map(np.array, product(*levels_of(ranked))):
        if costs.evaluate("macs", kept) > limits["macs"]:
            continue
        lost = -sum(utility.of(group, int(count)) for group, count in enumerate(kept))
        for widths in product((2, 4, 8), repeat=3):
            bits = dict(zip(costs.widths, widths, strict=True))
            if costs.evaluate(BYTES, kept, bits) <= limits[BYTES]:
                best = min(best, lost + costs.evaluate(ROUNDING, kept, bits))
    solution = solve(ranked, costs, limits, utility)
    assert all(costs.evaluate(name, solution.kept, solution.bits) <= most for name, most in limits.items())
    assert -solution.utility == pytest.approx(best, rel=2e-3, abs=1e-9)


@pytest.mark.parametrize("share", ["20 %", "40 %", "70 %"])
def test_a_budget_of_weights_is_met_by_channels_and_bits(share: str) -> None:
    result = prune(budget={"weights": share})
    most = WHOLE_BYTES * float(share.removesuffix(" %")) / 100
    assert bytes_of(result) <= most
    (row,) = result.report.table("budget").rows
    assert row[0] == "weights" and row[2] == pytest.approx(bytes_of(result), abs=1)


def test_together_they_never_lose_more_than_either_alone() -> None:
    coupling, choices, utility = random_problem(7)
    scores = np.random.default_rng(7).random(coupling.count)
    options = PruneOptions.model_validate(
        {"pass": "prune", "budget": {"weights": "55 %"}, "bits": (2, 4, 8), "floor": "30 %"}
    )
    ranked = rank(coupling, scores, np.zeros(coupling.count, dtype=bool), options)
    costs = with_bit_costs(costs_of(coupling), coupling, choices)

    def loss(kept: np.ndarray, bits: Mapping[str, int]) -> float:
        lost = -sum(utility.of(group, int(count)) for group, count in enumerate(kept))
        return lost + costs.evaluate(ROUNDING, kept, bits)

    both = allocate(ranked, costs, options, utility=utility, choices=choices)
    whole = replace(ranked, least=ranked.sizes)
    bits_alone = allocate(whole, costs, options, utility=utility, choices=choices)
    eights = replace(choices, layers=tuple(replace(x, widths=((8, 8),)) for x in choices.layers))
    narrow = with_bit_costs(costs_of(coupling), coupling, eights)
    channels_alone = allocate(ranked, narrow, options, utility=utility, choices=eights)
    least = min(loss(alone.kept, alone.bits) for alone in (bits_alone, channels_alone))
    assert loss(both.kept, both.bits) <= least * (1 + 2e-3)


def test_budgets_of_a_target_hold_for_the_network_that_is_left() -> None:
    board = Board()
    whole = board.predict(net())
    result = prune(cost=board, budget={"flash": "60 %", "cycles": "80 %"})
    taken = board.predict(result.graph, layers=result.graph.precisions)
    assert taken.flash_bytes <= 0.6 * whole.flash_bytes and taken.cycles <= 0.8 * whole.cycles
    rows = {row[0]: row for row in result.report.table("budget").rows}
    assert rows["cycles"][2] == taken.cycles and rows["flash"][2] == taken.flash_bytes


def test_what_cannot_be_met_is_answered_by_the_smallest_network_in_the_fewest_bits() -> None:
    with pytest.raises(PassError, match=r"weights: at least [\d.]+ % are kept, the budget is 1.0 %"):
        prune(budget={"weights": "1 %"})
    with pytest.raises(PassError, match=r"flash: the smallest network takes [\d,]+, the budget is 300"):
        prune(cost=Board(), budget={"flash": "300 B"})


def test_quantize_obeys_and_the_report_tells_the_bits() -> None:
    result = prune(budget={"weights": "30 %"})
    rows = {row[0]: row for row in result.report.table("bits").rows}
    context = Context(calibration=samples())
    quantized = find_pass("quantize")(result.graph, QuantizeOptions(), context).graph
    for module, name in WEIGHTS.items():
        grid = next(v for v in quantized.constants if v.name == name).type.quantization
        assert grid is not None and Precision(grid.bits) == result.graph.precisions[module] == Precision(
            rows[module][1]
        )
    of = {row[0]: row[1:] for row in result.report.table("loss").rows}
    assert set(of) == {"channels", "rounding"} and all(value >= 0 for pair in of.values() for value in pair)  # type: ignore[operator]
    assert b"layers:" in result.report.files["bits.yaml"]


def test_a_plan_brings_the_same_channels_and_bits(tmp_path: Path) -> None:
    first = prune(budget={"weights": "30 %"}, compensation=("least_squares",))
    path = tmp_path / "plan.json"
    path.write_bytes(first.report.files["prune.plan.json"])
    options = PruneOptions.model_validate(
        {"pass": "prune", "plan": str(path), "compensation": ("least_squares",)}
    )
    again = find_pass("prune")(net(), options, Context(calibration=samples()))
    assert again.graph.precisions == first.graph.precisions
    assert all(torch.equal(again.graph.params[n], t) for n, t in first.graph.params.items())
    path.write_text(path.read_text().replace('"int', '"in'))
    with pytest.raises(PassError, match="is not a pruning plan"):
        find_pass("prune")(net(), options, Context(calibration=samples()))


def test_bits_need_data() -> None:
    with pytest.raises(MissingNeedError, match="needs calibration"):
        options = PruneOptions.model_validate({"pass": "prune", "bits": (4,), "budget": {"weights": "30 %"}})
        find_pass("prune")(net(), options, Context())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": (4,), "budget": {"macs": "50 %"}, "steps": 2}, "one step"),
        ({"bits": (4,), "budget": {"macs": "50 %"}, "granularity": "blocks"}, "and no `blocks`"),
        ({"bits": (4,), "budget": {"macs": "50 %"}, "allocation": "global"}, "allocation: exact"),
        ({"budget": {"weights": "50 %"}}, "a budget of `weights` needs `bits`"),
    ],
)
def test_what_does_not_go_together_is_a_fault(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        PruneOptions.model_validate({"pass": "prune", **options})
