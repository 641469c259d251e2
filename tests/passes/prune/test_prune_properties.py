"""Properties of pruning over random graphs: renumbered channels, closed groups, batch norms folded before or after."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fxpress.ir import DType, Graph, parse, run
from fxpress.ir.coupling import Coupling, couple
from fxpress.ir.cutting import cut_graph, deviation
from fxpress.ir.testing import (
    CNN_OPS,
    DEFAULT_OPS,
    check_closed,
    check_permutation,
    graphs,
    inputs,
    permuted,
    random_removal,
)
from fxpress.passes import Context, find_pass
from fxpress.passes.prune.allocation import allocate
from fxpress.passes.prune.channel_costs import costs_of
from fxpress.passes.prune.ranking import rank
from fxpress.passes.prune.scores import score_units
from fxpress.specs.options import FuseOptions, PruneOptions

few = settings(max_examples=max(20, settings.default.max_examples // 3))


def removal(coupling: Coupling, score: str = "l2") -> np.ndarray:
    """The lower half of each group at this score."""
    options = PruneOptions.model_validate(
        {"budget": {"channels": "50 %"}, "allocation": "uniform", "score": score}
    )
    scores = score_units(coupling, options, Context())
    ranked = rank(coupling, scores, np.zeros(coupling.count, dtype=bool), options)
    return ranked.removed(allocate(ranked, costs_of(coupling), options).kept)


def has_ties(coupling: Coupling, score: str) -> bool:
    options = PruneOptions.model_validate({"budget": {"channels": "50 %"}, "score": score})
    scores = score_units(coupling, options, Context())
    for group in np.unique(coupling.groups):
        own = np.sort(scores[coupling.groups == group])
        if len(own) > 1 and np.diff(own).min() < 1e-9 * max(own[-1], 1e-300):
            return True
    return False


@pytest.mark.parametrize("score", ["l1", "l2", "geometric_median", "merging"])
@few
@given(st.data(), st.integers(0, 99))
def test_permuted_channels_permute_the_outcome(score: str, data: st.DataObject, seed: int) -> None:
    graph = data.draw(graphs(ops=sorted(DEFAULT_OPS), dtype=DType.F64, max_steps=8))
    coupling = couple(graph)
    if has_ties(coupling, score):
        return  # which of two equal channels goes is not said
    samples = data.draw(inputs(graph, extreme=False))
    check_permutation(graph, samples, seed=seed, removed=lambda c: removal(c, score))


@few
@given(st.data())
def test_groups_are_closed(data: st.DataObject) -> None:
    check_closed(couple(data.draw(graphs(ops=sorted(DEFAULT_OPS), max_steps=8))))


@few
@given(st.data(), st.integers(0, 99))
def test_pruning_commutes_with_the_folding_of_batch_norms(data: st.DataObject, seed: int) -> None:
    graph = data.draw(graphs(ops=sorted(CNN_OPS), dtype=DType.F64, max_steps=8))
    fuse = find_pass("fuse")
    options = FuseOptions(disable=("pad", "linear", "residual", "activation"))
    folded = fuse(graph, options, Context()).graph
    first, second = couple(graph), couple(folded)
    if not np.array_equal(first.groups, second.groups):
        return  # a constant fewer makes other groups
    removed = random_removal(first.groups, seed=seed)
    samples = data.draw(inputs(graph, extreme=False))
    before = fuse(cut_graph(first.kept(removed)), options, Context()).graph
    assert deviation(run(before, samples), run(cut_graph(second.kept(removed)), samples)) <= 1e-9


NET = """
graph(%x: f64[2x3]) {
  const %a: f64[6x3]
  const %b: f64[4x6]
  const %c: f64[2x10]
  %h: f64[2x6] = linear(%x, %a)
  %k: f64[2x4] = linear(%h, %b)
  %j: f64[2x10] = concat{axis=1}(%h, %k)
  %y: f64[2x2] = linear(%j, %c)
  return output: %y
}"""


def net() -> Graph:
    generator = torch.Generator().manual_seed(0)
    return parse(NET, fill=lambda v: torch.randn(v.type.shape, generator=generator, dtype=torch.float64))


def test_a_score_that_depends_on_the_number_of_a_channel_is_found() -> None:
    def by_number(coupling: Coupling) -> np.ndarray:
        return np.arange(coupling.count) % 2 == 0

    with pytest.raises(AssertionError, match="other channels are removed"):
        check_permutation(net(), [torch.randn(2, 3, dtype=torch.float64)], seed=1, removed=by_number)


def test_a_permutation_that_forgets_a_reader_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def forgetful(coupling: Coupling, order: np.ndarray) -> Graph:
        whole = permuted(coupling, order)
        return whole.with_params({"c": coupling.graph.params["c"]})

    monkeypatch.setattr("fxpress.ir.testing.cuts.permuted", forgetful)
    with pytest.raises(AssertionError, match="change the outputs"):
        check_permutation(net(), [torch.randn(2, 3, dtype=torch.float64)], seed=1, removed=removal)


def test_units_of_different_size_in_one_group_are_found() -> None:
    coupling = couple(net())
    uneven = Coupling(**{**vars(coupling), "_units": np.minimum(coupling._units, 4)})
    with pytest.raises(AssertionError, match="units of group"):
        check_closed(uneven)
