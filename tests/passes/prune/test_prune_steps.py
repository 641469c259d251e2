"""`prune` in steps with training in between, and its part of the report."""

import json
from importlib import import_module
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from torch import Tensor

from fxpress.ir import Graph, Value, parse
from fxpress.ir.coupling import couple
from fxpress.passes import Context, MissingNeedError, PassError, PassResult, find_pass
from fxpress.passes.drawing import width_of
from fxpress.passes.prune.pruning import PLAN_FILE
from fxpress.passes.training import OptimizerState, Trained, train
from fxpress.specs.options import FinetuneOptions, PruneOptions

NET = """
graph(%x: f32[2x3x6x6]) {
  const %a: f32[16x3x3x3]
  const %ab: f32[16]
  const %b: f32[16x16x3x3]
  const %c: f32[24x16x1x1]
  const %w: f32[4x24]
  const %wb: f32[4]
  %h: f32[2x16x6x6] = conv{padding=(1, 1, 1, 1)}(%x, %a, %ab)
  %r: f32[2x16x6x6] = relu(%h)
  %k: f32[2x16x6x6] = conv{padding=(1, 1, 1, 1)}(%r, %b)
  %s: f32[2x16x6x6] = add(%k, %r)
  %q: f32[2x24x6x6] = conv(%s, %c)
  %t: f32[2x24x6x6] = relu(%q)
  %m: f32[2x24] = mean{axes=(2, 3)}(%t)
  %y: f32[2x4] = linear(%m, %w, %wb)
  return output: %y
}"""
TRAINING = {"epochs": 1, "batch": 8, "learning_rate": 0.005}


@pytest.fixture(scope="module")
def net() -> Graph:
    generator = torch.Generator().manual_seed(0)

    def fill(value: Value) -> Tensor:
        return torch.randn(value.type.shape, generator=generator) * 0.2

    return parse(NET, fill=fill)


def prune(graph: Graph, **options: object) -> PassResult:
    generator = torch.Generator().manual_seed(1)
    inputs = [(torch.randn(2, 3, 6, 6, generator=generator),) for _ in range(8)]
    return find_pass("prune")(graph, PruneOptions.model_validate(options), Context(inputs, original=graph))


def test_steps_fall_geometrically_to_the_budget(net: Graph) -> None:
    result = prune(net, budget={"macs": "30 %"}, steps=3)
    macs = [row[1] for row in result.report.table("steps").rows]
    assert macs[-1] == result.graph.macs <= 0.3 * net.macs
    for step, reached in enumerate(macs, start=1):
        assert 0.85 * 0.3 ** (step / 3) * net.macs < reached <= 0.3 ** (step / 3) * net.macs


def test_steps_of_channels_count_all_channels(net: Graph) -> None:
    result = prune(net, budget={"channels": "50 %"}, allocation="uniform", steps=2)
    assert couple(result.graph).count == pytest.approx(0.5 * couple(net).count, abs=2)


