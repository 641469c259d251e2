"""Sliced equals masked, for every operator and over random graphs; wrong couplings do not survive it."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from fxpress.ir import OPERATORS, DType, Graph, ShapeError, dump, parse, run, run_integer, verify
from fxpress.ir.coupling import couple
from fxpress.ir.cutting import changed_statistics, cut_graph, deviation, deviation_from_masked
from fxpress.ir.ops.channels import Axes, CouplingCall
from fxpress.ir.ops.conv import Conv
from fxpress.ir.ops.shape import Reshape
from fxpress.ir.ops.slicing import Concat
from fxpress.ir.testing import (
    DEFAULT_OPS,
    check_cut,
    examples,
    graphs,
    inputs,
    opened,
    quantized_graphs,
    random_removal,
)
from fxpress.ir.testing.cuts import ROUNDING

CONVERSIONS = {"quantize", "dequantize", "requantize", "offset_binary"}
WITHOUT_FLOATS = {"argmax", "argmin", "compare", "logic", "sort"}  # with results that are indices or booleans
NAMES = sorted(OPERATORS.keys() - CONVERSIONS - WITHOUT_FLOATS)
LAYERS = ("conv", "linear", "relu", "add", "concat", "reshape")  # every second graph of these has units
few = settings(max_examples=max(6, settings.default.max_examples // 8))


@pytest.mark.parametrize("name", NAMES)
@few
@given(st.data(), st.integers(0, 99))
def test_every_operator_cut_equals_masked(name: str, data: st.DataObject, seed: int) -> None:
    example = data.draw(examples(name))
    graph, samples = opened(example.graph, example.inputs)
    assume(all(v.type.dtype in ROUNDING for v in graph.outputs))
    check_cut(graph, samples, seed=seed)


@given(st.data(), st.integers(0, 99))
def test_random_graphs_cut_equal_masked(data: st.DataObject, seed: int) -> None:
    graph = data.draw(graphs(ops=sorted(DEFAULT_OPS), dtype=DType.F64, max_steps=8))
    check_cut(graph, data.draw(inputs(graph, extreme=False)), seed=seed)


@given(st.data(), st.integers(0, 99))
def test_random_graphs_open_at_both_ends_cut_equal_masked(data: st.DataObject, seed: int) -> None:
    graph = data.draw(graphs(ops=sorted(DEFAULT_OPS), dtype=DType.F64, max_steps=6))
    check_cut(*opened(graph, data.draw(inputs(graph, extreme=False))), seed=seed)


@given(quantized_graphs(ops=LAYERS, max_steps=8), st.integers(0, 99))
def test_integer_graphs_keep_their_encodings_when_they_are_cut(graph: Graph, seed: int) -> None:
    coupling = couple(graph)
    kept = coupling.kept(random_removal(coupling.groups, seed=seed))
    cut = verify(cut_graph(kept))
    for before, after in zip(graph.results, cut.results, strict=True):
        assert after.type == before.type.of_channels(kept.value(before))
    run_integer(cut, [torch.ones(v.type.shape) for v in cut.inputs])


@given(st.data())
def test_removing_nothing_is_the_identity(data: st.DataObject) -> None:
    graph = data.draw(graphs())
    coupling = couple(graph)
    assert cut_graph(coupling.kept(np.zeros(coupling.count, dtype=bool))) == graph


NET = """
graph(%x: f64[2x3x4x4]) {
  const %a: f64[6x3x3x3]
  const %d: f64[6x1x3x3]
  const %b: f64[4x6x1x1]
  const %g: f64[8x5x1x1]
  const %c: f64[3x128]
  %h: f64[2x6x4x4] = conv{padding=(1, 1, 1, 1)}(%x, %a)
  %k: f64[2x6x4x4] = conv{padding=(1, 1, 1, 1), groups=6}(%h, %d)
  %r: f64[2x6x4x4] = relu(%k)
  %p: f64[2x4x4x4] = conv(%r, %b)
  %j: f64[2x10x4x4] = concat{axis=1}(%p, %h)
  %q: f64[2x8x4x4] = conv{groups=2}(%j, %g)
  %f: f64[2x128] = reshape{shape=(-1, 128)}(%q)
  %y: f64[2x3] = linear(%f, %c)
  return output: %y
}"""


def net(seed: int = 0) -> tuple[Graph, list[Tensor]]:
    generator = torch.Generator().manual_seed(seed)

    def fill(value: object) -> Tensor:
        return torch.randn(value.type.shape, generator=generator, dtype=torch.float64)  # type: ignore[attr-defined]

    graph = parse(NET, fill=fill)
    return graph, [torch.randn(2, 3, 4, 4, generator=generator, dtype=torch.float64)]


def test_the_example_loses_channels_and_equals_its_masked_self() -> None:
    assert check_cut(*net(), seed=3) > 3


def _concat_offset(self: Concat, call: CouplingCall) -> tuple[Axes, ...]:
    parts = [axes for axes in call.operands if axes is not None]
    joined, start = call.free(call.outputs[0].shape[self.axis]), 0
    for part in parts:
        index = torch.arange(call.size(part[self.axis]))
        call.tie_indices(joined, (index + start + 1) % call.size(joined), part[self.axis], index)
        start += len(index)
    return ((*parts[0][: self.axis], joined, *parts[0][self.axis + 1 :]),)


def _flatten_stride(self: Reshape, call: CouplingCall) -> tuple[Axes, ...]:
    x = call.operand("x")
    flat = call.free(call.outputs[0].shape[1])
    index = torch.arange(call.size(flat))
    call.tie_indices(flat, index, x[1], index % call.size(x[1]))
    return ((x[0], flat),)


def _depthwise_reversed(self: Conv, call: CouplingCall) -> tuple[Axes, ...]:
    if self.groups == call.size(call.operand("x")[1]):
        x, w = call.operand("x"), call.operand("weight")
        index = torch.arange(call.size(x[1]))
        call.tie_indices(x[1], index, w[0], index.flip(0))
        return ((x[0], w[0], *call.fixed(*call.outputs[0].shape[2:])),)
    return COUPLE_CONV(self, call)


def _groups_forgotten(self: Conv, call: CouplingCall) -> tuple[Axes, ...]:
    if 1 < self.groups < call.size(call.operand("x")[1]):
        x, w = call.operand("x"), call.operand("weight")
        index = torch.arange(call.size(x[1]))
        call.tie_indices(x[1], index, w[1], index // self.groups)
        return ((x[0], w[0], *call.fixed(*call.outputs[0].shape[2:])),)
    return COUPLE_CONV(self, call)


COUPLE_CONV = Conv.couple
PLANTED: list[tuple[type, Callable[..., tuple[Axes, ...]]]] = [
    (Concat, _concat_offset),
    (Reshape, _flatten_stride),
    (Conv, _depthwise_reversed),
    (Conv, _groups_forgotten),
]


@pytest.mark.parametrize(("op", "wrong"), PLANTED, ids=lambda item: item.__name__.strip("_"))
def test_a_wrong_coupling_is_found(
    op: type, wrong: Callable[..., tuple[Axes, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(op, "couple", wrong)
    found = 0
    for seed in range(5):
        try:
            check_cut(*net(seed), seed=seed)
        except (AssertionError, ShapeError):
            found += 1
    assert found >= 3


def test_a_shared_weight_that_is_cut_for_each_use_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fault of tools that key weights by name: one layer called twice, pruned once for each call."""
    shared = parse(
        """
graph(%x: f64[2x4]) {
  const %a: f64[6x4]
  const %w: f64[6x6]
  const %c: f64[3x6]
  %h: f64[2x6] = linear(%x, %a)
  %r: f64[2x6] = linear(%h, %w)
  %s: f64[2x6] = relu(%r)
  %t: f64[2x6] = linear(%s, %w)
  %y: f64[2x3] = linear(%t, %c)
  return output: %y
}""",
        fill=lambda v: torch.randn(
            v.type.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64
        ),
    )
    samples = [torch.randn(2, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)]
    assert check_cut(shared, samples, seed=3) > 0
    linear = OPERATORS["linear"]
    right = linear.couple

    def forgetful(self: object, call: CouplingCall) -> tuple[Axes, ...]:
        (y,) = right(self, call)  # type: ignore[arg-type]
        return ((*y[:-1], call.free(call.size(y[-1]))),)

    monkeypatch.setattr(linear, "couple", forgetful)
    with pytest.raises((AssertionError, ShapeError)):
        for seed in range(5):
            check_cut(shared, samples, seed=seed)


