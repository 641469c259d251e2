"""`finetune` of integer graphs: accuracy lost by rounding is recovered, and the result is an integer graph."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fxpress.ir import (
    Encoding,
    Graph,
    Source,
    Value,
    coded_weights,
    parse,
    rebatch,
    run,
    run_integer,
    verify,
)
from fxpress.passes import Context, PassError, PassResult, find_pass
from fxpress.passes.training import train
from fxpress.passes.training.encoding_groups import encoding_groups
from fxpress.passes.training.integer_trainable import IntegerTrainable
from fxpress.passes.training.loop import make_trainable
from fxpress.passes.training.reencode import reencode
from fxpress.passes.training.step_size import Range, round_to_levels, round_to_step
from fxpress.specs.options import FinetuneOptions, QuantizeOptions

NET = """
graph(%x: f32[1x2x8x8]) {
  const %a: f32[8x2x3x3]
  const %ab: f32[8]
  const %d: f32[8x1x3x3]
  const %db: f32[8]
  const %p: f32[8x8x1x1]
  const %pb: f32[8]
  const %w: f32[4x16]
  const %wb: f32[4]
  %c: f32[1x8x8x8] = conv{padding=(1, 1, 1, 1), clamp=(0.0, inf)}(%x, %a, %ab)
  %e: f32[1x8x8x8] = conv{padding=(1, 1, 1, 1), groups=8, clamp=(0.0, inf)}(%c, %d, %db)
  %q: f32[1x8x8x8] = conv{clamp=(0.0, inf)}(%e, %p, %pb, %c)
  %j: f32[1x16x8x8] = concat{axis=1}(%q, %e)
  %m: f32[1x16x1x1] = avg_pool{kernel=(8, 8), stride=(8, 8)}(%j)
  %f: f32[1x16] = reshape{shape=(-1, 16)}(%m)
  %y: f32[1x4] = linear(%f, %w, %wb)
  return output: %y
}"""
SAMPLES = 240
CLASSES = 4
Layers = dict[str, object]


def images(seed: int) -> tuple[Tensor, Tensor]:
    """Stripes along, across, and along both diagonals, in noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, CLASSES, (SAMPLES,), generator=generator)
    row, column = torch.arange(8.0).view(8, 1), torch.arange(8.0).view(1, 8)
    along = torch.stack([row + 0 * column, column + 0 * row, row + column, row - column])
    phase = torch.rand(SAMPLES, 2, 1, 1, generator=generator) * 6
    waves = torch.sin(2 * along[labels].unsqueeze(1) + phase)
    return waves + 0.5 * torch.randn(SAMPLES, 2, 8, 8, generator=generator), labels


def context(original: Graph | None = None) -> Context:
    x, labels = images(0)
    return Context([(piece,) for piece in x.split(1)], labels.split(1), original=original)


def options(**chosen: object) -> FinetuneOptions:
    return FinetuneOptions.model_validate({"epochs": 6, "batch": 16, "learning_rate": 0.005, **chosen})


@cache
def float_net() -> Graph:
    generator = torch.Generator().manual_seed(0)
    start = parse(NET, fill=lambda v: torch.randn(v.type.shape, generator=generator) / v.type.numel**0.25)
    return train(start, options(epochs=10, learning_rate=0.03, distill=None), context()).graph


def named() -> Graph:
    """The network with its last layer in a module of its own."""
    graph = float_net()
    modules = {node: Source("head" if node.output.name == "y" else "body") for node in graph.nodes}
    return replace(graph, nodes=tuple(replace(node, source=module) for node, module in modules.items()))


def quantized(**chosen: object) -> Graph:
    settings = QuantizeOptions.model_validate({"samples": 64, **chosen})
    return find_pass("quantize")(named(), settings, context()).graph


def finetuned(graph: Graph, **chosen: object) -> PassResult:
    return find_pass("finetune")(graph, options(**chosen), context(float_net()))


def accuracy(graph: Graph, *, interpret: object = run_integer) -> float:
    x, labels = images(1)
    assert callable(interpret)
    (y,) = interpret(rebatch(graph, SAMPLES), [x])
    return float((y.argmax(1) == labels).float().mean())


def activations(graph: Graph) -> list[Value]:
    return [value for node in graph.nodes for value in node.outputs if value.type.is_quantized]


def grid_of(graph: Graph, name: str) -> Encoding:
    (grid,) = {v.type.quantization for v in graph.constants if v.name == name}
    assert grid is not None
    return grid


def storage_bits(graph: Graph) -> set[int]:
    return {v.type.quantization.bits for v in graph.constants if v.type.quantization is not None}


@pytest.mark.parametrize(
    ("chosen", "lost"),
    [({"weights": "int2"}, 0.1), ({"weights": "int2", "activations": "int16"}, 0.1)],
)
def test_training_recovers_what_rounding_to_few_bits_loses(chosen: Layers, lost: float) -> None:
    whole = accuracy(float_net(), interpret=run)
    rounded = quantized(**chosen)
    recovered = finetuned(rounded).graph
    assert storage_bits(recovered) == storage_bits(rounded)
    assert whole > 0.9
    assert accuracy(rounded) < whole - lost
    assert accuracy(recovered) > whole - 0.5 * (whole - accuracy(rounded))


