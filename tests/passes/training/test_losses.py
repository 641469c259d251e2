"""Losses of `finetune`: named ones, the user's own, and layers of the teacher."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from fxpress.ir import Graph, Source, parse, run
from fxpress.passes import Context, PassError
from fxpress.passes.training import Trained, train
from fxpress.passes.training.losses import Objective, count_correct, cross_entropy
from fxpress.specs import FileSource, ModuleSource
from fxpress.specs.options import FinetuneOptions

NET = """
graph(%x: f32[1x6]) {
  const %a: f32[8x6]
  const %b: f32[3x8]
  %h: f32[1x8] = linear(%x, %a)
  %r: f32[1x8] = relu(%h)
  %y: f32[1x3] = linear(%r, %b)
  return output: %y
}"""
SINGLE = """
graph(%x: f32[1x6]) {
  const %a: f32[8x6]
  %h: f32[1x8] = linear(%x, %a)
  %y: f32[] = mean{axes=(0, 1), keepdim=False}(%h)
  return output: %y
}"""
MODULES = {"h": "body.first", "r": "body.act", "y": "head"}
EPOCH_COUNT = 6


def net(seed: int = 0, *, width: int = 8) -> Graph:
    generator = torch.Generator().manual_seed(seed)
    text = NET.replace("8x", f"{width}x").replace("x8]", f"x{width}]")
    graph = parse(text, fill=lambda v: torch.randn(v.type.shape, generator=generator))
    nodes = tuple(replace(node, source=Source(MODULES[node.output.name])) for node in graph.nodes)
    return replace(graph, nodes=nodes)


def context(*, labels: str = "classes", original: Graph | None = None, load: object = None) -> Context:
    pieces = torch.randn(160, 6, generator=torch.Generator().manual_seed(5)).split(1)
    answers = [run(net(), [piece])[0] for piece in pieces]
    given = {"classes": [y.argmax(1) for y in answers], "numbers": answers, "none": []}[labels]

    def loaded(source: FileSource | ModuleSource) -> object:
        return load

    return Context([(piece,) for piece in pieces], given, original=original, load=loaded)


def trained(surroundings: Context, graph: Graph | None = None, **options: object) -> Trained:
    chosen = {"epochs": EPOCH_COUNT, "batch": 16, "learning_rate": 0.02, **options}
    return train(graph or net(seed=1), FinetuneOptions.model_validate(chosen), surroundings)


def validation(result: Trained) -> list[float]:
    return [row[2] for row in result.rows]


@pytest.mark.parametrize(
    ("scores", "labels"),
    [((4, 3), (4,)), ((4, 3), (4, 1)), ((2, 5, 3), (2, 5)), ((2, 3, 5), (2, 5)), ((2, 3, 4, 5), (2, 4, 5))],
)
def test_cross_entropy_takes_a_class_for_each_sample_or_position(
    scores: tuple[int, ...], labels: tuple[int, ...]
) -> None:
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(scores, generator=generator)
    classes = torch.randint(0, 3, labels, generator=generator)
    rows = z.movedim(scores.index(3), -1).reshape(-1, 3).log_softmax(1)
    expected = -rows.gather(1, classes.reshape(-1, 1)).mean()
    assert cross_entropy(z, classes) == pytest.approx(float(expected), rel=1e-6)


def test_cross_entropy_takes_the_probability_of_each_class() -> None:
    z, classes = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 2, 1, 2])
    shares = functional.one_hot(classes, 3)
    assert cross_entropy(z, shares) == pytest.approx(float(cross_entropy(z, classes)), rel=1e-6)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.tensor([0, 3, 1]), "a label is 3; the 3 classes are numbered from 0"),
        (torch.tensor([0, -1, 1]), "a label is -1"),
        (torch.tensor([0.0, 0.5, 1.0]), "a label is 0.5"),
        (torch.zeros(3, 2), "the shapes 3x2 and 3x3; give one class for each sample"),
    ],
)
def test_labels_that_are_no_classes_are_refused(labels: Tensor, message: str) -> None:
    with pytest.raises(PassError, match=message):
        cross_entropy(torch.randn(3, 3), labels)


def test_a_network_with_scalar_outputs_is_distilled() -> None:
    graph, pieces = parse(SINGLE, fill=lambda v: torch.ones(v.type.shape)), torch.randn(40, 6).split(1)
    original = graph.with_params({"a": 2 * graph.params["a"]})
    losses = validation(trained(Context([(x,) for x in pieces], original=original), graph))
    assert min(losses) < losses[0]


def test_mse_brings_outputs_to_labels_that_are_numbers() -> None:
    losses = validation(trained(context(labels="numbers"), loss="mse"))
    assert min(losses) < 0.5 * losses[0]


def test_mse_needs_a_label_for_each_number() -> None:
    with pytest.raises(PassError, match=r"loss mse: 16 labels for an output of 48 elements"):
        trained(context(), loss="mse")


def test_the_users_own_loss_is_what_is_lowered() -> None:
    def own(outputs: Tensor, labels: Tensor) -> Tensor:
        return functional.cross_entropy(outputs, labels) * 10

    first = validation(trained(context(load=own), loss="mine.py:own", epochs=0))
    named = validation(trained(context(), epochs=0))
    assert first[0] == pytest.approx(10 * named[0], rel=1e-5)
    losses = validation(trained(context(load=own), loss="mine.py:own"))
    assert min(losses) < 0.8 * losses[0]


@pytest.mark.parametrize(
    ("own", "message"),
    [
        (3, "is a int, not a function"),
        (lambda y, t: y[:, :99].view(-1, 7), r"raises RuntimeError: .*test_losses.py:\d+"),
        (lambda y, t: y, r"returns a tensor of shape \(16, 3\)"),
        (lambda y, t: 1.0, "returns float; it must return a tensor"),
        (lambda y, t: y.detach().sum(), "is not differentiable"),
    ],
)
def test_a_loss_that_is_none_is_told_with_its_place(own: object, message: str) -> None:
    with pytest.raises(PassError, match=f"loss .*mine.py:own: .*{message}"):
        trained(context(load=own), loss="mine.py:own")


def test_a_context_that_cannot_load_says_so() -> None:
    surroundings = replace(context(), load=Context().load)
    with pytest.raises(PassError, match=r"mine.py:own cannot be loaded"):
        trained(surroundings, loss="mine.py:own")


def test_the_users_own_loss_needs_labels() -> None:
    with pytest.raises(PassError, match=r"mine.py:own needs labels"):
        trained(context(labels="none", original=net()), loss="mine.py:own")


def test_layers_of_the_teacher_are_learned() -> None:
    def distance(graph: Graph) -> float:
        found: dict[str, dict[str, Tensor]] = {"teacher": {}, "student": {}}
        x = torch.randn(1, 6, generator=torch.Generator().manual_seed(9))
        for who, each in (("teacher", net()), ("student", graph)):
            run(each, [x], observe=lambda v, t, into=found[who]: into.update({v.name: t}))  # type: ignore[misc]
        return float((found["teacher"]["r"] - found["student"]["r"]).norm())

    surroundings = context(labels="none", original=net())
    plain = trained(surroundings, epochs=10)
    hinted = trained(surroundings, epochs=10, distill={"layers": ("body",), "layer_weight": 10.0})
    assert distance(hinted.graph) < 0.7 * distance(plain.graph)


def test_a_narrower_layer_has_a_regressor_that_is_discarded() -> None:
    small = net(seed=1, width=5)
    result = trained(context(labels="none", original=net()), small, distill={"layers": ("body.act",)})
    assert result.graph.params.keys() == small.params.keys()
    assert "regressor:body.act:r" in result.state.moments["exp_avg"]
    assert min(validation(result)) < 0.8 * validation(result)[0]


def test_a_layer_without_a_feature_loss_is_refused() -> None:
    surroundings = context(original=net())
    with pytest.raises(PassError, match="no module 'tail'; modules: body, head"):
        trained(surroundings, distill={"layers": ("tail",)})
    other = parse(NET.replace("relu", "exp").replace("%r", "%other"), params=net().params)
    with pytest.raises(PassError, match=r"the result of body\.act is not in the graph any more"):
        trained(surroundings, other, distill={"layers": ("body.act",)})


def objective(scores: Tensor, labels: Tensor | None, **options: object) -> Objective:
    given = Context((), [] if labels is None else [labels], original=net())
    return Objective.of(FinetuneOptions.model_validate(options), given, (), shapes=[tuple(scores.shape)])


def taught_loss(loss: Objective, scores: Tensor, taught: Tensor, labels: Tensor | None) -> Tensor:
    return loss([scores], labels, [taught], features={}, teacher_features={}, parameters={})


@pytest.mark.parametrize(
    ("shape", "axis", "labels"),
    [
        ((2, 7, 3), 2, (2, 7)),
        ((2, 3, 7), 1, (2, 7)),
        ((2, 3, 4, 5), 1, (2, 4, 5)),
        ((2, 4, 5, 3), 3, (2, 4, 5)),
    ],
)
def test_a_constant_added_to_all_scores_of_a_position_changes_no_loss(
    shape: tuple[int, ...], axis: int, labels: tuple[int, ...]
) -> None:
    generator = torch.Generator().manual_seed(0)
    z, t = torch.randn(2, *shape, generator=generator)
    classes = torch.randint(0, 3, labels, generator=generator)
    shifts = [torch.randn(labels, generator=generator).unsqueeze(axis) * 5 for _ in range(2)]
    loss = objective(z, classes, distill={"weight": "50 %"})
    found = taught_loss(loss, z, t, classes)
    torch.testing.assert_close(taught_loss(loss, z + shifts[0], t + shifts[1], classes), found)
    rows = [x.movedim(axis, -1).reshape(-1, 3) / 4 for x in (t, z)]
    divergence = (rows[0].softmax(1) * (rows[0].log_softmax(1) - rows[1].log_softmax(1))).sum(1).mean()
    expected = 0.5 * functional.cross_entropy(rows[1] * 4, classes.flatten()) + 0.5 * 16 * divergence
    torch.testing.assert_close(found, expected)


def test_without_labels_the_class_axis_makes_scores_of_positions() -> None:
    z, t = torch.randn(2, 2, 7, 3, generator=torch.Generator().manual_seed(0))
    named = objective(z, None, class_axis=-1, distill={})
    assert taught_loss(named, z + torch.randn(2, 7, 1), t, None) == pytest.approx(
        float(taught_loss(named, z, t, None)), rel=1e-4
    )
    assert taught_loss(objective(z, None, distill={}), z, t, None) == pytest.approx(
        float((z - t).square().mean())
    )


def test_ignored_positions_do_not_count() -> None:
    z = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([[0, 1, -100, 2, -100], [-100, -100, 1, 1, 0]])
    kept = labels != -100
    torch.testing.assert_close(cross_entropy(z, labels), functional.cross_entropy(z[kept], labels[kept]))
    torch.testing.assert_close(
        cross_entropy(z, labels.clamp(min=0), ignore_index=0),
        functional.cross_entropy(z[labels > 0], labels[labels > 0]),
    )
    assert float(cross_entropy(z, torch.full((2, 5), -100))) == 0.0
    assert count_correct(z, labels, axis=2, ignore_index=-100) == (
        int((z.argmax(2) == labels)[kept].sum()),
        6,
    )


def test_an_axis_that_cannot_be_told_or_is_none_is_refused() -> None:
    labels = torch.zeros(2, 4, dtype=torch.int64)
    with pytest.raises(PassError, match="scores 2x4x4 can be dimension 2 or 1; set `class_axis`"):
        cross_entropy(torch.randn(2, 4, 4), labels)
    assert float(cross_entropy(torch.randn(2, 4, 4), labels, axis=1)) > 0
    with pytest.raises(PassError, match="class_axis: 3 is not a class dimension of scores 2x4x4"):
        cross_entropy(torch.randn(2, 4, 4), labels, axis=3)
    with pytest.raises(
        PassError, match="have the shapes 2x5 and 2x4x3; give one class for each sample or position"
    ):
        cross_entropy(torch.randn(2, 4, 3), torch.zeros(2, 5, dtype=torch.int64))
    with pytest.raises(PassError, match="have no class dimension"):
        cross_entropy(torch.randn(2), torch.zeros(2, dtype=torch.int64))
