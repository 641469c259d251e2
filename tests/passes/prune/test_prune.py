"""The pass `prune`: budgets, scores, plans, repairs."""

import json
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor
from torch.nn import functional

from fxpress.ir import Graph, Source, Value, parse, run
from fxpress.ir.coupling import couple
from fxpress.ir.cutting import cut_graph, deviation
from fxpress.ir.testing import graphs
from fxpress.passes import Context, MissingNeedError, PassError, PassResult, find_pass
from fxpress.passes.prune.allocation import allocate
from fxpress.passes.prune.channel_costs import costs_of
from fxpress.passes.prune.pruning import PLAN_FILE
from fxpress.passes.prune.ranking import rank
from fxpress.passes.prune.scores import score_units
from fxpress.specs.options import FuseOptions, PruneOptions

NO_DATA = Context()
NET = """
graph(%x: f32[2x3x8x8]) {
  const %a: f32[8x3x3x3]
  const %ga: f32[8]
  const %ba: f32[8]
  const %ma: f32[8]
  const %va: f32[8]
  const %b: f32[8x8x3x3]
  const %bb: f32[8]
  const %c: f32[12x8x1x1]
  const %w: f32[5x12]
  const %wb: f32[5]
  %h: f32[2x8x8x8] = conv{padding=(1, 1, 1, 1)}(%x, %a)
  %n: f32[2x8x8x8] = batch_norm(%h, %ga, %ba, %ma, %va)
  %r: f32[2x8x8x8] = relu(%n)
  %k: f32[2x8x8x8] = conv{padding=(1, 1, 1, 1)}(%r, %b, %bb)
  %s: f32[2x8x8x8] = add(%k, %r)
  %q: f32[2x12x8x8] = conv(%s, %c)
  %t: f32[2x12x8x8] = relu(%q)
  %m: f32[2x12] = mean{axes=(2, 3)}(%t)
  %y: f32[2x5] = linear(%m, %w, %wb)
  return output: %y
}"""


def net(seed: int = 0) -> Graph:
    generator = torch.Generator().manual_seed(seed)

    def fill(value: Value) -> Tensor:
        tensor = torch.randn(value.type.shape, generator=generator) * 0.3
        return tensor.abs() + 0.5 if value.name in ("ga", "va") else tensor

    return parse(NET, fill=fill)


def batches(count: int = 4) -> list[tuple[Tensor, ...]]:
    generator = torch.Generator().manual_seed(9)
    return [(torch.randn(2, 3, 8, 8, generator=generator),) for _ in range(count)]


def prune(graph: Graph, context: Context = NO_DATA, **options: object) -> PassResult:
    return find_pass("prune")(graph, PruneOptions.model_validate({"pass": "prune", **options}), context)


@pytest.mark.parametrize("allocation", ["uniform", "global", "exact"])
@pytest.mark.parametrize("budget", [{"macs": "60 %"}, {"params": "50 %"}, {"macs": "70 %", "params": "40 %"}])
def test_a_budget_is_met_and_used(allocation: str, budget: dict[str, str]) -> None:
    graph = net()
    pruned = prune(graph, allocation=allocation, budget=budget).graph
    shares = {"macs": pruned.macs / graph.macs, "params": elements(pruned) / elements(graph)}
    limits = {name: float(text.split()[0]) / 100 for name, text in budget.items()}
    assert all(shares[name] <= limit for name, limit in limits.items())
    assert any(shares[name] > 0.6 * limit for name, limit in limits.items())


def elements(graph: Graph) -> int:
    return sum(tensor.numel() for tensor in graph.params.values())


def test_uniform_share_of_channels_is_taken_from_every_group() -> None:
    report = prune(net(), allocation="uniform", budget={"channels": "50 %"}).report
    assert [row[3:5] for row in report.table("groups").rows] == [(8, 4), (12, 6)]


def test_kept_channels_come_in_multiples() -> None:
    report = prune(net(), allocation="uniform", budget={"channels": "60 %"}, multiple=4).report
    assert [row[3:5] for row in report.table("groups").rows] == [(8, 4), (12, 8)]


def test_the_exact_allocation_is_that_of_an_exhaustive_search() -> None:
    coupling = couple(net())
    options = PruneOptions.model_validate({"budget": {"macs": "55 %", "params": "70 %"}})
    ranked = rank(
        coupling, score_units(coupling, options, Context()), np.zeros(coupling.count, bool), options
    )
    costs = costs_of(coupling)
    whole = {name: costs.evaluate(name, ranked.sizes) for name in ("macs", "params")}

    def value(kept: tuple[int, ...]) -> float:
        logs = [np.log(v[:n].sum() / v.sum()) for v, n in zip(ranked.values, kept, strict=True)]
        return float(np.dot(ranked.weights, logs))

    feasible = [
        kept
        for kept in product(*(range(1, n + 1) for n in ranked.sizes))
        if costs.evaluate("macs", np.array(kept)) <= 0.55 * whole["macs"]
        and costs.evaluate("params", np.array(kept)) <= 0.7 * whole["params"]
    ]
    found = allocate(ranked, costs, options)
    assert value(tuple(found.kept)) >= max(map(value, feasible)) - 1e-2
    assert found.gap is not None and found.gap <= 1e-3


