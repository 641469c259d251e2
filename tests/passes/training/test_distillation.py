"""Teachers of a distillation, and losses between features of a network and of its teacher."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fxpress.compiler import UserError, compile_model
from fxpress.ir import Graph, Source, parse, run
from fxpress.passes import Context, PassError
from fxpress.passes.training import Trained, train
from fxpress.passes.training.feature_loss import FeatureLoss, find_feature_losses
from fxpress.passes.training.losses import Objective
from fxpress.specs import SpecError
from fxpress.specs.options import FeatureKind, FeaturePair, FinetuneOptions, Teacher
from fxpress.specs.write import read_values

NET = """
graph(%x: f32[1x6]) {
  const %a: f32[8x6]
  const %b: f32[3x8]
  %h: f32[1x8] = linear(%x, %a)
  %r: f32[1x8] = relu(%h)
  %y: f32[1x3] = linear(%r, %b)
  return output: %y
}"""
MODULES = {"h": "body.first", "r": "body.act", "y": "head"}


def net(seed: int = 0, *, width: int = 8, prefix: str = "") -> Graph:
    generator = torch.Generator().manual_seed(seed)
    text = NET.replace("8x", f"{width}x").replace("x8]", f"x{width}]")
    graph = parse(text, fill=lambda v: torch.randn(v.type.shape, generator=generator))
    nodes = tuple(replace(node, source=Source(prefix + MODULES[node.output.name])) for node in graph.nodes)
    return replace(graph, nodes=nodes)


def context(*, labels: bool = False, original: Graph | None = None, teacher: Graph | None = None) -> Context:
    pieces = torch.randn(160, 6, generator=torch.Generator().manual_seed(5)).split(1)
    classes = [run(net(), [piece])[0].argmax(1) for piece in pieces] if labels else []

    def captured(asked: Teacher) -> Graph:
        assert str(asked.source).endswith("wide.py:Wide")
        assert teacher is not None
        return teacher

    return Context([(p,) for p in pieces], classes, original=original or net(seed=3), teacher=captured)


def trained(surroundings: Context, graph: Graph | None = None, **options: object) -> Trained:
    chosen = {"epochs": 8, "batch": 16, "learning_rate": 0.02, **options}
    read = read_values(FinetuneOptions, chosen, name="finetune(...)")
    return train(graph or net(seed=1), read, surroundings)


def distance(one: Graph, other: Graph) -> float:
    """Mean distance of the class probabilities on samples that no training sees."""
    xs = torch.randn(64, 6, generator=torch.Generator().manual_seed(9)).split(1)
    return sum(float((run(one, [x])[0].softmax(1) - run(other, [x])[0].softmax(1)).norm()) for x in xs) / 64


def test_another_model_is_the_teacher() -> None:
    wide = net(seed=0, width=24)
    taught = trained(context(teacher=wide), distill={"teacher": "wide.py:Wide"}, epochs=20)
    own = trained(context(teacher=wide), epochs=20)
    assert distance(taught.graph, wide) < 0.5 * distance(own.graph, wide)


def test_layers_of_another_model_are_named_beside_those_of_the_network() -> None:
    wide = net(seed=0, width=24, prefix="blocks.")
    pair = {"layer": "body", "teacher": "blocks.body.act", "loss": "mse"}
    result = trained(context(teacher=wide), distill={"teacher": "wide.py:Wide", "layers": [pair]})
    assert "regressor:body:r" in result.state.moments["exp_avg"]
    with pytest.raises(PassError, match="the teacher has no module 'body'; modules: blocks"):
        trained(context(teacher=wide), distill={"teacher": "wide.py:Wide", "layers": ["body"]})


def test_a_teacher_with_other_outputs_is_refused() -> None:
    other = parse(
        NET.replace("f32[3x8]", "f32[5x8]").replace("[1x3]", "[1x5]"),
        fill=lambda v: torch.zeros(v.type.shape),
    )
    with pytest.raises(PassError, match=r"has outputs of shapes \[\(1, 5\)\], the network of \[\(1, 3\)\]"):
        trained(context(teacher=other), distill={"teacher": "wide.py:Wide"})


def test_a_virtual_teacher_smooths_the_labels() -> None:
    z = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0, 2, -100, 1])
    distill = {"teacher": "virtual", "correct": "80 %", "weight": "50 %", "temperature": 2.0}
    options = FinetuneOptions.model_validate({"distill": distill})
    loss = Objective.of(options, Context((), [labels], original=net()), (), shapes=[(4, 3)])
    found = loss([z], labels, None, features={}, teacher_features={}, parameters={})
    kept = labels >= 0
    target = torch.full((3, 3), 0.1).scatter_(1, labels[kept][:, None], 0.8)
    soft = (target.log() / 2).log_softmax(1)
    logs = (z[kept] / 2).log_softmax(1)
    divergence = (soft.exp() * (soft - logs)).sum(1).mean()
    expected = 0.5 * functional.cross_entropy(z[kept], labels[kept]) + 0.5 * 4 * divergence
    torch.testing.assert_close(found, expected)


def test_a_virtual_teacher_needs_labels_and_class_scores() -> None:
    needs = dict(FinetuneOptions.model_validate({"distill": {"teacher": "virtual"}}).needed())
    assert needs["labels"] == ("distill", "teacher")
    with pytest.raises(PassError, match="virtual needs class scores"):
        trained(context(labels=True), loss="mse", distill={"teacher": "virtual"})
    result = trained(context(labels=True), distill={"teacher": "virtual"})
    assert min(row[2] for row in result.rows) < 0.8 * result.rows[0][2]


@pytest.mark.parametrize(
    ("distill", "message"),
    [
        (
            {"teacher": "virtual", "layers": ["body"]},
            "`teacher: virtual` has class scores alone, no `layers`",
        ),
        ({"teacher": "virtual", "outputs": "mse"}, "`teacher: virtual` has class scores alone, no `outputs`"),
        (
            {"teacher": "stochastic_precision", "layers": ["body"]},
            "`teacher: stochastic_precision` has no `layers`",
        ),
        ({"teacher": "peer"}, "is not a teacher"),
        ({"layers": [{"layer": "body", "loss": "kl"}]}, "loss"),
    ],
)
def test_teachers_and_losses_that_do_not_exist_are_refused(distill: dict[str, object], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        read_values(FinetuneOptions, {"distill": distill}, name="finetune(...)")


@pytest.mark.parametrize("kind", ["kl", "mse", "cosine"])
def test_each_loss_of_the_outputs_lowers_the_distance_to_the_teacher(kind: str) -> None:
    teacher = net(seed=3)
    result = trained(context(original=teacher), distill={"outputs": kind}, epochs=20)
    assert distance(result.graph, teacher) < 0.6 * distance(net(seed=1), teacher)


def test_the_cosine_of_scores_that_are_zero_has_a_bounded_gradient() -> None:
    options = FinetuneOptions.model_validate({"distill": {"outputs": "cosine", "weight": "100 %"}})
    loss = Objective.of(options, Context((), (), original=net()), (), shapes=[(4, 3)])
    z = torch.zeros(4, 3, requires_grad=True)
    wanted = torch.eye(4, 3) + 1
    torch.autograd.backward([loss([z], None, [wanted], features={}, teacher_features={}, parameters={})])
    assert z.grad is not None and 0 < float(z.grad.abs().max()) < 10


def features(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def error(kind: FeatureKind, own: Tensor, wanted: Tensor, *, axis: int = 1) -> float:
    loss = FeatureLoss("layer", "own", "wanted", kind, axis=axis)
    return float(loss.error({"own": own}, {"wanted": wanted}, {}))


def test_attention_compares_where_a_layer_responds() -> None:
    wanted = features(4, 6, 5, 5, seed=0)
    shuffled = wanted[:, torch.randperm(6, generator=torch.Generator().manual_seed(1))]
    assert error("attention", 3 * shuffled, wanted) == pytest.approx(0, abs=1e-6)
    assert error("attention", features(4, 9, 5, 5, seed=1), wanted) > 0.01
    maps = [functional.normalize(x.square().mean(1).flatten(1)) for x in (shuffled.roll(1, 3), wanted)]
    expected = (maps[0] - maps[1]).square().sum(1).mean()
    assert error("attention", shuffled.roll(1, 3), wanted) == pytest.approx(float(expected), rel=1e-5)


def test_relations_are_those_between_samples() -> None:
    wanted = features(6, 10, seed=0)
    rotation, _ = torch.linalg.qr(features(10, 10, seed=1))
    assert error("relation", wanted @ rotation, wanted) == pytest.approx(0, abs=1e-6)
    assert error("relation", features(6, 3, 4, seed=2), wanted) > 0.01


def test_cosine_ignores_the_length_of_channels() -> None:
    wanted = features(2, 7, 5, seed=0)
    assert error("cosine", 5 * wanted, wanted, axis=2) == pytest.approx(0, abs=1e-6)
    assert error("cosine", -wanted, wanted, axis=2) == pytest.approx(2, abs=1e-6)


def test_the_cosine_of_channels_that_are_zero_has_a_bounded_gradient() -> None:
    wanted = features(2, 7, 5, seed=0)
    own = torch.zeros(2, 7, 5, requires_grad=True)
    loss = FeatureLoss("layer", "own", "wanted", "cosine", axis=2)
    torch.autograd.backward([loss.error({"own": own}, {"wanted": wanted}, {})])
    assert own.grad is not None and 0 < float(own.grad.abs().max()) < 10
    assert error("cosine", own, torch.zeros_like(own), axis=2) == pytest.approx(1)


CONVOLUTIONS = """
graph(%x: f32[2x3x8x8]) {{
  const %w: f32[{0}x3x3x3]
  %y: f32[2x{0}x8x8] = conv{{padding=(1, 1, 1, 1)}}(%x, %w)
  return output: %y
}}"""


def convolution(channels: int) -> Graph:
    graph = parse(CONVOLUTIONS.format(channels), fill=lambda v: torch.ones(v.type.shape))
    return replace(graph, nodes=tuple(replace(n, source=Source("conv")) for n in graph.nodes))


@pytest.mark.parametrize(
    ("kind", "has_regressor"), [("mse", True), ("cosine", True), ("attention", False), ("relation", False)]
)
def test_a_regressor_is_there_where_channels_must_agree(kind: FeatureKind, has_regressor: bool) -> None:
    narrow, wide = convolution(4), convolution(6)
    (loss,) = find_feature_losses(narrow, narrow, wide, [FeaturePair(layer="conv", loss=kind)])
    parameters = loss.start(torch.Generator().manual_seed(0))
    assert bool(parameters) == has_regressor
    x = [torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))]
    own, wanted = (dict(y=run(graph, x)[0]) for graph in (narrow, wide))
    assert float(loss.error(own, wanted, parameters)) >= 0


@pytest.mark.parametrize(
    ("kind", "message"),
    [("attention", "needs a dimension of channels and one of positions"), ("relation", "samples of a batch")],
)
def test_features_without_the_dimensions_of_a_loss_are_refused(kind: FeatureKind, message: str) -> None:
    flat = parse(
        "graph(%x: f32[6]) {\n  %y: f32[6] = relu(%x)\n  return output: %y\n}"
        if kind == "relation"
        else "graph(%x: f32[2x6]) {\n  %y: f32[2x6] = relu(%x)\n  return output: %y\n}"
    )
    graph = replace(flat, nodes=tuple(replace(n, source=Source("act")) for n in flat.nodes))
    other = net() if kind == "relation" else graph
    pair = FeaturePair(layer="act", teacher="body" if kind == "relation" else None, loss=kind)
    with pytest.raises(PassError, match=message):
        find_feature_losses(graph, graph, other, [pair])


SOURCE = """
import torch
from torch import nn

