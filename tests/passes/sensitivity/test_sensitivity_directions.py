"""Scores along the rounding error: against Jacobians, against the measured change, and invariances."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import get_args

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from fxpress.ir import Graph, Node, Source, parse, run
from fxpress.ir.testing import drawn_constant, drawn_samples
from fxpress.passes import PassError
from fxpress.passes.sensitivity import (
    Method,
    SensitivityTable,
    measure_curvature,
    measure_sensitivity,
    round_weight,
)

BRANCHED = """
graph(%x: f64[1x3x6x6]) {
  const %w1: f64[4x3x3x3]
  const %b1: f64[4]
  const %w2: f64[4x3x1x1]
  const %w3: f64[5x4]
  %a: f64[1x4x4x4] = conv{clamp=(0.0, inf)}(%x, %w1, %b1)
  %b: f64[1x4x6x6] = conv{clamp=(0.0, inf)}(%x, %w2)
  %m: f64[1x4] = mean{axes=(2, 3)}(%a)
  %n: f64[1x4] = mean{axes=(2, 3)}(%b)
  %s: f64[1x4] = add(%m, %n)
  %y: f64[1x5] = linear(%s, %w3)
  return output: %y
}"""

TRANSFORMER = """
graph(%tokens: i64[1x6]) {
  const %table: f64[11x8]
  const %wq: f64[8x8]
  const %wk: f64[8x8]
  const %wv: f64[8x8]
  const %gamma: f64[8]
  const %head: f64[11x8]
  %x: f64[1x6x8] = embedding(%tokens, %table)
  %q: f64[1x6x8] = linear(%x, %wq)
  %k: f64[1x6x8] = linear(%x, %wk)
  %v: f64[1x6x8] = linear(%x, %wv)
  %o: f64[1x6x8] = attention{causal=True}(%q, %k, %v)
  %h: f64[1x6x8] = add(%x, %o)
  %n: f64[1x6x8] = rms_norm{shape=(8,), eps=1e-05}(%h, %gamma)
  %g: f64[1x6x8] = silu(%n)
  %y: f64[1x6x11] = linear(%g, %head)
  return output: %y
}"""

RECURRENT = """
graph(%x: f32[5x1x3]) {
  const %w: f32[4x3]
  const %wi: f32[16x4]
  const %wh: f32[16x4]
  const %head: f32[5x4]
  %a: f32[5x1x4] = linear(%x, %w)
  %l: f32[5x1x4], %h: f32[1x1x4], %c: f32[1x1x4] = lstm{bias=False}(%a, none, none, %wi, %wh)
  %y: f32[5x1x5] = linear(%l, %head)
  return output: %y
}"""

Sample = tuple[Tensor, ...]


def weight_error(graph: Graph, name: str, bits: int) -> Tensor:
    node = next(
        n for n in graph.nodes if len(n.inputs) > 1 and n.inputs[1] is not None and n.inputs[1].name == name
    )
    return round_weight(node.op, graph.params[name], bits) - graph.params[name]  # type: ignore[arg-type]  # a layer


def jacobian(graph: Graph, name: str, x: Sample) -> tuple[Tensor, Tensor]:
    """Outputs, and their derivatives [*outputs, elements] in one weight."""
    found: Tensor = torch.autograd.functional.jacobian(
        lambda w: run(graph, x, params={name: w})[0], graph.params[name]
    )
    z = run(graph, x)[0]
    return z, found.reshape(*z.shape, -1)


def losses(table: SensitivityTable) -> dict[tuple[str, str, int], float]:
    return {(s.layer, s.kind, s.bits): s.loss for s in table.scores}


@pytest.mark.parametrize(
    ("text", "names"), [(BRANCHED, ("w1", "w2", "w3")), (TRANSFORMER, ("wq", "wv", "head"))]
)
@pytest.mark.parametrize("bits", [2, 4])
def test_scores_are_those_of_the_jacobian_along_the_error(
    text: str, names: tuple[str, ...], bits: int
) -> None:
    graph = parse(text, fill=drawn_constant)
    data = drawn_samples(graph, 3)
    second = measure_sensitivity(graph, data, method="quadratic", weight_bits=(bits,))
    default = measure_sensitivity(graph, data, weight_bits=(bits,))
    for name in names:
        forms, divergences = [], []
        for x in data:
            z, derivatives = jacobian(graph, name, x)
            dz = derivatives @ weight_error(graph, name, bits).flatten()
            p = z.softmax(-1)
            forms.append(((p * dz.square()).sum(-1) - (p * dz).sum(-1).square()).mean() / 2)
            divergences.append((p * (z.log_softmax(-1) - (z + dz).log_softmax(-1))).sum(-1).mean())
        values = torch.stack(divergences)
        assert second.score(name, bits).loss == pytest.approx(float(torch.stack(forms).mean()), rel=1e-9)
        assert default.score(name, bits).loss == pytest.approx(float(values.mean()), rel=1e-9)
        assert default.score(name, bits).error == pytest.approx(float(values.std()) / 3**0.5, rel=1e-6)


def test_with_labels_the_score_is_the_change_of_the_cross_entropy_with_its_first_order() -> None:
    graph = parse(BRANCHED, fill=drawn_constant)
    data, labels = drawn_samples(graph, 4), [torch.tensor([i]) for i in (0, 3, 1, 3)]
    table = measure_sensitivity(graph, data, weight_bits=(8,), labels=labels)
    blind = measure_sensitivity(graph, data, weight_bits=(8,))
    for name in ("w1", "w2", "w3"):
        changed = replace(
            graph, params={**graph.params, name: graph.params[name] + weight_error(graph, name, 8)}
        )
        pairs = zip(data, labels, strict=True)
        rises = [
            functional.cross_entropy(run(changed, x)[0], y) - functional.cross_entropy(run(graph, x)[0], y)
            for x, y in pairs
        ]
        rise = float(torch.stack(rises).mean())
        assert table.score(name, 8).loss == pytest.approx(rise, rel=0.2)  # but for signs of ReLUs
        assert abs(blind.score(name, 8).loss - rise) > 0.5 * abs(rise)  # the gradient term is most of it here


def test_the_score_of_a_layer_before_an_lstm_is_that_of_the_changed_network() -> None:
    graph = parse(RECURRENT, fill=drawn_constant)
    data = drawn_samples(graph, 3)
    score, exact = (
        measure_sensitivity(graph, data, method=method, weight_bits=(8,)).score("w", 8).loss
        for method in ("gauss_newton", "kl")
    )
    assert score == pytest.approx(exact, rel=0.1) and exact > 0


def test_the_divergence_is_that_of_the_changed_network() -> None:
    graph = parse(TRANSFORMER, fill=drawn_constant)
    data = drawn_samples(graph, 3)
    table = measure_sensitivity(graph, data, method="kl", weight_bits=(4,))
    for name in ("wq", "wk", "wv", "head"):
        changed = replace(
            graph, params={**graph.params, name: graph.params[name] + weight_error(graph, name, 4)}
        )
        pairs = [(run(graph, x)[0], run(changed, x)[0]) for x in data]
        expected = [
            (z.softmax(-1) * (z.log_softmax(-1) - c.log_softmax(-1))).sum(-1).mean() for z, c in pairs
        ]
        assert table.score(name, 4).loss == pytest.approx(float(torch.stack(expected).mean()), rel=1e-9)


def test_the_score_of_an_activation_foretells_the_change_that_rounding_the_operand_makes() -> None:
    graph = parse(BRANCHED, fill=drawn_constant)
    data = drawn_samples(graph, 8)
    predicted = measure_sensitivity(graph, data, weight_bits=(), activation_bits=(8,))
    measured = measure_sensitivity(graph, data, method="kl", weight_bits=(), activation_bits=(8,))
    assert predicted.layers(kind="activation") == ("w1", "w2", "w3") and not predicted.layers()
    for found, real in zip(predicted.scores, measured.scores, strict=True):
        assert real.loss > 0 and found.loss == pytest.approx(real.loss, rel=0.1)


@pytest.mark.parametrize("method", get_args(Method))
def test_the_loss_falls_as_bits_rise(method: Method) -> None:
    graph = parse(BRANCHED, fill=drawn_constant)
    kinds = (4, 8, 16) if method in ("gauss_newton", "quadratic", "kl") else ()
    table = measure_sensitivity(graph, drawn_samples(graph, 4), method=method, activation_bits=kinds)
    for kind in ("weight", "activation"):
        for layer in table.layers(kind=kind):
            falling = [s.loss for s in table.scores if (s.layer, s.kind) == (layer, kind)]
            assert falling == sorted(falling, reverse=True) and falling[-1] < falling[0] / 10


def test_the_trace_of_a_transformer_is_that_of_its_jacobian() -> None:
    graph = parse(TRANSFORMER, fill=drawn_constant)
    (x,) = drawn_samples(graph, 1)
    z = run(graph, x)[0]
    p = z.softmax(-1)
    factor = (torch.diag_embed(p) - p[..., None] * p[..., None, :]) / p.shape[1]
    for found in measure_curvature(graph, [x]):
        _, derivatives = jacobian(graph, found.layer, x)
        expected = torch.einsum("ntck,ntcd,ntdk->", derivatives, factor, derivatives)
        assert found.trace == pytest.approx(float(expected), rel=1e-9)
        assert found.is_exact == (found.layer == "head")


def test_an_embedding_is_looked_up_in_float_and_has_no_score() -> None:
    graph = parse(TRANSFORMER, fill=drawn_constant)
    assert measure_sensitivity(graph, drawn_samples(graph, 2)).layers() == ("wq", "wk", "wv", "head")


@pytest.mark.parametrize("method", get_args(Method))
def test_the_order_of_samples_and_of_layers_and_the_number_of_shards_change_nothing(method: Method) -> None:
    graph = parse(BRANCHED, fill=drawn_constant)
    data = drawn_samples(graph, 5)
    expected = losses(measure_sensitivity(graph, data, method=method))
    first, second, *rest = graph.nodes
    swapped = replace(graph, nodes=(second, first, *rest))
    for other, order, shards in ((swapped, [3, 1, 4, 0, 2], 16), (graph, range(5), 1), (graph, range(5), 2)):
        found = losses(measure_sensitivity(other, [data[i] for i in order], method=method, shards=shards))
        assert found == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("method", get_args(Method))
def test_the_same_measurement_gives_the_same_bytes(method: Method) -> None:
    graph = parse(BRANCHED, fill=drawn_constant)
    data = drawn_samples(graph, 5)
    texts = {measure_sensitivity(graph, data, method=method).to_json() for _ in range(2)}
    assert len(texts) == 1


def test_the_rows_of_a_batch_are_samples_of_their_own() -> None:
    single = parse(BRANCHED, fill=drawn_constant)
    data = drawn_samples(single, 4)
    double = parse(BRANCHED.replace("f64[1x", "f64[2x"), params=single.params)
    pairs = [(torch.cat([data[i][0], data[i + 1][0]]),) for i in (0, 2)]
    found, expected = (
        measure_sensitivity(g, d, weight_bits=(4,)) for g, d in ((double, pairs), (single, data))
    )
    assert found.samples == 4 and losses(found) == pytest.approx(losses(expected), rel=1e-12)


def in_modules(graph: Graph, modules: Sequence[str]) -> Graph:
    """The graph with its layers in these modules, in order."""
    names = iter(modules)
    nodes = [
        Node(n.op, n.inputs, n.outputs, Source(next(names)))
        if len(n.inputs) > 1 and n.op.name != "add"
        else n
        for n in graph.nodes
    ]
    return replace(graph, nodes=tuple(nodes))


def test_the_layers_of_one_module_are_rounded_together() -> None:
    graph = parse(BRANCHED, fill=drawn_constant)
    data = drawn_samples(graph, 3)
    table = measure_sensitivity(
        in_modules(graph, ("body", "body", "head")), data, method="kl", weight_bits=(4,)
    )
    both = {name: graph.params[name] + weight_error(graph, name, 4) for name in ("w1", "w2")}
    pairs = [(run(graph, x)[0], run(graph, x, params=both)[0]) for x in data]
    expected = [functional.kl_div(c.log_softmax(-1), z.softmax(-1), reduction="sum") for z, c in pairs]
    assert table.layers() == ("body", "head")
    assert table.score("body", 4).loss == pytest.approx(float(torch.stack(expected).mean()), rel=1e-9)


def test_modules_that_share_a_weight_have_one_score_and_are_named_together() -> None:
    text = """