@given(st.data())
def test_costs_are_those_of_the_cut_graph(data: st.DataObject) -> None:
    graph = data.draw(graphs(max_steps=8))
    coupling = couple(graph)
    removed = np.random.default_rng(0).random(coupling.count) < 0.5
    for group in np.unique(coupling.groups):
        removed[np.flatnonzero(coupling.groups == group)[0]] = False
    kept = np.bincount(coupling.groups[~removed], minlength=len(np.unique(coupling.groups)))
    cut, costs = cut_graph(coupling.kept(removed)), costs_of(coupling)
    assert costs.evaluate("macs", kept) == pytest.approx(cut.macs, abs=0.5)
    assert costs.evaluate("params", kept) == pytest.approx(elements(cut), abs=0.5)


def test_an_infeasible_budget_says_what_is_nearest() -> None:
    with pytest.raises(
        PassError, match=r"macs: at least \d+\.\d % are kept, the budget is 1\.0 %.*lower `floor`"
    ):
        prune(net(), budget={"macs": "1 %"})


def test_layers_to_keep_lose_nothing() -> None:
    graph, head = net(), Source("head.conv")
    nodes = tuple(
        replace(node, source=head) if node.operands[1:] and node.operands[1].name == "c" else node
        for node in graph.nodes
    )
    graph = replace(graph, nodes=nodes)
    pruned = prune(graph, keep=("head.conv",), budget={"channels": "50 %"}, allocation="uniform").graph
    assert pruned.params["c"].shape[0] == 12
    assert pruned.params["a"].shape[0] < 8


def test_a_replayed_plan_gives_the_same_bytes(tmp_path: Path) -> None:
    graph = net()
    first = prune(graph, budget={"macs": "60 %"})
    path = tmp_path / PLAN_FILE
    path.write_bytes(first.report.files[PLAN_FILE])
    again = prune(graph, plan=str(path))
    assert again.graph == first.graph
    assert again.report.files == first.report.files
    assert json.loads(path.read_text())["steps"][0]["groups"][0]["size"] == 8


def test_a_plan_of_another_graph_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes(prune(net(), budget={"macs": "60 %"}).report.files[PLAN_FILE])
    with pytest.raises(PassError, match="plan of another graph"):
        prune(net(seed=1), plan=str(path))
    path.write_text("[]")
    with pytest.raises(PassError, match="is not a pruning plan"):
        prune(net(), plan=str(path))
    with pytest.raises(PassError, match="No such file"):
        prune(net(), plan=str(tmp_path / "absent.json"))


def test_two_runs_give_the_same_bytes() -> None:
    results = [prune(net(), Context(batches()), budget={"macs": "60 %"}, score="taylor") for _ in range(2)]
    assert results[0].graph == results[1].graph
    assert results[0].report == results[1].report


def scores_of(score: str, *, graph: Graph | None = None, **context: object) -> np.ndarray:
    coupling = couple(net() if graph is None else graph)
    options = PruneOptions.model_validate({"budget": {"macs": "50 %"}, "score": score, "normalize": "none"})
    return score_units(coupling, options, Context(**context))  # type: ignore[arg-type]


def test_norms_are_means_over_the_weights_of_a_channel() -> None:
    graph = net()
    a, b, c, w = (graph.params[name].double() for name in "abcw")
    dims = [a.flatten(1), b.flatten(1), b.transpose(0, 1).flatten(1), c[:, :, 0, 0].T]
    assert scores_of("l1")[:8] == pytest.approx(torch.stack([d.abs().sum(1) for d in dims]).mean(0).numpy())
    assert scores_of("l2")[:8] == pytest.approx(torch.stack([d.norm(dim=1) for d in dims]).mean(0).numpy())
    tail = torch.stack([c.flatten(1).norm(dim=1), w.norm(dim=0)]).mean(0)
    assert scores_of("l2")[8:] == pytest.approx(tail.numpy())


def test_the_geometric_median_finds_the_channel_amid_the_others() -> None:
    graph = net()
    weight = graph.params["c"].clone()
    weight[3] = weight[[i for i in range(12) if i != 3]].mean(0)
    assert int(np.argmin(scores_of("geometric_median", graph=graph.with_params({"c": weight}))[8:])) == 3


def test_batch_norm_scales_are_scores_and_channels_without_go_by_their_norm() -> None:
    scores = scores_of("batchnorm")
    assert scores[:8] == pytest.approx(net().params["ga"].abs().numpy())
    assert (scores[8:] > 0).all()