def test_what_was_trained_is_what_the_integers_compute() -> None:
    recovered = finetuned(quantized(weights="int4"), epochs=2).graph
    x, _ = images(1)
    large = rebatch(recovered, SAMPLES)
    (trained,), (computed,) = run(large, [x]), run_integer(large, [x])
    step = max(v.type.quantization.scale[0] for v in activations(recovered) if v.type.quantization)
    assert float((trained - computed).abs().mean()) < step
    assert float((trained.argmax(1) == computed.argmax(1)).float().mean()) > 0.97


@pytest.mark.parametrize("weights", ["int8", "int4", "int2"])
def test_no_epoch_leaves_every_byte(weights: str) -> None:
    graph = quantized(weights=weights)
    assert finetuned(graph, epochs=0).graph == graph


def test_two_trainings_give_the_same_bytes() -> None:
    graph = quantized(weights="int4")
    assert finetuned(graph, epochs=2).graph == finetuned(graph, epochs=2).graph


def test_steps_are_learned_of_weights_and_of_what_moves_together() -> None:
    before = quantized(weights="int4")
    after = finetuned(before, epochs=2).graph
    verify(after)
    old, new = ({v.name: v.type.quantization for v in activations(g)} for g in (before, after))
    assert new["c"] != old["c"]
    assert new["q"] == new["j"]
    assert new["m"] == new["f"]
    assert new["x_q"] == old["x_q"]  # what the user gives keeps its grid


def test_steps_stay_where_they_are_not_to_be_learned() -> None:
    before = quantized(weights="int4")
    after = finetuned(before, epochs=2, learn_steps=False).graph
    assert [node.outputs for node in after.nodes] == [node.outputs for node in before.nodes]
    assert after != before


def test_kept_layers_keep_their_weights_and_get_biases_on_new_steps() -> None:
    before = quantized(weights="int4")
    after = finetuned(before, epochs=2, keep=("head",)).graph
    assert torch.equal(after.params["w"], before.params["w"])
    trained = [grid_of(graph, "p").dequantize(graph.params["p"]) for graph in (before, after)]
    assert not torch.equal(*trained)
    old, new = (grid_of(graph, "wb") for graph in (before, after))
    assert new != old
    reals = [grid_of(graph, "wb").dequantize(graph.params["wb"]) for graph in (before, after)]
    assert torch.allclose(*reals, rtol=0, atol=max(new.scale))


def test_float_layers_are_trained_beside_integers() -> None:
    graph = quantized(weights="int2", layers={"head": "float32"})
    after = finetuned(graph, epochs=2).graph
    assert after.params["w"].dtype is torch.float32
    assert not torch.equal(after.params["w"], graph.params["w"])
    reals = [grid_of(each, "p").dequantize(each.params["p"]) for each in (graph, after)]
    assert not torch.equal(*reals)


def test_one_step_for_a_whole_weight_stays_one() -> None:
    after = finetuned(quantized(weights="int4", per_channel=False), epochs=1).graph
    assert grid_of(after, "a").is_per_tensor


def test_gradients_are_those_of_learned_step_size() -> None:
    x = torch.tensor([-9.0, -0.6, 0.2, 0.7, 9.0], requires_grad=True)
    growth = torch.zeros((), requires_grad=True)
    within = Range(-3, 3, 0.5)
    y = round_to_step(x, torch.tensor(0.5), growth, within)
    assert y.tolist() == [-1.5, -0.5, 0.0, 0.5, 1.5]
    y.sum().backward()
    assert x.grad is not None and x.grad.tolist() == [0, 1, 1, 1, 0]
    by_step = -3 + (-1 + 1.2) + (0 - 0.4) + (1 - 1.4) + 3
    assert growth.grad is not None
    assert float(growth.grad) == pytest.approx(0.5 * by_step / 0.5, rel=1e-5)


def test_steps_of_channels_get_gradients_of_their_own() -> None:
    x = torch.tensor([[0.3, 2.0], [0.3, -8.0]], requires_grad=True)
    growth = torch.zeros(2, 1, requires_grad=True)
    round_to_step(x, torch.tensor([[1.0], [2.0]]), growth, Range(-3, 3, 1.0)).sum().backward()
    assert growth.grad is not None
    expected = [(0 - 0.3) + 0.0, ((0 - 0.15) - 3) / 2]
    assert growth.grad.flatten().tolist() == pytest.approx(expected, rel=1e-5)


def test_groups_follow_data_movement_and_hold_what_the_user_sees() -> None:
    graph = quantized(weights="int8")
    groups = encoding_groups(graph)
    assert groups.of["m"] == groups.of["f"]
    assert groups.of["x_q"] not in groups.learnable
    assert groups.of["c"] in groups.learnable
    assert "f" not in groups.rounded and "m" in groups.rounded


