"""Assignment of bits: budgets are met, in the prediction too; `quantize` obeys; reports, files and refusals."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
import yaml
from torch import Tensor

from fxpress.ir import Graph, Node, Precision, parse, run, run_integer
from fxpress.passes import (
    ArenaBlock,
    Context,
    Cost,
    MissingNeedError,
    NodeCost,
    PassError,
    PassResult,
    find_pass,
)
from fxpress.passes.assign_bits.mix_loss import mix_losses
from fxpress.passes.errors import InfeasibleError
from fxpress.passes.quantize.layer_precisions import Precisions, precision_of
from fxpress.passes.sensitivity import measure_sensitivity
from fxpress.specs.options import AssignBitsOptions, QuantizeOptions

Sample = tuple[Tensor, ...]

NETWORK = parse(
    """
graph(%x: f32[1x3x6x6]) {
  const %w1: f32[8x3x3x3]
  const %ww2: f32[8x8x3x3]
  const %www3: f32[5x72]
  %c: f32[1x8x6x6] = conv{padding=(1, 1, 1, 1), clamp=(0.0, inf)}(%x, %w1)   # "first", "net.py:3"
  %d: f32[1x8x6x6] = conv{padding=(1, 1, 1, 1)}(%c, %ww2, none, %c)   # "second", "net.py:4"
  %p: f32[1x8x3x3] = max_pool(%d)
  %f: f32[1x72] = reshape{shape=(-1, 72)}(%p)
  %y: f32[1x5] = linear(%f, %www3)   # "head", "net.py:6"
  return output: %y
}""",
    fill=lambda v: torch.randn(v.type.shape, generator=torch.Generator().manual_seed(len(v.name))) / 3,
)
WEIGHTS = {"first": 216, "second": 576, "head": 360}


def samples(graph: Graph, count: int = 24) -> list[Sample]:
    generator = torch.Generator().manual_seed(1)
    return [tuple(torch.randn(v.type.shape, generator=generator) for v in graph.inputs) for _ in range(count)]


@dataclass
class Board:
    """A target: a cycle for each bit operation, flash for weights, and code the first time that a width is used."""

    code_bytes: int = 100
    bits: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    flash_limit: int | None = None
    ram_limit: int | None = None

    def predict(self, graph: Graph, *, layers: Mapping[str, Precision] = {}) -> Cost:
        precisions = Precisions(QuantizeOptions(), layers)
        nodes, seen, arena = [], set(), []
        for step, node in enumerate(graph.nodes):
            module, name = node.source.module, node.outputs[0].name
            if node.op.name in ("conv", "linear"):
                w, a = precisions.weight_bits(module), precisions.activation_bits(module)
                flash = WEIGHTS[module] * w // 8 + (0 if w in seen else self.code_bytes)
                seen.add(w)
                cycles = node.macs * w * a // 64
                nodes.append(NodeCost(name, module, flash, cycles, cycles))
                operand = node.inputs[0]
                arena.append(ArenaBlock(operand.name, operand.type.numel * a // 8, step, step))
        return Cost(
            tuple(nodes),
            1000 + sum(n.flash_bytes for n in nodes),
            max(block.bytes for block in arena),
            sum(n.instructions for n in nodes),
            sum(n.cycles for n in nodes),
            tuple(arena),
        )

    def weight_bits(self, node: Node) -> tuple[int, ...]:
        return self.bits.get(node.source.module, (2, 4, 8))

    def activation_bits(self, node: Node) -> tuple[int, ...]:
        return (8, 16)


def assign(graph: Graph = NETWORK, *, cost: Board | None = None, **options: object) -> PassResult:
    context = Context(
        calibration=samples(graph),
        cost=cost,
        selects=lambda pattern, module: pattern in ("*", module),
    )
    given = {name: tuple(x) if isinstance(x, list) else x for name, x in options.items()}
    return find_pass("assign_bits")(graph, AssignBitsOptions.model_validate(given), context)


def weight_bytes(result: PassResult) -> int:
    return sum(
        WEIGHTS[row[0]] * row[1] // 8
        for row in result.report.table("bits").rows  # type: ignore[operator,index]
    )


@pytest.mark.parametrize("share", ["25 %", "37.5 %", "50 %", "75 %", "100 %"])
def test_a_budget_of_weights_is_met_and_used(share: str) -> None:
    result = assign(budget={"weights": share})
    most = float(share.removesuffix(" %")) / 100 * sum(WEIGHTS.values())
    assert most - 0.25 * max(WEIGHTS.values()) <= weight_bytes(result) <= most


def test_the_predicted_loss_falls_as_the_budget_rises() -> None:
    losses = [
        assign(budget={"weights": f"{share} %"}).report.table("loss").rows[0][0]
        for share in (25, 40, 60, 100)
    ]
    assert losses == sorted(losses, reverse=True)


def test_quantize_obeys_the_decision() -> None:
    result = assign(budget={"weights": "50 %"})
    context = Context(calibration=samples(NETWORK))
    after = find_pass("quantize")(result.graph, QuantizeOptions(), context).graph
    stored = {
        n.source.module: n.inputs[1].type.quantization.bits
        for n in after.nodes
        if n.op.name in ("conv", "linear")
    }
    assert stored == {row[0]: row[1] for row in result.report.table("bits").rows}
    assert set(stored.values()) != {8}


def test_the_file_of_bits_can_be_pasted_into_quantize() -> None:
    result = assign(budget={"weights": "50 %"}, activations=[8, 16], weights=[4, 8])
    pasted = yaml.safe_load(result.report.files["bits.yaml"])
    options = QuantizeOptions.model_validate({"pass": "quantize", **pasted})
    pasted_bits = {module: precision_of(setting) for module, setting in options.layers.items()}
    assert pasted_bits == result.graph.precisions


def test_wide_activations_are_chosen_where_they_are_free_and_the_mix_runs() -> None:
    result = assign(budget={"weights": "100 %"}, activations=[8, 16], weights=[8])
    assert set(result.graph.precisions.values()) == {Precision(8, 16)}
    context = Context(calibration=samples(NETWORK))
    after = find_pass("quantize")(result.graph, QuantizeOptions(), context).graph
    run_integer(after, samples(NETWORK, 1)[0])


def test_layers_whose_operands_share_a_grid_get_the_same_activations() -> None:
    text = """