def test_batch_norm_scores_need_batch_norms() -> None:
    graph = find_pass("fuse")(net(), FuseOptions(), Context()).graph
    with pytest.raises(PassError, match="prune before fuse"):
        prune(graph, budget={"macs": "60 %"}, score="batchnorm")


def test_taylor_is_the_squared_sum_of_gradient_times_weight() -> None:
    graph, data, labels = net(), batches(1), [torch.tensor([1, 3])]
    params = {name: graph.params[name].clone().requires_grad_() for name in ("c", "w")}
    loss = functional.cross_entropy(run(graph, data[0], params=params)[0], labels[0])
    gc, gw = torch.autograd.grad(loss, list(params.values()))
    expected = ((gc * params["c"]).flatten(1).sum(1) + (gw * params["w"]).sum(0)).square()
    found = scores_of("taylor", calibration=data, labels=labels)
    assert found[8:] == pytest.approx(expected.detach().numpy(), rel=1e-4)


def test_curvature_is_the_change_of_class_probabilities_to_second_order() -> None:
    """Along a unit's own weights, against the divergence of probabilities when they shrink a little."""
    graph, step = net(), 1e-3
    x = batches(1)[0][0][:1].double()
    doubled = {name: tensor.double() for name, tensor in graph.params.items()}
    coupling = couple(graph)

    def logs(factor: float, unit: int) -> Tensor:
        params = dict(doubled)
        for value, dimension, units in coupling.members:
            if value.name not in ("ma", "va"):
                scale = torch.where(torch.from_numpy(units == unit), factor, 1.0).double()
                shape = [-1 if d == dimension else 1 for d in range(value.type.rank)]
                params[value.name] = params[value.name] * scale.view(shape)
        return run(graph, [x.expand(2, -1, -1, -1)], params=params)[0][0].log_softmax(0)

    single = parse(NET.replace("f32[2x", "f32[1x"), params=graph.params)
    found = scores_of("curvature", graph=single, calibration=[(x.float(),)])
    for unit in (0, 5, 12, 19):
        before, after = logs(1.0, unit), logs(1.0 - step, unit)
        divergence = float((before.exp() * (before - after)).sum())
        assert found[unit] == pytest.approx(divergence / step**2, rel=0.05)


def test_curvature_of_batches_is_the_mean_over_their_samples() -> None:
    single = parse(NET.replace("f32[2x", "f32[1x"), params=net().params)
    pairs = batches(3)
    singles = [(x[i : i + 1],) for (x,) in pairs for i in range(2)]
    alone = scores_of("curvature", graph=single, calibration=singles)
    assert scores_of("curvature", calibration=pairs) == pytest.approx(alone, rel=1e-3)
    assert scores_of("curvature", calibration=pairs[:1]) == pytest.approx(
        scores_of("curvature", graph=single, calibration=singles[:2]), rel=1e-3
    )


TAGGER = """
graph(%x: f32[1x6x4]) {
  const %a: f32[8x4]
  const %b: f32[SIZEx8]
  const %shift: f32[1x6x1]
  %h: f32[1x6x8] = linear(%x, %a)
  %r: f32[1x6x8] = relu(%h)
  %z: f32[1x6xSIZE] = linear(%r, %b)
  %y: f32[1x6xSIZE] = add(%z, %shift)
  return output: %y
}"""


def test_curvature_of_positions_takes_a_softmax_for_each() -> None:
    """With as many classes as there are calls, against all positions and classes one by one."""
    generator = torch.Generator().manual_seed(0)
    text = TAGGER.replace("SIZE", "3")
    graph = parse(text, fill=lambda v: torch.randn(v.type.shape, generator=generator))
    x = [(torch.randn(1, 6, 4, generator=generator),) for _ in range(200)]
    found = scores_of("curvature", graph=graph, calibration=x)
    shifted = graph.with_params({"shift": 10 * torch.randn(1, 6, 1, generator=generator)})
    assert scores_of("curvature", graph=shifted, calibration=x) == pytest.approx(found, rel=1e-3)
    expected = np.zeros(8)
    for (inputs,) in x:
        a, b = (graph.params[name].detach().clone().requires_grad_() for name in ("a", "b"))
        params = {**graph.params, "a": a, "b": b}
        logs = run(graph, [inputs], params=params)[0][0].log_softmax(1)
        for log in logs.flatten():
            ga, gb = torch.autograd.grad(log, (a, b), retain_graph=True)
            change = (ga * a).sum(1) + (gb * b).sum(0)
            expected += (log.exp() * change**2 / 2 / 6 / len(x)).detach().numpy()
    assert found == pytest.approx(expected, rel=0.35)


