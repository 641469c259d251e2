"""Teachers within a training: peers, exits, discriminators and learned pairs of layers."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fxpress.ir import Graph, Source, parse, run
from fxpress.passes import Context, PassError
from fxpress.passes.training import Trained, train
from fxpress.passes.training.exits import Exit, find_exits
from fxpress.passes.training.feature_loss import FeatureLoss, find_feature_losses
from fxpress.passes.training.learned_pairs import find_learned_pairs
from fxpress.passes.training.peers import Peers
from fxpress.specs import SpecError
from fxpress.specs.options import Distillation, FeaturePair, FinetuneOptions
from fxpress.specs.write import read_values

NET = """
graph(%x: f32[1x2x6x6]) {
  const %a: f32[4x2x3x3]
  const %b: f32[4]
  const %c: f32[6x4x3x3]
  const %w: f32[3x54]
  %g: f32[1x4x6x6] = conv{padding=(1, 1, 1, 1), clamp=(0.0, inf)}(%x, %a, %b)
  %h: f32[1x6x3x3] = conv{stride=(2, 2), padding=(1, 1, 1, 1), clamp=(0.0, inf)}(%g, %c)
  %f: f32[1x54] = reshape{shape=(-1, 54)}(%h)
  %y: f32[1x3] = linear(%f, %w)
  return output: %y
}"""
MODULES = {"g": "first", "h": "second", "f": "", "y": "head"}
TEACHERS: Mapping[str, Mapping[str, object]] = {
    "peers": {"teacher": "peers", "peers": 3},
    "okddip": {"teacher": "peers", "peers": 3, "peer_weights": "attention"},
    "exits": {"teacher": "exits", "exits": ["first", "second"]},
    "adversarial": {"layers": [{"layer": "second", "loss": "adversarial"}]},
    "learned pairs": {"layers": ["first", "second"], "matching": "attention"},
}


class KilledError(Exception):
    pass


def net(seed: int = 0) -> Graph:
    generator = torch.Generator().manual_seed(seed)
    graph = parse(NET, fill=lambda v: torch.randn(v.type.shape, generator=generator) / 4)
    nodes = tuple(replace(node, source=Source(MODULES[node.output.name])) for node in graph.nodes)
    return replace(graph, nodes=nodes)


def context(*, dies_at: int | None = None, labels: bool = True) -> Context:
    pieces = torch.randn(96, 2, 6, 6, generator=torch.Generator().manual_seed(5)).split(1)
    classes = [run(net(), [piece])[0].argmax(1) for piece in pieces]

    def progress(label: str, done: int, total: int) -> None:
        if done == dies_at:
            raise KilledError

    return Context(
        [(piece,) for piece in pieces], classes if labels else [], original=net(), progress=progress
    )


def trained(distill: Mapping[str, object], surroundings: Context | None = None, **chosen: object) -> Trained:
    values = {"epochs": 4, "batch": 16, "learning_rate": 0.01, "distill": distill, **chosen}
    options = read_values(FinetuneOptions, values, name="finetune(...)")
    return train(net(seed=1), options, surroundings or context())


@pytest.mark.parametrize("name", TEACHERS)
def test_each_teacher_lowers_the_validation_loss_and_adds_no_constant(name: str) -> None:
    result = trained(TEACHERS[name])
    losses = [row[2] for row in result.rows]
    assert min(losses[1:]) < 0.9 * losses[0]
    assert result.graph.params.keys() == net().params.keys()
    assert result.graph != net(seed=1)


@pytest.mark.parametrize("name", TEACHERS)
def test_a_resumed_training_gives_the_same_bytes(name: str, tmp_path: Path) -> None:
    file = str(tmp_path / "training.pt")
    whole = trained(TEACHERS[name])
    with pytest.raises(KilledError):
        trained(TEACHERS[name], context(dies_at=15), checkpoint=file)
    resumed = trained(TEACHERS[name], checkpoint=file)
    assert resumed.graph == whole.graph
    assert resumed.rows == whole.rows


def peers(**chosen: object) -> Peers:
    distill = Distillation.model_validate({"teacher": "peers", "peers": 3, **chosen})
    return Peers.of(distill, 1, (4, 3))


def test_the_other_peers_start_with_the_same_elements_in_another_order() -> None:
    first = {"w": torch.randn(5, 4, generator=torch.Generator().manual_seed(0)), "b": torch.arange(5.0)}
    found = peers().start(first, torch.Generator().manual_seed(1))
    assert found.keys() == {"peer_1:w", "peer_1:b", "peer_2:w", "peer_2:b"}
    second, third = found["peer_1:w"], found["peer_2:w"]
    assert not torch.equal(second, first["w"]) and not torch.equal(second, third)
    assert torch.equal(second.flatten().sort()[0], first["w"].flatten().sort()[0])
    assert torch.equal(found["peer_1:b"], first["b"])
    assert peers().parameters_of(2, first | found).keys() == first.keys()


def test_a_peer_learns_from_the_mean_probabilities_of_the_others() -> None:
    outputs = [[torch.randn(4, 3, generator=torch.Generator().manual_seed(seed))] for seed in range(3)]
    wanted = peers(temperature=2.0).teachers(outputs, {})
    mean = torch.stack([(outputs[at][0] / 2).softmax(1) for at in (1, 2)]).mean(0)
    torch.testing.assert_close((wanted[0][0] / 2).softmax(1), mean)
    squared = peers(outputs="mse").teachers(outputs, {})
    torch.testing.assert_close(squared[2][0], (outputs[0][0] + outputs[1][0]) / 2)


@given(st.integers(0, 1000))
def test_learned_weights_of_peers_make_a_distribution_of_each_sample(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    chosen = peers(peer_weights="attention", temperature=1.0)
    parameters = chosen.start({}, generator)
    outputs = [[3 * torch.randn(4, 3, generator=generator)] for _ in range(3)]
    wanted = chosen.teachers(outputs, parameters)
    others = torch.stack([outputs[at][0].softmax(1) for at in (1, 2)])
    for (scores,) in wanted:
        found = scores.softmax(1)
        assert bool((found >= others.amin(0) - 1e-6).all() and (found <= others.amax(0) + 1e-6).all())
    torch.testing.assert_close(wanted[0][0].softmax(1), others.mean(0))


def test_the_weights_of_peers_are_trained_and_the_peers_are_not_by_their_teaching() -> None:
    chosen = peers(peer_weights="attention")
    parameters = chosen.start({}, torch.Generator().manual_seed(0))
    parameters = {name: tensor.requires_grad_() for name, tensor in parameters.items()}
    outputs = [[torch.randn(4, 3, requires_grad=True)] for _ in range(3)]
    chosen.teachers(outputs, parameters)[1][0].square().sum().backward()
    assert all(tensor.grad is not None for tensor in parameters.values())
    assert all(ys[0].grad is None for ys in outputs)


def test_an_exit_is_a_linear_classifier_of_the_mean_of_each_channel() -> None:
    x = torch.randn(2, 4, 5, 5, generator=torch.Generator().manual_seed(0))
    exit = Exit("block", "h", 1, 4, 3)
    parameters = exit.start(torch.Generator().manual_seed(1))
    expected = x.mean((2, 3)) @ parameters["exit:block:weight"].T
    torch.testing.assert_close(exit.scores({"h": x}, parameters), expected)
    flat = Exit("block", "h", 1, 4, 3)
    torch.testing.assert_close(flat.scores({"h": x.mean((2, 3))}, parameters), expected)
    sequence = Exit("block", "h", 2, 4, 3)
    torch.testing.assert_close(sequence.scores({"h": x.flatten(2).mT}, parameters), expected)


def test_exits_need_class_scores_of_samples_and_modules_of_the_graph() -> None:
    with pytest.raises(PassError, match="the network has no module 'third'"):
        find_exits(net(), net(), ["third"], (1, 3))
    with pytest.raises(PassError, match="an exit has one class per sample"):
        find_exits(net(), net(), ["first"], (1, 7, 3))


def test_the_network_gets_the_reversed_gradient_of_the_discriminator() -> None:
    loss = FeatureLoss("layer", "own", "wanted", "adversarial", judged=4)
    parameters = loss.start(torch.Generator().manual_seed(0))
    parameters = {name: tensor.requires_grad_() for name, tensor in parameters.items()}
    own = torch.randn(8, 4, generator=torch.Generator().manual_seed(1), requires_grad=True)
    wanted = torch.randn(8, 4, generator=torch.Generator().manual_seed(2)) + 1

    def told_apart(x: Tensor) -> float:
        return float(loss.error({"own": x}, {"wanted": wanted}, parameters).detach())

    loss.error({"own": own}, {"wanted": wanted}, parameters).backward()
    assert own.grad is not None and own.grad.any()
    before = told_apart(own)
    assert told_apart(own.detach() - 0.1 * own.grad) > before, (
        "a step of the network makes telling apart harder"
    )
    with torch.no_grad():
        parameters = {name: tensor - 0.1 * tensor.grad for name, tensor in parameters.items()}
    assert told_apart(own) < before, "a step of the discriminator makes it easier"


def test_validation_leaves_discriminators_out() -> None:
    adversarial = trained({**TEACHERS["adversarial"], "layer_weight": 100.0}, epochs=0)
    plain = trained({}, epochs=0)
    assert adversarial.rows[0][2] == pytest.approx(plain.rows[0][2], rel=1e-5)


def test_learned_pairs_compare_all_layers_with_all_layers_of_the_teacher() -> None:
    pairs = [FeaturePair(layer="first"), FeaturePair(layer="second")]
    loss = find_learned_pairs(net(), net(), net(seed=3), pairs, batch=8)
    parameters = loss.start(torch.Generator().manual_seed(0))
    assert sorted(name for name in parameters if name.startswith("pair")) == [
        "pair:g:g",
        "pair:g:h",
        "pair:h:g",
        "pair:h:h",
    ]
    generator = torch.Generator().manual_seed(1)
    features = {
        "g": torch.rand(8, 4, 6, 6, generator=generator),
        "h": torch.rand(8, 6, 3, 3, generator=generator),
    }
    for own, other, size in (("g", "g", 4), ("h", "h", 6)):
        parameters[f"pair:{own}:{other}"] = torch.eye(size)
    sure = parameters | {"query:g": torch.zeros(32, 8), "query:h": torch.zeros(32, 8)}
    error = float(loss.error(features, features, sure))
    assert error > 0
    crossed = [parameters["pair:g:h"], parameters["pair:h:g"]]
    half = [
        (features["g"].unfold(2, 2, 2).unfold(3, 2, 2).mean((4, 5)), features["h"], crossed[0]),
        (features["h"], features["g"].unfold(2, 2, 2).unfold(3, 2, 2).mean((4, 5)), crossed[1]),
    ]
    expected = [
        float((torch.einsum("oc,nchw->nohw", r, x) - t).square().mean() / t.square().mean())
        for x, t, r in half
    ]
    assert error == pytest.approx(sum(expected) / 4, rel=1e-4), "weights of one half, own pairs without error"


@pytest.mark.parametrize(
    ("distill", "message"),
    [
        ({"teacher": "exits"}, "`teacher: exits` needs `exits`"),
        ({"exits": ["first"]}, "`exits` needs `teacher: exits`"),
        ({"peers": 3}, "`peers` needs `teacher: peers`"),
        ({"teacher": "peers", "peer_weights": "attention"}, "needs at least 3 `peers`"),
        ({"teacher": "peers", "layers": ["first"]}, "`teacher: peers` has no `layers`"),
        ({"layers": ["first"], "matching": "attention"}, "`matching: attention` needs at least 2 `layers`"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(distill: dict[str, object], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        read_values(FinetuneOptions, {"distill": distill}, name="finetune(...)")


def test_teachers_that_cannot_be_are_refused() -> None:
    needs = dict(FinetuneOptions.model_validate({"distill": TEACHERS["peers"]}).needed())
    assert needs["labels"] == ("distill", "teacher")
    with pytest.raises(PassError, match="peer_weights: attention needs class scores"):
        trained(TEACHERS["okddip"], loss="mse")
    pairs: list[object] = ["first", {"layer": "second", "loss": "cosine"}]
    with pytest.raises(PassError, match="second: `matching: attention` has squared errors"):
        trained({"layers": pairs, "matching": "attention"})
    with pytest.raises(PassError, match="compares the samples of a batch; set `batch`"):
        trained(TEACHERS["learned pairs"], batch=1)
    with pytest.raises(PassError, match="needs modules with the same positions"):
        trained({"layers": ["first", "head"], "matching": "attention"})


def test_an_adversarial_loss_of_unlike_channels_has_a_regressor() -> None:
    pair = FeaturePair(layer="head", loss="adversarial")
    (loss,) = find_feature_losses(net(), net(), net(seed=2), [pair])
    assert loss.judged == 3 and not loss.is_comparable
    assert len(loss.start(torch.Generator().manual_seed(0))) == 3
