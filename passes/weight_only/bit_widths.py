"""Bit widths of stored weights within a budget, from the measured loss of each weight at each width.

Each weight is rounded alone, to nearest, and the network run on calibration samples: the loss is the divergence of
class scores from those of the float network, or the squared error of all outputs relative to them. An integer program
then takes the widths of least summed loss within a number of bytes, or of fewest bytes within a loss. Embeddings and
the output layer are weights like others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isnan

from torch import Tensor

from ...ir import Encoding, Graph
from ...specs.options import StoredWeightsBudget
from ..calibration.calibrate import Batch, check_samples
from ..errors import InfeasibleError, PassError
from ..integer_program import IntegerProgram
from ..progress_callback import Progress
from ..report import Table
from ..sensitivity.replay import Operand, Replay
from .divergence import Divergence

_GAP = 1e-6
COLUMNS = ("weight", "bits", "bytes", "loss")


@dataclass(frozen=True, slots=True)
class Candidate:
    """A weight at one width, with the bytes of codes and scales."""

    bits: int
    bytes: int
    weight: Tensor
    integers: Tensor
    encoding: Encoding

    @property
    def error(self) -> Tensor:
        """Difference of the stored reals from the weight."""
        return (self.encoding.dequantize(self.integers) - self.weight).to(self.weight.dtype)


@dataclass(frozen=True)
class Widths:
    """Chosen width of each weight, and all that were measured."""

    bits: Mapping[str, int]
    bytes: int
    loss: float
    table: Table


def choose_widths(
    graph: Graph,
    candidates: Mapping[str, Sequence[Candidate]],
    budget: StoredWeightsBudget,
    samples: Sequence[Batch],
    *,
    progress: Progress,
) -> Widths:
    """A width for each weight; InfeasibleError if the narrowest do not fit, with the bytes or loss that they take."""
    check_samples(graph, samples)
    losses = _losses(graph, candidates, samples, progress)
    program = IntegerProgram()
    groups = {name: program.choose(len(widths)) for name, widths in candidates.items()}
    columns = [column for group in groups.values() for column in group]
    sizes = [float(c.bytes) for widths in candidates.values() for c in widths]
    rises = [max(loss, 0.0) for name in candidates for loss in losses[name]]
    if budget.weights is not None:
        most = budget.weights
        if isinstance(most, float):
            most = int(most * sum(max(c.bytes for c in widths) for widths in candidates.values()))
        least = sum(min(c.bytes for c in widths) for widths in candidates.values())
        if least > most:
            raise InfeasibleError(
                f"the weights take at least {least:,} bytes at these widths; the budget is {most:,}"
            )
        program.budget(columns, sizes, most)
    if budget.loss is not None:
        least_loss = sum(min(losses[name]) for name in candidates)
        if least_loss > budget.loss:
            raise InfeasibleError(
                f"the predicted loss is at least {least_loss:.3g} at these widths; the budget is {budget.loss:g}"
            )
        program.budget(columns, rises, budget.loss)
    objective = rises if budget.weights is not None else sizes
    solution = program.solve(dict(zip(columns, objective, strict=True)), gap=_GAP)
    chosen = {name: solution.choice(group) for name, group in groups.items()}
    rows = tuple(
        (name, candidate.bits, candidate.bytes, loss)
        for name, widths in candidates.items()
        for candidate, loss in zip(widths, losses[name], strict=True)
    )
    return Widths(
        {name: candidates[name][index].bits for name, index in chosen.items()},
        sum(candidates[name][index].bytes for name, index in chosen.items()),
        sum(losses[name][index] for name, index in chosen.items()),
        Table("widths", COLUMNS, rows),
    )


def _losses(
    graph: Graph,
    candidates: Mapping[str, Sequence[Candidate]],
    samples: Sequence[Batch],
    progress: Progress,
) -> dict[str, list[float]]:
    """Mean divergence of the outputs with one weight at one width, for each weight in the order of its candidates."""
    measure = Divergence.of(graph)
    readers = {name: _readers(graph, name) for name in candidates}
    sums = {name: [0.0] * len(widths) for name, widths in candidates.items()}
    for index, sample in enumerate(samples):
        replay = Replay(graph, sample)
        for name, widths in candidates.items():
            for at, candidate in enumerate(widths):
                changed = replay.changed(dict.fromkeys(readers[name], candidate.error))
                divergence = measure.between(replay.outputs, changed)
                if isnan(divergence):
                    raise PassError(f"the outputs are NaN with {name} at {candidate.bits} bits")
                sums[name][at] += divergence / len(samples)
        progress("widths", index + 1, len(samples))
    return sums


def _readers(graph: Graph, name: str) -> list[Operand]:
    return [
        (node.outputs[0].name, index)
        for node in graph.users[name]
        for index, value in enumerate(node.inputs)
        if value is not None and value.name == name
    ]