def test_classes_of_scores_that_labels_fit_twice_are_named_by_an_option() -> None:
    graph = parse(TAGGER.replace("SIZE", "6"), fill=lambda v: torch.ones(v.type.shape))
    context = Context([(torch.ones(1, 6, 4),)], labels=(torch.zeros(1, 6, dtype=torch.int64),))
    budget = {"macs": "60 %"}
    with pytest.raises(PassError, match="set `class_axis`"):
        prune(graph, context, budget=budget, score="taylor")
    prune(graph, context, budget=budget, score="taylor", class_axis=2)


def test_curvature_needs_class_scores() -> None:
    graph = parse("""
graph(%x: f32[3]) {
  const %a: f32[4x3]
  const %b: f32[2x4]
  %h: f32[4] = linear(%x, %a)
  %y: f32[2] = linear(%h, %b)
  return output: %y
}""")
    with pytest.raises(PassError, match="scores classes"):
        prune(graph, Context([(torch.ones(3),)]), budget={"macs": "60 %"}, score="curvature")


def test_activations_without_signal_score_lowest() -> None:
    graph = net()
    silent = {"c": graph.params["c"].index_fill(0, torch.tensor([5]), 0.0)}
    found = scores_of("activation", graph=graph.with_params(silent), calibration=batches(2))
    assert int(np.argmin(found[8:])) == 5


@pytest.mark.parametrize(
    "options", [{"score": "taylor"}, {"score": "activation"}, {"compensation": ("batchnorm",)}]
)
def test_data_that_is_missing_is_asked_for(options: dict[str, object]) -> None:
    with pytest.raises(MissingNeedError, match="needs calibration"):
        prune(net(), budget={"macs": "60 %"}, **options)


def test_least_squares_makes_up_for_copies_of_channels() -> None:
    graph = net()
    weight = graph.params["c"].clone()
    weight[6:] = 2 * weight[:6]
    graph = graph.with_params({"c": weight})
    options: dict[str, object] = {"budget": {"channels": "50 %"}, "allocation": "uniform", "score": "l1"}
    plain, repaired = (
        prune(graph, Context(batches()), compensation=c, **options).graph for c in ((), ("least_squares",))
    )
    layer = {"w", "wb"}
    assert any(not torch.equal(plain.params[n], repaired.params[n]) for n in layer)
    x = batches(6)[5]
    errors = [deviation(run(g, x), run(graph, x)) for g in (plain, repaired)]
    assert errors[1] < errors[0]


def test_remeasured_batch_norms_have_the_statistics_of_training() -> None:
    graph = net()
    pruned = prune(graph, Context(batches()), budget={"channels": "50 %"}, compensation=("batchnorm",)).graph
    x = torch.cat([batch[0] for batch in batches()])
    h = functional.conv2d(x, pruned.params["a"], padding=1)
    assert torch.allclose(pruned.params["ma"], h.mean((0, 2, 3)), atol=1e-6)
    assert torch.allclose(pruned.params["va"], h.var((0, 2, 3), correction=0), rtol=1e-4)


def test_the_report_tells_what_a_repair_did() -> None:
    result = prune(
        net(), Context(batches()), budget={"macs": "50 %"}, compensation=("least_squares", "batchnorm")
    )
    figures = dict(result.report.table("summary").rows)
    assert figures["error_after_repair"] < figures["error_before_repair"]
    assert figures["masked_error"] <= 1e-5 < figures["masked_change"]


def test_pruning_commutes_with_batch_norm_folding() -> None:
    graph, fuse = net(), find_pass("fuse")
    folded = fuse(graph, FuseOptions(), Context()).graph
    removed = np.arange(couple(graph).count) % 3 == 0
    first = fuse(cut_graph(couple(graph).kept(removed)), FuseOptions(), Context()).graph
    second = cut_graph(couple(folded).kept(removed))
    assert deviation(run(first, batches()[0]), run(second, batches()[0])) <= 1e-5


def test_a_graph_without_free_channels_is_refused_with_the_reason() -> None:
    graph = parse("""
graph(%x: f32[1x4]) {
  const %a: f32[4x4]
  const %b: f32[2x4]
  %h: f32[1x4] = linear(%x, %a)
  %s: f32[1x4] = torch_call{call="aten.logcumsumexp.default(x0, 1)"}(%h)
  %y: f32[1x2] = linear(%s, %b)
  return output: %y
}""")
    reason = r"no channel can be removed: %s: aten\.logcumsumexp\.default has no rule"
    with pytest.raises(PassError, match=reason):
        prune(graph, budget={"macs": "60 %"})


def test_a_budget_or_a_plan_is_needed_but_not_both() -> None:
    for options in ({}, {"budget": {"macs": "60 %"}, "plan": "p.json"}, {"budget": {}}):
        with pytest.raises(ValidationError, match="budget"):
            PruneOptions.model_validate(options)
