"""The check for a rewrite, a function from graph to graph: it tests a list of properties on random graphs.

check_rewrite(fold_batchnorm, tolerance=1e-12)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from torch import Tensor

from ...specs.root_error import message_of
from ..errors import IRError
from ..graph import Graph
from ..interpret import run, run_integer
from ..parser import parse
from ..text import dump, long_numbers
from ..verify import verify
from .compare import assert_equivalent, assert_exact
from .graphs import graphs as random_graphs
from .graphs import graphs_around
from .tensors import inputs
from .variants import canonical, exposed, renamed, with_dead_branches, with_no_ops

Rewrite = Callable[[Graph], Graph]


class RewriteError(AssertionError):
    """A rewrite violates a property; the message has the smallest graph found, before and after, as text."""


def check_rewrite(
    rewrite: Rewrite,
    *,
    tolerance: float,
    graphs: SearchStrategy[Graph] | None = None,
    normalizes: bool = False,
    examples: int | None = None,
    around: Sequence[Graph] = (),
    changes: int = 3,
) -> None:
    """Fails with a shrunk graph unless `rewrite` has these properties on random graphs.

        - Its operand is unchanged, and the result verifies and equals itself after dump and parse.
        - Inputs and outputs keep names, order and types.
        - Results are the same: computed in float64 within `tolerance` times the largest element; a graph with
          integers in it gives exactly the same integers and floats.
        - With every intermediate as a further output, all outputs stay the same.
        - A second application changes nothing.
        - Names of values do not matter.
        - Dead branches and no-ops (x + 0, x * 1, ...) do not change the results; with `normalizes`, for a complete
          clean-up, the rewritten graph is the same and never larger.

    `graphs` are random CNN-like and MLP-like graphs in float32 unless given. A rewrite that computes constants rounds
    them to float32 there; on `graphs(dtype=DType.F64)` a tolerance of 1e-12 is possible. `examples` is the number of
    graphs to try; the default is that of the Hypothesis profile. `around` lists graphs that the rewrite changes: many
    of the random graphs are then one of them in random surroundings (see `graphs_around`).

    A check of graphs that the rewrite does not change proves nothing: fewer than `changes` changed graphs are also a
    failure. 0 is for a rewrite that should change none.
    """
    strategy = random_graphs() if graphs is None else graphs
    if around:
        strategy = st.one_of(strategy, *map(graphs_around, around))
    tried = changed = 0

    @settings(
        max_examples=examples or settings().max_examples,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink),
        report_multiple_bugs=False,
        print_blob=False,
    )
    @given(st.data())
    def check(data: st.DataObject) -> None:
        nonlocal tried, changed
        graph = data.draw(strategy)
        sample = data.draw(inputs(graph))
        after = _Check(rewrite, graph, sample, tolerance).all(normalizes=normalizes)
        tried, changed = tried + 1, changed + (canonical(after) != canonical(graph))

    check()
    if changed < min(changes, examples or changes):
        raise RewriteError(
            f"the rewrite changed {changed} of {tried} random graphs, which proves little; at least {changes} are "
            "required: give `around` a graph on which it fires, draw denser `graphs`, or raise `examples`"
        )


class _Check:
    def __init__(self, rewrite: Rewrite, graph: Graph, sample: Sequence[Tensor], tolerance: float) -> None:
        self._rewrite, self._graph, self._sample, self._tolerance = rewrite, graph, sample, tolerance

    def all(self, *, normalizes: bool) -> Graph:
        """The rewritten graph; RewriteError if a property does not hold."""
        after = self._sound("the graph", self._graph)
        self._same("a second application", self._sound("its own result", after), after)
        self._same(
            "other names", self._sound("other names", renamed(self._graph, "another {}".format)), after
        )
        self._sound("every intermediate an output", exposed(self._graph))
        dead = self._sound("dead branches", with_dead_branches(self._graph))
        padded = self._sound("steps that change nothing", with_no_ops(self._graph))
        if normalizes:
            self._same("the same graph with dead branches", dead, after)
            self._same("the same graph with steps that change nothing", padded, after)
            if len(after.nodes) > len(self._graph.nodes):
                raise self._error("the result has more nodes", self._graph, after)
        return after

    def _sound(self, what: str, graph: Graph) -> Graph:
        """The rewritten graph, if it is valid and equivalent."""
        before = _copied(canonical(graph))
        try:
            after = self._rewrite(graph)
        except Exception as err:
            raise self._error(f"given {what}, the rewrite raises {err!r}", graph) from err
        if canonical(graph) != before:
            raise self._error(f"given {what}, the rewrite changes its operand", graph)
        try:
            verify(after)
            if parse(dump(after), params=after.params, numbers=long_numbers(after)) != after:
                raise self._error(f"given {what}, the result does not survive its text form", graph, after)
            self._check_interface(what, graph, after)
            self._check_meaning(graph, after)
        except RewriteError:
            raise
        except (IRError, AssertionError) as err:
            raise self._error(f"given {what}: {message_of(err)}", graph, after) from err
        return after

    def _check_interface(self, what: str, before: Graph, after: Graph) -> None:
        interface = [(g.inputs, g.output_names, tuple(v.type for v in g.outputs)) for g in (before, after)]
        if interface[0] != interface[1]:
            raise self._error(
                f"given {what}, names, order or types of inputs or outputs change", before, after
            )

    def _check_meaning(self, before: Graph, after: Graph) -> None:
        with torch.no_grad():
            if _has_integers(before):
                assert_exact(run_integer(after, self._sample), run_integer(before, self._sample))
            else:
                expected = _run_double(before, self._sample)
                assert_equivalent(_run_double(after, self._sample), expected, atol=0.0, rtol=self._tolerance)

    def _same(self, what: str, graph: Graph, other: Graph) -> None:
        if canonical(graph) != canonical(other):
            raise self._error(f"{what} gives another graph", self._graph, graph)

    def _error(self, problem: str, before: Graph, after: Graph | None = None) -> RewriteError:
        shown = [problem, "before:", dump(before), _constants(before)]
        shown += [] if after is None else ["after:", dump(after), _constants(after)]
        shown += [f"input %{v.name} = {_short(t)}" for v, t in zip(before.inputs, self._sample, strict=True)]
        return RewriteError("\n".join(part for part in shown if part))


def _copied(graph: Graph) -> Graph:
    return graph.with_params({name: tensor.clone() for name, tensor in graph.params.items()})


def _has_integers(graph: Graph) -> bool:
    values = [*graph.inputs, *graph.results]
    return any(v.type.is_quantized for v in values)


def _run_double(graph: Graph, sample: Sequence[Tensor]) -> list[Tensor]:
    """The graph's results computed in float64."""
    params = {v.name: _double(graph.params[v.name]) for v in graph.constants}
    return run(graph, [_double(t) for t in sample], params=params)


def _double(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


def _constants(graph: Graph) -> str:
    return "\n".join(f"%{v.name} = {_short(graph.params[v.name])}" for v in graph.constants)


def _short(tensor: Tensor) -> str:
    if tensor.numel() > 8:
        return f"{tensor.numel()} elements from {tensor.min().item():.4g} to {tensor.max().item():.4g}"
    return str(tensor.tolist())
