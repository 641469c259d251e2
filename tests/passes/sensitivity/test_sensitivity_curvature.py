"""Traces, eigenvalues and diagonals of each layer's block against the full Hessian, taken by double differentiation."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from fxpress.ir import Graph, Value, parse, run
from fxpress.ir.testing import drawn_constant, drawn_samples
from fxpress.passes import PassError, find_pass
from fxpress.passes.sensitivity import Precision, measure_curvature, measure_sensitivity, round_weight
from fxpress.passes.sensitivity.objective import Classes, Values, choose_loss
from fxpress.specs.options import FuseOptions

CNN = """
graph(%x: f64[1x2x6x6]) {
  const %w1: f64[4x2x3x3]
  const %b1: f64[4]
  const %w2: f64[4x1x3x3]
  const %w3: f64[6x2x1x1]
  const %w4: f64[5x54]
  const %b4: f64[5]
  %a: f64[1x4x6x6] = conv{padding=(1, 1, 1, 1), clamp=(0.0, inf)}(%x, %w1, %b1)
  %b: f64[1x4x6x6] = conv{padding=(1, 1, 1, 1), groups=4}(%a, %w2, none, %a)
  %c: f64[1x6x3x3] = conv{stride=(2, 2), groups=2, clamp=(-0.5, 6.0)}(%b, %w3)
  %d: f64[1x54] = reshape{shape=(-1, 54)}(%c)
  %e: f64[1x5] = linear(%d, %w4, %b4)
  return output: %e
}"""

TRANSPOSED = """
graph(%x: f64[1x4x3x3]) {
  const %w1: f64[4x3x3x3]
  const %w2: f64[4x294]
  %a: f64[1x6x7x7] = conv_transpose{stride=(2, 2), padding=(0, 1, 0, 1), output_padding=(1, 1), groups=2}(%x, %w1)
  %r: f64[1x6x7x7] = relu(%a)
  %d: f64[1x294] = reshape{shape=(-1, 294)}(%r)
  %e: f64[1x4] = linear(%d, %w2)
  return output: %e
}"""

SHARED = """
graph(%x: f64[1x6]) {
  const %w: f64[6x6]
  const %v: f64[3x6]
  %a: f64[1x6] = linear(%x, %w)
  %r: f64[1x6] = relu(%a)
  %b: f64[1x6] = linear(%r, %w)
  %s: f64[1x6] = relu(%b)
  %y: f64[1x3] = linear(%s, %v)
  return output: %y
}"""

SEQUENCE = """
graph(%x: f64[1x3x4]) {
  const %w: f64[6x4]
  const %v: f64[5x6]
  %a: f64[1x3x6] = linear(%x, %w)
  %r: f64[1x3x6] = relu(%a)
  %y: f64[1x3x5] = linear(%r, %v)
  return output: %y
}"""

VALUES = """
graph(%x: f64[1x4]) {
  const %w: f64[3x4]
  const %v: f64[4x3]
  %a: f64[1x3] = linear{clamp=(0.0, inf)}(%x, %w)
  %y: f64[1x4] = linear(%a, %v)
  return output: %y
}"""

NORMED = """
graph(%x: f64[1x2x4x4]) {
  const %w: f64[3x2x3x3]
  const %gamma: f64[3]
  const %beta: f64[3]
  const %mean: f64[3]
  const %var: f64[3]
  const %v: f64[4x48]
  %c: f64[1x3x4x4] = conv{padding=(1, 1, 1, 1)}(%x, %w)
  %n: f64[1x3x4x4] = batch_norm(%c, %gamma, %beta, %mean, %var)
  %r: f64[1x3x4x4] = relu(%n)
  %d: f64[1x48] = reshape{shape=(-1, 48)}(%r)
  %y: f64[1x4] = linear(%d, %v)
  return output: %y
}"""


def fill(value: Value) -> Tensor:
    tensor = drawn_constant(value)
    return tensor.abs() + 0.3 if value.name == "var" else tensor / 2


def net(text: str) -> Graph:
    return parse(text, fill=fill)


def divergence(z: Tensor, reference: Tensor) -> Tensor:
    """Its Hessian at z = reference is the Gauss-Newton matrix where z is piecewise linear in the weights."""
    p = reference.softmax(-1)
    return functional.kl_div(z.log_softmax(-1), p, reduction="none").sum(-1).mean()


def half_square(z: Tensor, reference: Tensor) -> Tensor:
    return (z - reference).square().mean() / 2


def hessian(
    graph: Graph,
    name: str,
    data: list[tuple[Tensor, ...]],
    loss: Callable[[Tensor, Tensor], Tensor] = divergence,
) -> Tensor:
    weight = graph.params[name]

    def mean_loss(w: Tensor) -> Tensor:
        outputs = [(run(graph, x, params={name: w})[0], run(graph, x)[0]) for x in data]
        return torch.stack([loss(z, reference.detach()) for z, reference in outputs]).mean()

    found: Tensor = torch.autograd.functional.hessian(mean_loss, weight)
    return found.reshape(weight.numel(), weight.numel())


@pytest.mark.parametrize(
    ("text", "names"),
    [(CNN, ("w1", "w2", "w3", "w4")), (TRANSPOSED, ("w1", "w2")), (SEQUENCE, ("w", "v"))],
)
def test_the_trace_the_largest_eigenvalue_and_the_norm_are_those_of_the_full_hessian(
    text: str, names: tuple[str, ...]
) -> None:
    graph = net(text)
    data = drawn_samples(graph, 3)
    found = {c.layer: c for c in measure_curvature(graph, data, eigenvalues=True)}
    traces = {c.layer: c for c in measure_curvature(graph, data)}
    for name in names:
        full = hessian(graph, name, data)
        assert found[name].is_exact and found[name].elements == len(full)
        assert traces[name].trace == pytest.approx(float(full.trace()), rel=1e-10)
        assert found[name].trace == pytest.approx(float(full.trace()), rel=1e-10)
        largest = float(torch.linalg.eigvalsh(full)[-1])
        assert found[name].largest_eigenvalue == pytest.approx(largest, rel=1e-10)
        assert found[name].frobenius == pytest.approx(float(full.norm()), rel=1e-10)


def test_without_classes_the_block_is_that_of_the_mean_squared_output() -> None:
    graph = net(VALUES)
    data = drawn_samples(graph, 3)
    table = measure_sensitivity(graph, data, method="hawq_v2")
    assert table.objective == "values" and "has no class scores" in table.notes[0]
    for curvature in table.curvatures:
        full = hessian(graph, curvature.layer, data, half_square)
        assert curvature.trace == pytest.approx(float(full.trace()), rel=1e-10)


def test_the_trace_of_an_entire_loss_with_labels_is_the_same_behind_piecewise_linear_layers() -> None:
    graph = net(CNN)
    data = drawn_samples(graph, 2)

    def cross_entropy(z: Tensor, _: Tensor) -> Tensor:
        return functional.cross_entropy(z, torch.tensor([1]))

    (curvature, *_) = measure_curvature(graph, data)
    full = hessian(graph, "w1", data, cross_entropy)
    assert curvature.trace == pytest.approx(float(full.trace()), rel=1e-10)


def test_the_diagonal_along_an_error_is_that_of_the_full_hessian() -> None:
    graph = net(TRANSPOSED)
    data = drawn_samples(graph, 2)
    table = measure_sensitivity(graph, data, method="fisher", weight_bits=(4,))
    for name, node in zip(("w1", "w2"), (n for n in graph.nodes if len(n.inputs) > 1), strict=True):
        error = (round_weight(node.op, graph.params[name], 4) - graph.params[name]).flatten()  # type: ignore[arg-type]
        expected = float((hessian(graph, name, data).diagonal() * error.square()).sum()) / 2
        assert table.score(name, 4).loss == pytest.approx(expected, rel=1e-10)


def gauss_newton_trace(graph: Graph, name: str, data: list[tuple[Tensor, ...]]) -> float:
    """By the Jacobian of the outputs, the constant read by all its uses at once."""
    total = 0.0
    for x in data:
        jacobian: Tensor = torch.autograd.functional.jacobian(
            lambda w, x=x: run(graph, x, params={name: w})[0].flatten(), graph.params[name]
        )
        p = run(graph, x)[0].flatten().softmax(0)
        rows = jacobian.flatten(1)
        total += float((p[:, None] * (rows - p @ rows).square()).sum())
    return total / len(data)


def test_a_weight_that_is_read_twice_counts_once_with_the_sum_of_its_gradients() -> None:
    graph = net(SHARED)
    data = drawn_samples(graph, 3)
    table = measure_sensitivity(graph, data, method="hawq_v2")
    shared, last = table.curvatures
    assert shared.elements == 36 and not shared.is_exact and last.is_exact
    assert "after w the outputs are not piecewise linear" in table.notes[-1]
    assert shared.trace == pytest.approx(gauss_newton_trace(graph, "w", data), rel=1e-10)


def test_batch_norms_are_folded_before_anything_is_measured() -> None:
    graph = net(NORMED)
    folded = find_pass("fuse")(graph, FuseOptions()).graph
    data = drawn_samples(graph, 3)
    weight = next(v.name for v in folded.constants if v.type.rank == 4)
    expected = float(hessian(folded, weight, data).trace())
    unfolded = float(hessian(graph, "w", data).trace())
    (curvature, _) = measure_curvature(graph, data)
    assert curvature.trace == pytest.approx(expected, rel=1e-10)
    assert curvature.trace != pytest.approx(unfolded, rel=0.1)  # a trace changes with the scale of the weight


def test_the_columns_of_the_factor_and_what_remains_give_the_second_derivative() -> None:
    z = torch.tensor([[[0.3, -1.0, 2.0, 0.1]], [[50.0, 0.0, -60.0, 0.0]]], dtype=torch.float64)
    p = z.softmax(-1)[:, 0]
    second = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    columns = Classes().columns(z, 3)[:, :, 0]
    torch.testing.assert_close(torch.einsum("jna,jnb->nab", columns, columns), second, rtol=0, atol=1e-15)
    first = Classes().columns(z, 1)[:, :, 0]
    signs = torch.tensor([[a, b, c, d] for a in (1, -1) for b in (1, -1) for c in (1, -1) for d in (1, -1)])
    probes = Classes().probes(z, signs[:, None, None].double(), skipped=1)[:, :, 0]
    both = torch.einsum("jna,jnb->nab", first, first) + torch.einsum("jna,jnb->nab", probes, probes) / 16
    torch.testing.assert_close(both, second, rtol=0, atol=1e-15)
    assert Values().columns(z, 4).square().sum() == pytest.approx(2.0)


def test_probes_are_drawn_until_the_interval_is_narrow_and_it_holds_the_exact_trace() -> None:
    graph = net(CNN)
    data = drawn_samples(graph, 6)
    exact = measure_curvature(graph, data)
    for tolerance in (0.2, 0.05):
        found = measure_curvature(graph, data, precision=Precision(exact_columns=0, tolerance=tolerance))
        for a, b in zip(exact, found, strict=True):
            assert abs(a.trace - b.trace) <= 3 * tolerance * a.trace  # three half widths of a 95 % interval


def test_a_gram_matrix_beyond_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fxpress.passes.sensitivity.curvature._GRAM_BYTES", 1000)
    graph = net(CNN)
    with pytest.raises(PassError, match=r"use fewer samples, or method hawq_v2"):
        measure_sensitivity(graph, drawn_samples(graph, 2), method="hawq")


@pytest.mark.parametrize(
    ("shape", "axis", "labels"),
    [((2, 3), 1, None), ((2, 7, 3), 2, None), ((2, 3, 7), 1, (2, 7)), ((2, 3, 4, 5), 1, None)],
)
def test_a_constant_added_to_all_scores_of_a_position_is_no_divergence(
    shape: tuple[int, ...], axis: int, labels: tuple[int, ...] | None
) -> None:
    type = f"f32[{'x'.join(map(str, shape))}]"
    graph = parse(f"graph(%x: {type}) {{\n  %y: {type} = neg(%x)\n  return output: %y\n}}")
    classes = None if labels is None else torch.zeros(labels, dtype=torch.int64)
    loss = choose_loss(graph, "classes", labels=classes)
    generator = torch.Generator().manual_seed(0)
    z, change = torch.randn(2, *shape, generator=generator)
    shift = torch.randn([1 if i == axis else n for i, n in enumerate(shape)], generator=generator) * 5
    before, after, shifted = (loss.read([x], 2) for x in (z, z + change, z + change + shift))
    torch.testing.assert_close(
        loss.divergence(before, shifted), loss.divergence(before, after), rtol=1e-4, atol=1e-6
    )
    logs = [x.movedim(axis, -1).reshape(2, -1, 3).log_softmax(-1) for x in (z, z + change)]
    expected = (logs[0].exp() * (logs[0] - logs[1])).sum(-1).mean(-1).double()
    torch.testing.assert_close(loss.divergence(before, after), expected, rtol=1e-4, atol=1e-6)
