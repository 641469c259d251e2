"""Removal of whole residual branches: the removable ones, the remainder, and equality of cut and masked graph."""

import numpy as np
import pytest
import torch
from torch import Tensor

from fxpress.ir import Graph, Value, dump, parse, run, verify
from fxpress.ir.coupling import Coupling, couple
from fxpress.ir.cutting import cut_graph, deviation_from_masked
from fxpress.ir.testing import random_removal

BLOCKS = """
graph(%x: f64[2x3x4x4]) {
  const %a: f64[4x3x1x1]
  const %b: f64[6x4x3x3]
  const %c: f64[4x6x3x3]
  const %cb: f64[4]
  const %d: f64[5x4x1x1]
  const %e: f64[3x5x1x1]
  const %eb: f64[3]
  const %s: f64[3x4x1x1]
  const %sb: f64[3]
  const %w: f64[2x3]
  %h: f64[2x4x4x4] = conv(%x, %a)
  %k: f64[2x6x4x4] = conv{padding=(1, 1, 1, 1)}(%h, %b)
  %r: f64[2x6x4x4] = relu(%k)
  %l: f64[2x4x4x4] = conv{padding=(1, 1, 1, 1)}(%r, %c, %cb)
  %first: f64[2x4x4x4] = add(%l, %h)
  %t: f64[2x4x4x4] = relu(%first)
  %m: f64[2x5x4x4] = conv(%t, %d)
  %g: f64[2x5x4x4] = gelu(%m)
  %n: f64[2x3x4x4] = conv(%g, %e, %eb)
  %o: f64[2x3x4x4] = conv(%t, %s, %sb)
  %second: f64[2x3x4x4] = add(%o, %n)
  %p: f64[2x3] = mean{axes=(2, 3)}(%second)
  %y: f64[2x2] = linear(%p, %w)
  return output: %y
}"""


def filled(text: str, *, seed: int = 0) -> Graph:
    generator = torch.Generator().manual_seed(seed)

    def fill(value: Value) -> Tensor:
        return torch.randn(value.type.shape, generator=generator, dtype=value.type.dtype.torch)

    return parse(text, fill=fill)


def without(coupling: Coupling, *places: int, also: np.ndarray | None = None) -> np.ndarray:
    """Units removed: all of the branches at these places."""
    removed = np.zeros(coupling.count, dtype=bool) if also is None else also
    for place in places:
        removed |= np.isin(coupling.groups, coupling.branches[place].groups)
    return removed


def samples(graph: Graph) -> list[Tensor]:
    return [torch.randn(v.type.shape, dtype=v.type.dtype.torch) for v in graph.inputs]


def test_the_branches_of_residual_sums_are_found_with_their_groups() -> None:
    coupling = couple(filled(BLOCKS))
    first, second = coupling.branches
    assert [first.sum.output.name, first.result.name, first.around.name] == ["first", "l", "h"]
    assert [second.sum.output.name, second.result.name, second.around.name] == ["second", "n", "o"]
    (inner,) = first.groups
    assert (coupling.groups[coupling.units(first.tail[0].operands[1], 1)] == inner).all()


def test_a_branch_that_goes_leaves_its_bias() -> None:
    graph = filled(BLOCKS)
    coupling = couple(graph)
    cut = cut_graph(coupling.kept(without(coupling, 0)))
    assert "first: f64[2x4x4x4] = add(%h, %l_left)" in dump(verify(cut))
    assert torch.equal(cut.params["l_left"].flatten(), graph.params["cb"])


def test_what_a_branch_leaves_goes_into_the_bias_of_a_layer_before_the_sum() -> None:
    graph = filled(BLOCKS)
    coupling = couple(graph)
    cut = cut_graph(coupling.kept(without(coupling, 1)))
    assert "second: f64[2x3x4x4] = conv(%t, %s, %sb)" in dump(verify(cut))
    assert torch.equal(cut.params["sb"], graph.params["sb"] + graph.params["eb"])


def test_a_branch_without_a_bias_leaves_nothing() -> None:
    graph = filled(BLOCKS.replace("%c, %cb", "%c").replace("  const %cb: f64[4]\n", ""))
    coupling = couple(graph)
    cut = verify(cut_graph(coupling.kept(without(coupling, 0))))
    assert "%t: f64[2x4x4x4] = relu(%h)" in dump(cut)
    assert cut.params.keys() == {"a", "d", "e", "eb", "s", "sb", "w"}