graph(%x: f64[1x6]) {
  const %w: f64[6x6]
  const %v: f64[3x6]
  %a: f64[1x6] = linear{clamp=(0.0, inf)}(%x, %w)
  %b: f64[1x6] = linear{clamp=(0.0, inf)}(%a, %w)
  %y: f64[1x3] = linear(%b, %v)
  return output: %y
}"""
    graph = in_modules(parse(text, fill=drawn_constant), ("first", "second", "head"))
    data = drawn_samples(graph, 3)
    table = measure_sensitivity(graph, data, method="kl", weight_bits=(4,))
    changed = {"w": graph.params["w"] + weight_error(graph, "w", 4)}
    pairs = [(run(graph, x)[0], run(graph, x, params=changed)[0]) for x in data]
    expected = [functional.kl_div(c.log_softmax(-1), z.softmax(-1), reduction="sum") for z, c in pairs]
    assert table.layers() == ("first", "head") and table.shared == (("first", "second"),)
    assert table.score("first", 4).loss == pytest.approx(float(torch.stack(expected).mean()), rel=1e-9)


def test_what_cannot_be_measured_is_refused() -> None:
    graph = parse(BRANCHED, fill=drawn_constant)
    data = drawn_samples(graph, 2)
    with pytest.raises(PassError, match="method hawq scores weights; for activations use gauss_newton or kl"):
        measure_sensitivity(graph, data, method="hawq", activation_bits=(8,))
    with pytest.raises(PassError, match="no bit widths are given"):
        measure_sensitivity(graph, data, weight_bits=())
    with pytest.raises(PassError, match="1 labels for 2 calibration samples"):
        measure_sensitivity(graph, data, labels=[torch.tensor([0])])
    with pytest.raises(PassError, match="a label is 7; there are 5 classes"):
        measure_sensitivity(graph, data, labels=[torch.tensor([0]), torch.tensor([7])])
    with pytest.raises(PassError, match="the calibration set is empty"):
        measure_sensitivity(graph, [])
    plain = parse("graph(%x: f32[1x2]) {\n  %y: f32[1x2] = relu(%x)\n  return output: %y\n}")
    with pytest.raises(PassError, match="no layer with constant float weights"):
        measure_sensitivity(plain, [(torch.ones(1, 2),)])
