"""`sparsify`: which weights become zero, and that training keeps them there."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from fxpress.ir import Graph, Value, parse
from fxpress.passes import Context, MissingNeedError, PassError, PassResult, find_pass
from fxpress.passes.sparsify.sparsify import sparsity_at
from fxpress.specs.options import FinetuneOptions, SparsifyOptions

NET = """
graph(%x: f32[2x4x4x4]) {
  const %a: f32[8x4x3x3]
  const %d: f32[8x1x3x3]
  const %w: f32[3x8]
  const %b: f32[3]
  %h: f32[2x8x4x4] = conv{padding=(1, 1, 1, 1)}(%x, %a)
  %k: f32[2x8x4x4] = conv{padding=(1, 1, 1, 1), groups=8}(%h, %d)
  %r: f32[2x8x4x4] = relu(%k)
  %m: f32[2x8] = mean{axes=(2, 3)}(%r)
  %y: f32[2x3] = linear(%m, %w, %b)
  return output: %y
}"""
NO_DATA = Context()


def net() -> Graph:
    generator = torch.Generator().manual_seed(0)

    def fill(value: Value) -> Tensor:
        return torch.randn(value.type.shape, generator=generator) * (0.1 if value.name == "a" else 1.0)

    return parse(NET, fill=fill)


def data() -> Context:
    generator = torch.Generator().manual_seed(1)
    inputs = [(torch.randn(2, 4, 4, 4, generator=generator),) for _ in range(8)]
    labels = [torch.randint(0, 3, (2,), generator=generator) for _ in range(8)]
    return Context(inputs, labels, original=net())


def sparsify(graph: Graph, context: Context = NO_DATA, **options: object) -> PassResult:
    return find_pass("sparsify")(graph, SparsifyOptions.model_validate(options), context)


def zeros(graph: Graph, *names: str) -> float:
    joined = torch.cat([graph.params[name].flatten() for name in names])
    return float((joined == 0).double().mean())


def test_the_smallest_weights_go_wherever_they_are() -> None:
    graph = net()
    result = sparsify(graph, sparsity="50 %").graph
    assert zeros(result, "a", "d", "w") == pytest.approx(0.5)
    assert zeros(result, "a") > 0.6
    assert zeros(result, "w") < 0.2
    largest_gone = max(float(graph.params[n][result.params[n] == 0].abs().max()) for n in "aw")
    smallest_left = min(float(result.params[n][result.params[n] != 0].abs().min()) for n in "aw")
    assert largest_gone <= smallest_left
    assert torch.equal(result.params["b"], graph.params["b"])


def test_each_layer_gives_its_share_where_that_is_asked_for() -> None:
    result = sparsify(net(), sparsity="75 %", scope="layer").graph
    assert [zeros(result, name) for name in "adw"] == pytest.approx([0.75] * 3)


def test_of_four_input_channels_the_two_largest_stay() -> None:
    graph = net()
    result = sparsify(graph, pattern="2:4")
    blocks = result.graph.params["a"].movedim(1, -1).reshape(-1, 4)
    assert ((blocks != 0).sum(1) == 2).all()
    before = graph.params["a"].movedim(1, -1).reshape(-1, 4).abs()
    assert torch.equal((blocks != 0).float(), (before >= before.sort(1).values[:, 2:3]).float())
    assert ((result.graph.params["w"].reshape(-1, 4) != 0).sum(1) == 2).all()


def test_a_pattern_that_does_not_divide_leaves_the_layer_with_the_reason() -> None:
    result = sparsify(net(), pattern="1:4")
    assert torch.equal(result.graph.params["d"], net().params["d"])
    (decision,) = [d for d in result.report.decisions if not d.applied]
    assert decision.reason == "its 1 input channels do not divide in groups of 1:4"


def test_a_pattern_that_divides_no_layer_is_noted() -> None:
    result = sparsify(net(), pattern="2:64")
    assert zeros(result.graph, "a", "d", "w") == 0.0
    assert result.report.warnings == (
        "no layer has input channels that divide in groups of 2:64: all weights stay",
    )


def test_layers_to_keep_keep_all_weights_and_the_rest_gives_more() -> None:
    context = Context(selects=lambda pattern, module: pattern == "all")
    with pytest.raises(PassError, match="no float weights"):
        sparsify(net(), context, sparsity="50 %", keep=("all",))


def test_the_report_says_what_zeros_save() -> None:
    report = sparsify(net(), sparsity="90 %").report
    assert any("weights stay dense" in warning for warning in report.warnings)
    for _, elements, _, _, dense, before, after in report.table("weights").rows:
        assert dense == 4 * elements
        assert after < before


def test_the_sparsity_rises_as_a_cubic() -> None:
    assert [sparsity_at(step, 4) for step in (1, 2, 4)] == pytest.approx([1 - 0.75**3, 1 - 0.5**3, 1.0])


def test_zeros_stay_through_training_in_steps_and_after() -> None:
    training = {"epochs": 1, "batch": 4, "learning_rate": 0.01, "distill": None}
    result = sparsify(net(), data(), sparsity="80 %", steps=3, finetune=training)
    assert zeros(result.graph, "a", "d", "w") == pytest.approx(0.8, abs=0.01)
    steps = result.report.table("steps").rows
    assert [row[1] for row in steps] == pytest.approx([0.8 * sparsity_at(s, 3) for s in (1, 2, 3)], abs=0.01)
    assert not torch.equal(result.graph.params["w"], net().params["w"])
    options = FinetuneOptions.model_validate(training)
    later = find_pass("finetune")(result.graph, options, data()).graph
    assert all(torch.equal(later.params[n] == 0, result.graph.params[n] == 0) for n in "adw")
    assert not torch.equal(later.params["w"], result.graph.params["w"])
    free = find_pass("finetune")(result.graph, options.model_copy(update={"keep_zeros": False}), data()).graph
    assert zeros(free, "a", "d", "w") < 0.7


def test_a_weight_that_is_all_zero_is_trained_as_any_other() -> None:
    graph = net().with_params({"w": torch.zeros(3, 8)})
    options = FinetuneOptions.model_validate(
        {"epochs": 2, "batch": 4, "learning_rate": 0.01, "distill": None}
    )
    assert find_pass("finetune")(graph, options, data()).graph.params["w"].any()


def test_two_runs_give_the_same_bytes() -> None:
    options = {"sparsity": "80 %", "steps": 2, "finetune": {"epochs": 1, "distill": None}}
    results = [sparsify(net(), data(), **options) for _ in range(2)]
    assert results[0].graph == results[1].graph
    assert results[0].report == results[1].report


def test_training_needs_data() -> None:
    with pytest.raises(MissingNeedError, match="needs calibration"):
        sparsify(net(), sparsity="50 %", finetune={"epochs": 1})


def test_weights_that_the_loss_does_not_depend_on_are_the_first() -> None:
    graph = net()
    large = graph.params["a"].clone()
    large[0] *= 100.0  # the largest weights, of a channel that nothing reads
    unread = graph.params["w"].clone()
    unread[:, 0] = 0.0
    graph = graph.with_params({"a": large, "w": unread})
    result = sparsify(graph, data(), sparsity="12.5 %", criterion="taylor").graph
    assert not result.params["a"][0].any()
    assert result.params["a"][1:].all()
    assert sparsify(graph, data(), sparsity="12.5 %").graph.params["a"][0].all()


def test_taylor_scores_need_data() -> None:
    with pytest.raises(MissingNeedError, match="needs calibration"):
        sparsify(net(), sparsity="50 %", criterion="taylor")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "takes a `sparsity` or a `pattern`"),
        ({"sparsity": "50 %", "pattern": "2:4"}, "takes a `sparsity` or a `pattern`"),
        ({"pattern": "4:2"}, "neither `blocks` nor an N:M pattern"),
        ({"pattern": "2:4", "steps": 3}, "applied in one step"),
        ({"pattern": "blocks"}, "`pattern: blocks` takes a `sparsity`"),
    ],
)
def test_options_that_say_nothing_or_too_much_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SparsifyOptions.model_validate(options)


TRAINING = {"epochs": 6, "batch": 4, "learning_rate": 0.02, "distill": None}


@pytest.mark.parametrize("schedule", ["surgery", "learned", "learned_masks"])
def test_zeros_of_one_training_have_the_share_that_is_asked_for(schedule: str) -> None:
    result = sparsify(net(), data(), sparsity="80 %", schedule=schedule, finetune=TRAINING)
    assert zeros(result.graph, "a", "d", "w") == pytest.approx(0.8, abs=0.01)
    (row,) = result.report.table("steps").rows
    assert row[1] == pytest.approx(0.8, abs=0.01)
    assert row[3] < row[2]
    assert not torch.equal(result.graph.params["b"], net().params["b"])


@pytest.mark.parametrize("schedule", ["surgery", "learned_masks"])
def test_removed_weights_come_back_where_training_makes_them_larger(schedule: str) -> None:
    graph = parse(
        "graph(%x: f32[1x2]) {\n  const %w: f32[1x2]\n  %y: f32[1x1] = linear(%x, %w)\n  return output: %y\n}",
        fill=lambda value: torch.zeros(value.type.shape),
    )
    graph = graph.with_params({"w": torch.tensor([[0.5, 0.1]])})
    inputs = [(torch.randn(1, 2, generator=torch.Generator().manual_seed(i)),) for i in range(64)]
    labels = [x[0][:, 1:] * 2 for x in inputs]
    context = Context(inputs, labels, original=graph)
    training = {**TRAINING, "epochs": 20, "loss": "mse", "batch": 8, "learning_rate": 0.05}
    back = sparsify(graph, context, sparsity="50 %", schedule=schedule, finetune=training).graph
    assert torch.equal(back.params["w"] == 0, torch.tensor([[True, False]]))
    stays = sparsify(graph, context, sparsity="50 %", finetune=training).graph
    assert torch.equal(stays.params["w"] == 0, torch.tensor([[False, True]]))


@pytest.mark.parametrize("schedule", ["learned", "learned_masks"])
def test_learned_thresholds_give_layers_different_shares(schedule: str) -> None:
    result, first = (
        sparsify(net(), data(), sparsity="80 %", schedule=schedule, finetune={**TRAINING, "epochs": n}).graph
        for n in (6, 0)
    )
    assert [zeros(result, name) for name in "adw"] != pytest.approx([zeros(first, name) for name in "adw"])


def test_a_pattern_can_be_trained() -> None:
    result = sparsify(net(), data(), pattern="2:4", schedule="surgery", finetune=TRAINING).graph
    assert ((result.params["a"].movedim(1, -1).reshape(-1, 4) != 0).sum(1) == 2).all()
    assert result.params["d"].all()


def test_each_layer_has_the_share_where_surgery_compares_within_it() -> None:
    options = {"sparsity": "75 %", "schedule": "surgery", "scope": "layer", "finetune": TRAINING}
    result = sparsify(net(), data(), **options).graph
    assert [zeros(result, name) for name in "adw"] == pytest.approx([0.75] * 3)


def test_weights_above_learned_thresholds_keep_their_size() -> None:
    options = {"sparsity": "60 %", "finetune": {**TRAINING, "epochs": 0}}
    kept = sparsify(net(), data(), schedule="learned_masks", **options).graph
    smaller = sparsify(net(), data(), schedule="learned", **options).graph
    for name in "adw":
        stays = kept.params[name] != 0
        assert torch.equal(kept.params[name][stays], net().params[name][stays])
        assert torch.equal(smaller.params[name] != 0, stays)
        assert (smaller.params[name][stays].abs() < kept.params[name][stays].abs()).all()


@pytest.mark.parametrize("schedule", ["cubic", "surgery", "learned", "learned_masks"])
def test_a_killed_training_of_zeros_goes_on_to_the_same_bytes(tmp_path: Path, schedule: str) -> None:
    steps = {"steps": 2} if schedule == "cubic" else {}
    options = {"sparsity": "80 %", "schedule": schedule, **steps}
    whole = sparsify(net(), data(), finetune=TRAINING, **options)
    done = 0

    class KilledError(Exception):
        pass

    def progress(label: str, count: int, total: int) -> None:
        nonlocal done
        done += 1
        if done == 21:
            raise KilledError

    training = {**TRAINING, "checkpoint": str(tmp_path / "state.pt")}
    with pytest.raises(KilledError):
        sparsify(net(), replace(data(), progress=progress), finetune=training, **options)
    assert list(tmp_path.iterdir())
    again = sparsify(net(), data(), finetune=training, **options)
    assert again.graph == whole.graph
    assert again.report == whole.report
    with pytest.raises(PassError, match="belongs to another training"):
        sparsify(net(), data(), finetune={**training, "seed": 1}, **options)
    if schedule != "cubic":
        with pytest.raises(PassError, match="belongs to another training"):
            sparsify(net(), data(), finetune=training, **{**options, "sparsity": "70 %"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"schedule": "surgery"}, "is a training"),
        ({"schedule": "surgery", "finetune": {}, "steps": 2}, "has no `steps`"),
        ({"schedule": "learned", "finetune": {}, "criterion": "wanda"}, "compares magnitudes"),
        ({"schedule": "learned", "finetune": {}, "scope": "layer"}, "no `scope: layer`"),
        ({"schedule": "learned_masks", "finetune": {}, "scope": "layer"}, "no `scope: layer`"),
        ({"schedule": "learned", "finetune": {}, "pattern": "blocks"}, "no `pattern`"),
        ({"schedule": "learned_masks", "finetune": {}, "pattern": "blocks"}, "no `pattern`"),
    ],
)
def test_options_that_a_schedule_does_not_have_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SparsifyOptions.model_validate({"sparsity": "50 %", **options})