@pytest.mark.parametrize("places", [(0,), (1,), (0, 1)])
@pytest.mark.parametrize("seed", range(4))
def test_a_cut_without_branches_and_channels_equals_the_masked_graph(
    places: tuple[int, ...], seed: int
) -> None:
    graph = filled(BLOCKS, seed=seed)
    coupling = couple(graph)
    kept = coupling.kept(without(coupling, *places, also=random_removal(coupling.groups, seed=seed)))
    assert len(kept.dropped) == len(places)
    outputs, values = deviation_from_masked(kept, verify(cut_graph(kept)), samples(graph))
    assert max(outputs, values) <= 1e-12


def test_a_branch_whose_constant_is_forgotten_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = filled(BLOCKS)
    coupling = couple(graph)
    kept = coupling.kept(without(coupling, 0))
    monkeypatch.setattr("fxpress.ir.cutting.branch_constant", lambda branch, kept: torch.zeros(4, 1, 1))
    outputs, _ = deviation_from_masked(kept, cut_graph(kept), samples(graph))
    assert outputs > 1e-3


def test_a_clamp_of_the_sum_stays() -> None:
    text = BLOCKS.replace("first: f64[2x4x4x4] = add(", "first: f64[2x4x4x4] = add{clamp=(0.0, 0.5)}(")
    graph = filled(text.replace("%c, %cb", "%c").replace("  const %cb: f64[4]\n", ""))
    coupling = couple(graph)
    kept = coupling.kept(without(coupling, 0))
    cut = verify(cut_graph(kept))
    assert "%first: f64[2x4x4x4] = clamp{low=0.0, high=0.5}(%h)" in dump(cut)
    assert deviation_from_masked(kept, cut, samples(graph))[0] <= 1e-12


def test_constants_of_a_normalized_branch_follow_the_channels_that_stay() -> None:
    graph = filled("""
graph(%x: f64[2x5x3]) {
  const %a: f64[8x3]
  const %b: f64[6x8]
  const %c: f64[8x6]
  const %cb: f64[8]
  const %n: f64[8]
  const %w: f64[2x8]
  %h: f64[2x5x8] = linear(%x, %a)
  %k: f64[2x5x6] = linear(%h, %b)
  %r: f64[2x5x6] = relu(%k)
  %l: f64[2x5x8] = linear(%r, %c, %cb)
  %m: f64[2x5x8] = layer_norm{shape=(8,)}(%l, %n)
  %s: f64[2x5x8] = add(%h, %m)
  %y: f64[2x5x2] = linear(%s, %w)
  return output: %y
}""")
    coupling = couple(graph)
    removed = random_removal(coupling.groups, seed=1)
    removed[np.flatnonzero(coupling.groups == coupling.groups[0])[:3]] = True
    kept = coupling.kept(without(coupling, 0, also=removed))
    assert deviation_from_masked(kept, verify(cut_graph(kept)), samples(graph))[1] <= 1e-12


NOT_RESIDUAL = """
graph(%x: f64[2x3], %z: f64[2x3]) {{
  const %a: f64[4x3]
  const %b: f64[6x3]
  const %c: f64[4x6]
  const %w: f64[2x4]
  %h: f64[2x4] = linear(%x, %a)
  %k: f64[2x6] = linear(%{entry}, %b)
  %r: f64[2x6] = relu(%k)
  %l: f64[2x4] = linear(%r, %c)
  %s: f64[2x4] = add(%h, %l)
  %y: f64[2x2] = linear(%s, %w)
  return output: %y{more}
}}"""


@pytest.mark.parametrize(
    ("entry", "more", "found"), [("x", "", 1), ("z", "", 0), ("x", ", inner: %r", 0), ("x", ", late: %l", 0)]
)
def test_a_branch_shares_its_input_and_serves_the_sum_alone(entry: str, more: str, found: int) -> None:
    assert len(couple(filled(NOT_RESIDUAL.format(entry=entry, more=more))).branches) == found


def test_a_weight_that_is_read_elsewhere_keeps_its_branch() -> None:
    text = NOT_RESIDUAL.format(entry="x", more=", other: %o").replace(
        "  %y:", "  %q: f64[2x6] = linear(%z, %b)\n  %o: f64[2x4] = linear(%q, %c)\n  %y:"
    )
    assert not couple(filled(text)).branches


def test_a_graph_with_all_branches_gone_runs() -> None:
    graph = filled(BLOCKS)
    coupling = couple(graph)
    cut = cut_graph(coupling.kept(without(coupling, 0, 1)))
    assert len(cut.nodes) == 6
    assert run(cut, samples(graph))[0].shape == (2, 2)