def permuted(graph: Graph, seed: int) -> tuple[Graph, np.ndarray]:
    """The same network with the units of each group in another order, and the new place of each unit."""
    coupling = couple(graph)
    rng = np.random.default_rng(seed)
    order = np.arange(coupling.count)
    for group in np.unique(coupling.groups):
        units = np.flatnonzero(coupling.groups == group)
        order[units] = rng.permutation(units)
    params = dict(graph.params)
    for value, dimension, units in coupling.members:
        moved = np.arange(len(units))
        for place, unit in enumerate(units):
            if unit >= 0:
                before = np.flatnonzero(units == unit)
                after = np.flatnonzero(units == order[unit])
                moved[after[list(before).index(place)]] = place
        params[value.name] = params[value.name].index_select(dimension, torch.from_numpy(moved))
    return graph.with_params(params), order


def test_permuting_channels_permutes_the_outcome() -> None:
    graph, samples = net()
    other, order = permuted(graph, seed=1)
    assert deviation(run(other, samples), run(graph, samples)) <= ROUNDING[DType.F64]
    coupling = couple(graph)
    removed = random_removal(coupling.groups, seed=2)
    moved = np.zeros_like(removed)
    moved[order[removed]] = True
    first, second = cut_graph(coupling.kept(removed)), cut_graph(couple(other).kept(moved))
    assert deviation(run(second, samples), run(first, samples)) <= ROUNDING[DType.F64]