graph(%x: f32[1x4x6x6]) {
  const %w1: f32[4x4x1x1]
  const %ww2: f32[4x4x1x1]
  %a: f32[1x4x6x6] = conv(%x, %w1)   # "left", ""
  %m: f32[1x4x3x3] = max_pool(%x)
  %b: f32[1x4x3x3] = conv(%m, %ww2)   # "right", ""
  return output: %a, other: %b
}"""
    graph = parse(text, fill=lambda v: torch.randn(v.type.shape, generator=torch.Generator().manual_seed(3)))
    full = assign(graph, budget={"bit_operations": "100 %"}, activations=[8, 16], weights=[8])
    wide = assign(graph, budget={"bit_operations": "190 k"}, activations=[8, 16], weights=[8])
    assert [{p.activations for p in r.graph.precisions.values()} for r in (full, wide)] == [{8}, {16}]


def test_kept_layers_stay_at_eight_bits() -> None:
    assert assign(budget={"weights": "75 %"}, keep=["second"]).graph.precisions["second"] == Precision(8)


def test_bits_without_a_kernel_are_not_taken() -> None:
    board = Board(bits={"second": (4, 8), "head": (8,)})
    layers = assign(budget={"weights": "65 %"}, cost=board).graph.precisions
    assert layers["head"] == Precision(8) and layers["second"] == Precision(4)


def test_bits_for_which_no_layer_has_a_kernel_are_told() -> None:
    board = Board(bits=dict.fromkeys(WEIGHTS, (4, 8)))
    assert "weights of 2 bits" in assign(budget={"weights": "60 %"}, cost=board).report.warnings[0]
    with pytest.raises(
        InfeasibleError, match=r"at least 576, the budget is 288.*weights of 2 bits on the target"
    ):
        assign(budget={"weights": "25 %"}, cost=board)


def test_a_layer_without_any_kernel_for_its_widths_is_an_error() -> None:
    with pytest.raises(PassError, match="head: the target has kernels for int8 x int8, int8 x int16"):
        assign(budget={"weights": "60 %"}, weights=[2, 4], cost=Board(bits={"head": (8,)}))


@pytest.mark.parametrize("flash", [1500, 1700, 1900, 2100])
def test_the_prediction_of_the_mix_meets_the_budget_of_flash(flash: int) -> None:
    board = Board(code_bytes=150)
    result = assign(budget={"flash": f"{flash} B"}, cost=board)
    assert board.predict(NETWORK, layers=result.graph.precisions).flash_bytes <= flash


def test_a_budget_of_cycles_is_met() -> None:
    board = Board()
    half = board.predict(NETWORK).cycles // 2
    result = assign(budget={"cycles": "50 %"}, cost=board)
    assert board.predict(NETWORK, layers=result.graph.precisions).cycles <= half


def test_the_word_target_stands_for_its_flash_and_memory() -> None:
    board = Board(flash_limit=1700, ram_limit=300)
    result = assign(budget="target", cost=board, activations=[8, 16])
    cost = board.predict(NETWORK, layers=result.graph.precisions)
    assert cost.flash_bytes <= 1700 and cost.arena_bytes <= 300
    rows = {row[0]: row[1] for row in result.report.table("budget").rows}
    assert rows["flash"] == 1700
    with pytest.raises(PassError, match="that of the target, which has no limit of flash or ram"):
        assign(budget="target", cost=Board())
    with pytest.raises(PassError, match="the target has no cost prediction of flash"):
        assign(budget="target")


def test_memory_bounds_the_width_of_activations() -> None:
    board = Board()
    result = assign(budget={"ram": "300 B"}, cost=board, activations=[8, 16], weights=[8])
    activations = {name: p.activations for name, p in result.graph.precisions.items()}
    assert activations == {"first": 16, "second": 8, "head": 16}
    with pytest.raises(InfeasibleError, match="ram at step 1: at least 288, the budget is 200"):
        assign(budget={"ram": "200 B"}, cost=board, activations=[8, 16], weights=[8])


def test_the_smallest_network_within_a_loss() -> None:
    results = [assign(budget={"loss": loss}) for loss in (1.0, 0.1, 0.01)]
    sizes = [weight_bytes(result) for result in results]
    assert sizes == sorted(sizes) and sizes[0] < sizes[-1]
    assert results[1].report.table("loss").rows[0][0] <= 0.1


def test_a_budget_that_nothing_meets_says_by_how_much() -> None:
    with pytest.raises(InfeasibleError, match="weights: at least 288, the budget is 100, 188 too little"):
        assign(budget={"weights": "100 B"})


def test_costs_of_a_target_need_a_target() -> None:
    with pytest.raises(PassError, match="the target has no cost prediction of flash"):
        assign(budget={"flash": "40 KiB"})


def test_labels_need_labels() -> None:
    with pytest.raises(MissingNeedError, match="labels"):
        assign(budget={"weights": "50 %"}, labels=True)


def test_predicted_and_measured_loss_agree_where_errors_are_small() -> None:
    predicted, measured, *_ = assign(budget={"weights": "100 %"}).report.table("loss").rows[0]
    assert isinstance(predicted, float) and isinstance(measured, float)
    assert 0.5 < predicted / measured < 5  # of sums of independent errors; biases take back a part


def test_the_measured_loss_lets_every_error_through_the_layers_behind() -> None:
    widths = dict.fromkeys(WEIGHTS, (2, 16))
    weights, both = (
        mix_losses(NETWORK, samples(NETWORK), widths, rounds_activations=r).mean() for r in (False, True)
    )
    assert float(both) == pytest.approx(float(weights), rel=1e-2)  # 16 bits add nothing beside 2
    narrow = dict.fromkeys(WEIGHTS, (8, 8))
    losses = mix_losses(NETWORK, samples(NETWORK), narrow, rounds_activations=True)
    assert losses.mean() < weights / 10


@pytest.mark.parametrize("bits", [2, 4])
def test_the_measured_loss_is_that_of_the_quantized_network(bits: int) -> None:
    data, widths = samples(NETWORK), dict.fromkeys(WEIGHTS, (bits, 8))
    options = QuantizeOptions.model_validate({"weights": f"int{bits}"})
    quantized = find_pass("quantize")(NETWORK, options, Context(calibration=data)).graph
    real = []
    for sample in data:
        p, q = (run(graph, sample)[0].double().log_softmax(-1) for graph in (NETWORK, quantized))
        real.append(float((p.exp() * (p - q)).sum()))
    measured = mix_losses(NETWORK, data, widths, rounds_activations=False)
    assert float(measured.mean()) == pytest.approx(
        sum(real) / len(real), rel=0.1
    )  # activations of 8 bits are beside it


def test_a_table_that_fits_is_used_again_and_another_is_not(tmp_path: Path) -> None:
    first = assign(budget={"weights": "50 %"})
    path = tmp_path / "sensitivity.json"
    path.write_bytes(first.report.files["sensitivity.json"])
    again = assign(budget={"weights": "50 %"}, table=path)
    assert (again.graph, again.report.warnings) == (first.graph, first.report.warnings)
    other = measure_sensitivity(NETWORK, samples(NETWORK, 3), weight_bits=(2, 4, 8))
    path.write_text(other.to_json())
    assert "measured again" in assign(budget={"weights": "50 %"}, table=path).report.warnings[0]


def test_measured_latencies_are_a_budget(tmp_path: Path) -> None:
    path = tmp_path / "latency.json"
    path.write_text(json.dumps({"second": {"int2": 1.0, "int4": 2.0, "int8": 4.0}}))
    assert assign(budget={"latency": 2.5}, latency=path).graph.precisions["second"] == Precision(4)
    path.write_text(json.dumps({"secnod": {"int8": 4.0}}))
    with pytest.raises(PassError, match="no layer secnod"):
        assign(budget={"latency": 2.5}, latency=path)


def test_the_report_has_each_width_of_each_layer_and_the_front() -> None:
    result = assign(budget={"weights": "50 %"}, cost=Board())
    alternatives = result.report.table("alternatives")
    assert [row[:2] for row in alternatives.rows if row[0] == "head"] == [
        ("head", 2),
        ("head", 4),
        ("head", 8),
    ]
    assert sum(bool(row[3]) for row in alternatives.rows) == 3
    front = result.report.table("pareto")
    losses = [row[1] for row in front.rows]
    assert losses == sorted(losses, reverse=True) and len(losses) > 3
    picture = ElementTree.fromstring(result.report.files["pareto.svg"])
    told = [element.text or "" for element in picture.findall(".//{*}title")]
    amounts = [f"{row[0]:,.0f}, predicted loss {row[1]:.3g}" for row in front.rows]
    assert [line.split(": ")[1] for line in told[: len(amounts)]] == amounts
    assert [line.split(":")[0] for line in told[len(amounts) : -1]] == ["all int2", "all int4", "all int8"]
    (chosen,) = (row for row in front.rows if row[2])
    assert told[-1] == f"{chosen[3]}: {chosen[0]:,.0f}, predicted loss {chosen[1]:.3g}"
    points = json.loads(result.report.files["pareto.json"])["points"]
    assert [(point["weights"], point["loss"]) for point in points] == [row[:2] for row in front.rows]


def test_the_front_counts_what_is_fixed_in_the_file_as_in_the_table() -> None:
    result = assign(budget={"cycles": "90 %"}, cost=Board())
    points = json.loads(result.report.files["pareto.json"])["points"]
    assert [point["cycles"] for point in points] == [row[0] for row in result.report.table("pareto").rows]


def test_a_decision_names_what_other_widths_would_cost_and_gain() -> None:
    result = assign(budget={"weights": "50 %"}, cost=Board())
    reasons = {d.source.module: d.reason for d in result.report.decisions}
    assert reasons.keys() == WEIGHTS.keys()
    assert all("B of weights" in reason and "cycles" in reason for reason in reasons.values())


def test_a_layer_without_a_module_path_cannot_be_named() -> None:
    graph = parse(
        "graph(%x: f32[1x4]) {\n  const %w: f32[3x4]\n  %y: f32[1x3] = linear(%x, %w)\n  return output: %y\n}",
        fill=lambda v: torch.ones(v.type.shape),
    )
    with pytest.raises(PassError, match="%y has no module path"):
        assign(graph, budget={"weights": "50 %"})