def test_each_step_is_trained_and_the_optimizer_goes_on(net: Graph, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[dict[str, tuple[int, ...]]] = []

    def watching(
        graph: Graph, options: FinetuneOptions, context: Context, *, state: OptimizerState | None
    ) -> Trained:
        moments = {} if state is None else state.moments["exp_avg"]
        assert all(tensor.shape == graph.params[name].shape for name, tensor in moments.items())
        shapes.append({name: tuple(tensor.shape) for name, tensor in moments.items()})
        return train(graph, options, context, state=state)

    monkeypatch.setattr(import_module("fxpress.passes.prune.pruning"), "train", watching)
    result = prune(net, budget={"macs": "40 %"}, steps=2, finetune=TRAINING)
    assert [set(known) for known in shapes] == [set(), {"a", "ab", "b", "c", "w", "wb"}]
    assert shapes[1]["b"][0] < 16
    for row in result.report.table("steps").rows:
        assert row[5] <= row[4]


@pytest.mark.parametrize(
    "options",
    [
        {"steps": 2, "finetune": TRAINING},
        {"steps": 3, "compensation": ("bias",)},
        {"steps": 2, "granularity": ("channels", "blocks"), "compensation": ("least_squares",)},
        {"finetune": TRAINING, "score": "merging", "compensation": ("merge",)},
    ],
)
def test_runs_and_replayed_plans_give_the_same_bytes(
    net: Graph, options: dict[str, object], tmp_path: Path
) -> None:
    first, second = (prune(net, budget={"macs": "40 %"}, **options) for _ in range(2))
    assert first.graph == second.graph
    assert first.report == second.report
    path = tmp_path / "plan.json"
    path.write_bytes(first.report.files[PLAN_FILE])
    replayed = prune(net, plan=str(path), **options)
    assert replayed.graph == first.graph
    assert replayed.report.files == first.report.files


def test_a_plan_has_digests_of_the_graphs_the_data_and_the_tool(net: Graph) -> None:
    plan = json.loads(prune(net, budget={"macs": "40 %"}, steps=2).report.files[PLAN_FILE])
    assert plan["tool"].startswith("fxpress ")
    assert len(plan["data"]) == 64
    assert plan["steps"][0]["after"] == plan["steps"][1]["before"]


def test_a_plan_of_steps_without_its_training_is_refused(net: Graph, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes(prune(net, budget={"macs": "40 %"}, steps=2, finetune=TRAINING).report.files[PLAN_FILE])
    with pytest.raises(PassError, match="plan of another graph"):
        prune(net, plan=str(path))


def test_training_needs_data(net: Graph) -> None:
    options = PruneOptions.model_validate({"budget": {"macs": "40 %"}, "finetune": TRAINING})
    with pytest.raises(MissingNeedError, match="needs calibration"):
        find_pass("prune")(net, options, Context())


def test_groups_are_shown_with_their_scores(net: Graph) -> None:
    table = prune(net, budget={"macs": "50 %"}).report.table("groups")
    assert table.columns[5:] == (
        "score_least",
        "score_quarter",
        "score_median",
        "score_three_quarters",
        "score_most",
    )
    for row in table.rows:
        assert list(row[5:]) == sorted(row[5:])


def test_the_picture_of_several_steps_shows_what_the_last_one_left(net: Graph) -> None:
    result = prune(net, budget={"macs": "30 %"}, steps=3)
    root = ElementTree.fromstring(result.report.files["prune.groups.svg"])
    titles = [element.text or "" for element in root.iter("{http://www.w3.org/2000/svg}title")]
    left = [row[4] for row in result.report.table("groups_3").rows]
    assert [title.split(": ")[1].split()[0] for title in titles] == [str(count) for count in left]
    assert left != [row[4] for row in result.report.table("groups_1").rows]


def test_no_words_of_the_picture_overlap_or_leave_it(net: Graph) -> None:
    result = prune(net, budget={"macs": "30 %"}, granularity=("channels", "blocks"))
    root = ElementTree.fromstring(result.report.files["prune.groups.svg"])
    lines: dict[float, list[tuple[float, float]]] = {}
    for element in root.iter("{http://www.w3.org/2000/svg}text"):
        start = float(element.attrib["x"])
        lines.setdefault(float(element.attrib["y"]), []).append((start, start + width_of(element.text or "")))
    assert max(lines) < float(root.attrib["height"])
    for spans in map(sorted, lines.values()):
        ends = [*(start for start, _ in spans[1:]), float(root.attrib["width"])]
        assert all(end < limit for (_, end), limit in zip(spans, ends, strict=True))


def test_the_picture_shows_every_group_and_what_became_of_each_node(net: Graph) -> None:
    result = prune(net, budget={"macs": "30 %"}, granularity=("channels", "blocks"))
    picture = result.report.files["prune.groups.svg"].decode()
    root = ElementTree.fromstring(picture)
    titles = [element.text or "" for element in root.iter("{http://www.w3.org/2000/svg}title")]
    rows = result.report.table("groups").rows
    assert titles == [f"group {g}: {left} of {size} units are kept" for g, _, _, size, left, *_ in rows]
    labels = [element.text or "" for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"conv", "operator", "kept units"} <= set(labels) and any(" → " in label for label in labels)
    assert (
        f"{sum(row[4] for row in rows)} of {sum(row[3] for row in rows)} units are kept, in {len(rows)} groups"
        in labels
    )
    assert all(f"{left} of {size}" in " ".join(labels) for _, _, _, size, left, *_ in rows)
    assert "http" not in picture.replace("http://www.w3.org/2000/svg", "")