def test_statistics_over_removed_channels_are_named() -> None:
    graph = parse("""
graph(%x: f32[1x3]) {
  const %a: f32[4x3]
  const %c: f32[2x4]
  %h: f32[1x4] = linear(%x, %a)
  %n: f32[1x4] = layer_norm{shape=(4,)}(%h)
  %y: f32[1x2] = linear(%n, %c)
  return output: %y
}""")
    coupling = couple(graph)
    none, one = np.zeros(4, dtype=bool), np.arange(4) == 1
    assert [n.outputs[0].name for n in changed_statistics(coupling.kept(one))] == ["n"]
    assert changed_statistics(coupling.kept(none)) == ()


def test_an_attention_keeps_its_scale() -> None:
    graph = parse("""
graph(%x: f32[1x5x3]) {
  const %a: f32[4x3]
  const %b: f32[4x3]
  %q: f32[1x5x4] = linear(%x, %a)
  %k: f32[1x5x4] = linear(%x, %b)
  %y: f32[1x5x3] = attention(%q, %k, %x)
  return output: %y
}""")
    cut = cut_graph(couple(graph).kept(np.arange(4) == 1))
    assert "scale=0.5" in dump(cut)


def test_deviation_counts_what_is_not_finite() -> None:
    one, nan = torch.tensor([1.0]), torch.tensor([float("nan")])
    assert deviation([nan], [nan]) == 0
    assert deviation([nan], [one]) == float("inf")
    assert deviation([torch.tensor([1])], [torch.tensor([2])]) == float("inf")
    assert deviation([torch.tensor([3.0, 2.0])], [torch.tensor([4.0, 2.0])]) == 0.25


def test_memory_that_nothing_was_written_to_is_not_compared() -> None:
    graph = parse(
        """
graph(%x: f32[1x4]) {
  const %w: f32[6x4]
  const %v: f32[3x6]
  %h: f32[1x6] = linear(%x, %w)
  %y: f32[1x3] = linear(%h, %v)
  %e: f32[1x3] = torch_call{call="aten.empty_like.default(x0)"}(%y)
  %z: f32[1x3] = torch_call{call="aten.copy.default(x0, x1)"}(%e, %y)
  return output: %z
}""",
        fill=lambda value: torch.linspace(-1, 1, value.type.numel).view(value.type.shape),
    )
    coupling = couple(graph)
    removed = np.zeros(coupling.count, dtype=bool)
    removed[0] = True
    kept = coupling.kept(removed)
    outputs, values = deviation_from_masked(kept, cut_graph(kept), [torch.ones(1, 4)])
    assert max(outputs, values) < 1e-5