class Net(nn.Sequential):
    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.body = nn.Linear(6, width)
        self.act = nn.ReLU()
        self.head = nn.Linear(width, 3)
"""
SPEC = """
fxpress: 1
model: {source: net.py:Net, inputs: {input: {shape: [1, 6]}}}
data: {calibration: {file: data.npz, inputs: {input: x}}}
passes:
  - pass: finetune
    epochs: 2
    checkpoint: state.pt
    distill:
      teacher: {source: net.py:Net, args: {width: 32}, weights: wide.pt}
      layers: [{layer: act, loss: relation}]
outputs: {torch: {}}
"""


def test_a_spec_names_a_teacher_with_its_weights(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(SOURCE)
    (tmp_path / "spec.yaml").write_text(SPEC)
    scope: dict[str, type[nn.Module]] = {}
    exec(SOURCE, scope)
    torch.manual_seed(1)
    torch.save(scope["Net"](width=32).state_dict(), tmp_path / "wide.pt")
    np.savez(tmp_path / "data.npz", x=np.random.default_rng(0).normal(size=(64, 6)).astype(np.float32))
    compiled = compile_model(tmp_path / "spec.yaml")
    lock = compiled.files["spec.lock"].decode()
    assert "passes[0].distill.teacher.weights" in lock
    assert "passes[0].distill.teacher.source" in lock
    again = compile_model(tmp_path / "spec.yaml")  # from the checkpoint
    assert again.graph == compiled.graph
    torch.manual_seed(2)
    torch.save(scope["Net"](width=32).state_dict(), tmp_path / "wide.pt")
    with pytest.raises(UserError, match="belongs to another training"):
        compile_model(tmp_path / "spec.yaml")
