"""Trial changes: the graph is quantized again and measured. No change is measured twice."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import chain

from torch import Tensor

from ...ir import Graph, IRError, Source
from ...passes import Context, PassError, find_pass
from ...passes.calibration.calibrate import collect
from ...passes.calibration.observers import Statistics
from ...passes.quantize.layer_precisions import Precisions
from ...passes.quantize.quantization import prepare
from ...passes.quantize.quantization_plan import make_plan
from ...specs.options import AdaRound, Nearest, QuantizeOptions
from ..data import Samples, own_batch
from .changes import Change, is_value, path_of
from .propagation import Propagation
from .ratios import Powers


class Trials:
    """Quantizes a float graph repeatedly, and measures values of the integer graph as reals."""

    def __init__(
        self,
        graph: Graph,
        options: QuantizeOptions,
        context: Context,
        propagation: Propagation,
        calibration: Samples,
        targets: Sequence[str],
    ) -> None:
        self.graph, self.context = _with_paths(graph), replace(context, selects=_or_value(context.selects))
        self.precisions = Precisions(options, graph.precisions, self.context.selects)
        self._propagation, self._targets = propagation, targets
        self._calibration = calibration.first(len(context.calibration) * own_batch(graph.inputs, calibration))
        self._statistics: dict[frozenset[int], Mapping[str, Statistics]] = {}

    def measure(self, change: Change, *, nearest: bool = False) -> Mapping[str, Powers]:
        """The powers of all targets after a change; empty if it cannot be made.

        With `nearest`, rounding to nearest replaces a learned rounding that is not part of the change.
        """
        integer = self.quantized(change, nearest=nearest)
        if integer is None:
            return {}
        try:
            return self._propagation.powers_in(integer, self._targets, without=change.excluded)
        except IRError:  # it does not run with the batches of the others
            return {}

    def quantized(self, change: Change, *, nearest: bool = False) -> Graph | None:
        """The integer graph after a change; None if this network does not support it."""
        options = change.applied_to(self.precisions)
        if nearest and isinstance(options.rounding, AdaRound) and "rounding" not in change.options:
            options = options.model_copy(update={"rounding": Nearest()})
        graph = self.graph.with_params(change.constants) if change.constants else self.graph
        context = self.context
        if change.excluded:
            context = replace(context, calibration=self._batches(change.excluded))
        try:
            if not change.constants:
                context = replace(context, statistics=self._statistics_without(change.excluded))
            return find_pass("quantize")(graph, options, context).graph
        except (PassError, IRError):
            return None

    def largest_beside(self, constant: float) -> float:
        """Largest magnitude below half of a constant's, of all values in calibration."""
        seen = chain.from_iterable(s.batches for s in self._statistics_without(frozenset()).values())
        others = [abs(end) for ends in seen for end in ends if abs(end) < constant / 2]
        return max(others, default=1.0)

    def _batches(self, excluded: frozenset[int]) -> list[tuple[Tensor, ...]]:
        kept, values = self._calibration.without(excluded), self.graph.inputs
        return [tuple(kept.call(values, index)) for index in range(kept.calls(values))]

    def _statistics_without(self, excluded: frozenset[int]) -> Mapping[str, Statistics]:
        """Calibration statistics without some samples, for every value that a change may quantize."""
        if excluded not in self._statistics:
            batches = self._batches(excluded) if excluded else self.context.calibration
            samples = batches[: self.precisions.options.samples]
            prepared = prepare(self.graph, samples)
            plan = make_plan(prepared.graph, lambda module: False, in_float=prepared.in_float)
            self._statistics[excluded] = collect(
                prepared.graph, samples, plan.observed, progress=self.context.progress
            )
        return self._statistics[excluded]


def _with_paths(graph: Graph) -> Graph:
    """The graph with a path for each node, so that a change can apply to one node."""
    nodes = tuple(replace(n, source=Source(path_of(n), n.source.location)) for n in graph.nodes)
    return replace(graph, nodes=nodes)


def _or_value(selects: Callable[[str, str], bool]) -> Callable[[str, str], bool]:
    """Selection by the patterns of the spec; nodes outside modules have the empty path, and are also selected by
    their own.
    """

    def select(pattern: str, path: str) -> bool:
        return selects(pattern, "") or pattern == path if is_value(path) else selects(pattern, path)

    return select
