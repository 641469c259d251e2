"""Losses of `finetune`: named ones, the user's own, and layers of the teacher."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from fxpress.ir import Graph, Source, parse, run
from fxpress.passes import Context, PassError
from fxpress.passes.training import Trained, train
from fxpress.passes.training.losses import cross_entropy
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
        (torch.tensor([0, 3, 1]), "a label is 3; there are 3 classes, from 0"),
        (torch.tensor([0, -1, 1]), "a label is -1"),
        (torch.tensor([0.0, 0.5, 1.0]), "a label is 0.5"),
        (torch.zeros(3, 2), "the shapes 3x2 and 3x3; give one class for each sample"),
    ],
)
def test_labels_that_are_no_classes_are_refused(labels: Tensor, message: str) -> None:
    with pytest.raises(PassError, match=message):
        cross_entropy(torch.randn(3, 3), labels)


def test_a_network_that_gives_single_numbers_is_taught() -> None:
    graph, pieces = parse(SINGLE, fill=lambda v: torch.ones(v.type.shape)), torch.randn(40, 6).split(1)
    original = graph.with_params({"a": 2 * graph.params["a"]})
    losses = validation(trained(Context([(x,) for x in pieces], original=original), graph))
    assert min(losses) < losses[0]


def test_mse_brings_outputs_to_labels_that_are_numbers() -> None:
    losses = validation(trained(context(labels="numbers"), loss="mse"))
    assert min(losses) < 0.5 * losses[0]


def test_mse_needs_a_label_for_each_number() -> None:
    with pytest.raises(PassError, match=r"loss mse: 16 labels for an output of 48 numbers"):
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
        (3, "is a int; name a function"),
        (lambda y, t: y[:, :99].view(-1, 7), r"raises RuntimeError: .*test_losses.py:\d+"),
        (lambda y, t: y, r"gives a tensor of shape \(16, 3\)"),
        (lambda y, t: 1.0, "gives float; it must give a tensor"),
        (lambda y, t: y.detach().sum(), "does not depend on the outputs"),
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


def test_a_narrower_layer_is_taught_through_a_map_that_does_not_stay() -> None:
    small = net(seed=1, width=5)
    result = trained(context(labels="none", original=net()), small, distill={"layers": ("body.act",)})
    assert result.graph.params.keys() == small.params.keys()
    assert "hint:body.act" in result.state.moments["exp_avg"]
    assert min(validation(result)) < 0.8 * validation(result)[0]


def test_a_layer_that_cannot_be_taught_is_refused() -> None:
    surroundings = context(original=net())
    with pytest.raises(PassError, match="no module 'tail'; there are body, head"):
        trained(surroundings, distill={"layers": ("tail",)})
    other = parse(NET.replace("relu", "exp").replace("%r", "%other"), params=net().params)
    with pytest.raises(PassError, match=r"what body\.act computes is no value of the graph any more"):
        trained(surroundings, other, distill={"layers": ("body.act",)})