def test_a_layer_without_an_integer_form_is_refused() -> None:
    graph = quantized(weights="int8")
    (layer,) = (node for node in graph.nodes if node.source.module == "head" and node.op.name == "linear")
    assert reencode(graph, {}, {}) == graph
    with pytest.raises(PassError, match=r"head: a scale ratio .*, after training; lower learning_rate"):
        reencode(graph, {layer.output.name: Encoding((1e-30,))}, {})


@pytest.mark.parametrize(
    "chosen", [{"weights": "binary"}, {"codebook_bits": 2}, {"weights": "int8", "layers": {"head": "binary"}}]
)
def test_weights_with_a_codebook_keep_its_levels(chosen: Layers) -> None:
    before = quantized(**chosen)
    coded = coded_weights(before)
    trained = train(before, options(distill=None, learning_rate=0.03), context(float_net()))
    assert coded and coded_weights(trained.graph) == coded
    verify(trained.graph)
    for name in coded:
        assert set(level_integers(trained.graph, name)) <= set(level_integers(before, name))
    assert any(not torch.equal(trained.graph.params[name], before.params[name]) for name in coded)
    assert min(row[2] for row in trained.rows) < 0.9 * trained.rows[0][2]
    untouched = train(before, options(distill=None, epochs=0), context(float_net()))
    assert untouched.graph == before


def level_integers(graph: Graph, name: str) -> list[float]:
    (type,) = {value.type for value in graph.constants if value.name == name}
    assert type.quantization is not None and type.quantization.levels is not None
    return list(type.quantization.levels)


def test_a_codebook_starts_at_the_weights_of_the_captured_model() -> None:
    before = quantized(weights="binary")
    form = make_trainable(before, options(), context(float_net()))
    assert isinstance(form, IntegerTrainable)
    start, alone = form.start(), make_trainable(before, options(), context()).start()
    assert set(alone["a"].abs().unique().tolist()) == {1.0}
    assert len(start["a"].unique()) > 20
    assert torch.equal(start["a"] >= 0, alone["a"] > 0)
    x, _ = images(1)
    outputs = [
        form.forward(rebatch(form.graph, SAMPLES), [x], parameters, observe=lambda value, tensor: None)[0]
        for parameters in (start, alone)
    ]
    assert torch.equal(*outputs)


def test_a_level_moves_with_its_step_and_is_held_at_twice_the_outermost_one() -> None:
    x = torch.tensor([-5.0, -0.2, 0.3, 5.0, 5.0], requires_grad=True)
    growth = torch.zeros((), requires_grad=True)
    y = round_to_levels(x, torch.tensor(2.0), growth, torch.tensor([-1.0, 1.0]), gain=1.0)
    assert y.tolist() == [-2.0, -2.0, 2.0, 2.0, 2.0]
    torch.autograd.backward([y], [torch.tensor([1.0, 1.0, 1.0, 1.0, -1.0])])
    assert x.grad is not None and growth.grad is not None
    assert x.grad.tolist() == [0.0, 1.0, 1.0, 1.0, 0.0]
    assert float(growth.grad) == pytest.approx((-2 - 2 + 2 + 2 - 2) / 4)


def test_a_teacher_of_more_bits_is_nearer_to_the_float_network() -> None:
    before = quantized(activations="int2")
    form = make_trainable(before, options(), context())
    assert isinstance(form, IntegerTrainable)
    x, _ = images(1)
    exact, start = run(rebatch(float_net(), SAMPLES), [x])[0], form.start()
    batched = rebatch(form.graph, SAMPLES)

    def error(one: IntegerTrainable) -> float:
        (found,) = one.forward(batched, [x], start, observe=lambda value, tensor: None)
        return float((found - exact).norm())

    mixed = form.with_finer_activations(torch.Generator().manual_seed(0))
    groups = frozenset(form.groups.elements)
    assert frozenset() < mixed.finer < groups
    assert error(replace(form, finer=groups)) < error(mixed) < error(form)


def test_stochastic_precision_is_a_teacher_of_integer_graphs_with_labels() -> None:
    distill = {"teacher": "stochastic_precision", "outputs": "cosine", "weight": "50 %"}
    chosen = options(distill=distill)
    assert dict(chosen.needed())["labels"] == ("distill", "teacher")
    before, samples = quantized(weights="int2", activations="int2"), context(float_net())
    trained = train(before, chosen, samples)
    assert trained.rows[-1][1] < trained.rows[1][1]
    assert train(before, chosen, samples).graph == trained.graph
    assert train(before, options(distill=None), samples).graph != trained.graph
    with pytest.raises(PassError, match="move `finetune` behind `quantize`"):
        train(float_net(), chosen, samples)


def test_a_training_with_stochastic_precision_resumes_with_the_same_bytes(tmp_path: Path) -> None:
    distill = {"teacher": "stochastic_precision"}
    before, samples = quantized(weights="int2", activations="int2"), context(float_net())
    whole = train(before, options(distill=distill, epochs=3), samples)
    chosen = options(distill=distill, epochs=3, checkpoint=str(tmp_path / "state.pt"))

    def stop(what: str, done: int, total: int) -> None:
        if done > total / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(before, chosen, replace(samples, progress=stop))
    assert train(before, chosen, samples).graph == whole.graph
