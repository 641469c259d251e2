"""Bit widths of stored weights within a budget, from the measured loss of each weight at each width.

Each weight alone is rounded to nearest, and the network is run on calibration samples: the loss is the divergence of
class scores from those of the float network, or the squared error of all outputs relative to them. An integer program
then selects the widths of least summed loss within a number of bytes, or of fewest bytes within a loss. Embeddings and
the output layer are treated like other weights.

Losses do not add up exactly. Within a number of bytes, the program is solved for the sums of several powers of the
losses, which weight large ones differently, and the allocations are compared by the loss of the whole network on other
samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...ir import Graph, LazyTensor, run
from ...specs.options import StoredWeightsBudget
from ..calibration.calibrate import Batch, check_samples
from ..errors import InfeasibleError, PassError
from ..integer_program import IntegerProgram
from ..progress_callback import Progress
from ..report import Table
from ..sensitivity.replay import Operand, Replay
from ..workers import ALONE, Workers, make_shards
from .divergence import Divergence

_GAP = 1e-6
_EXPONENTS = (1.0, 0.75, 0.5, 1.5)  # powers of the losses
COLUMNS = ("weight", "bits", "bytes", "loss")
ALLOCATION_COLUMNS = ("exponent", "bytes", "predicted_loss", "measured_loss")


@dataclass(frozen=True, slots=True)
class Candidate:
    """A weight at one width, with the bytes of codes and scales; `stored` reads its reals, rounded to nearest."""

    bits: int
    bytes: int
    stored: LazyTensor


@dataclass(frozen=True)
class Widths:
    """Chosen width of each weight, its bytes and losses, and all measured losses.

    `predicted` is the sum of the losses of single weights, `measured` the loss of all together, rounded to nearest.
    """

    bits: Mapping[str, int]
    bytes: int
    predicted: float
    measured: float
    tables: tuple[Table, ...]


def choose_widths(
    graph: Graph,
    candidates: Mapping[str, Sequence[Candidate]],
    budget: StoredWeightsBudget,
    samples: Sequence[Batch],
    others: Sequence[Batch],
    *,
    measure: Divergence,
    workers: Workers = ALONE,
    progress: Progress,
) -> Widths:
    """A width for each weight, from losses by `measure` on `samples`; `others` compare the best allocations.

    InfeasibleError if the narrowest widths do not fit, with their bytes or loss.
    """
    check_samples(graph, samples)
    losses = _losses(graph, candidates, samples, measure, workers, progress)
    found: dict[tuple[int, ...], float] = {}
    for exponent in _EXPONENTS if budget.weights is not None else _EXPONENTS[:1]:
        found.setdefault(_allocation(candidates, losses, budget, exponent), exponent)
    measured = _measured(graph, candidates, list(found), others, measure, progress)
    best = min(found, key=lambda allocation: measured[allocation])

    def total(allocation: tuple[int, ...], figures: Mapping[str, Sequence[float]]) -> float:
        return sum(row[index] for row, index in zip(figures.values(), allocation, strict=True))

    sizes = {name: [float(c.bytes) for c in widths] for name, widths in candidates.items()}
    singles = tuple(
        (name, candidate.bits, candidate.bytes, loss)
        for name, widths in candidates.items()
        for candidate, loss in zip(widths, losses[name], strict=True)
    )
    compared = tuple(
        (exponent, int(total(allocation, sizes)), total(allocation, losses), measured[allocation])
        for allocation, exponent in found.items()
    )
    return Widths(
        {name: widths[at].bits for (name, widths), at in zip(candidates.items(), best, strict=True)},
        int(total(best, sizes)),
        total(best, losses),
        measured[best],
        (Table("widths", COLUMNS, singles), Table("allocations", ALLOCATION_COLUMNS, compared)),
    )


def _allocation(
    candidates: Mapping[str, Sequence[Candidate]],
    losses: Mapping[str, Sequence[float]],
    budget: StoredWeightsBudget,
    exponent: float,
) -> tuple[int, ...]:
    """Index of each weight's candidate: the least sum of this power of the losses, or the fewest bytes."""
    program = IntegerProgram()
    groups = [program.choose(len(widths)) for widths in candidates.values()]
    columns = [column for group in groups for column in group]
    sizes = [float(c.bytes) for widths in candidates.values() for c in widths]
    rises = [max(loss, 0.0) for name in candidates for loss in losses[name]]
    if budget.weights is not None:
        most = budget.weights
        if isinstance(most, float):
            most = int(most * sum(max(c.bytes for c in widths) for widths in candidates.values()))
        least = sum(min(c.bytes for c in widths) for widths in candidates.values())
        if least > most:
            raise InfeasibleError(
                f"the weights need at least {least:,} bytes at these widths; the budget is {most:,}"
            )
        program.budget(columns, sizes, most)
    if budget.loss is not None:
        least_loss = sum(min(losses[name]) for name in candidates)
        if least_loss > budget.loss:
            raise InfeasibleError(
                f"the predicted loss is at least {least_loss:.3g} at these widths; the budget is {budget.loss:g}"
            )
        program.budget(columns, rises, budget.loss)
    objective = sizes if budget.weights is None else [rise**exponent for rise in rises]
    solution = program.solve(dict(zip(columns, objective, strict=True)), gap=_GAP)
    return tuple(solution.choice(group) for group in groups)


def _measured(
    graph: Graph,
    candidates: Mapping[str, Sequence[Candidate]],
    allocations: Sequence[tuple[int, ...]],
    samples: Sequence[Batch],
    measure: Divergence,
    progress: Progress,
) -> dict[tuple[int, ...], float]:
    """Mean divergence of the outputs with all weights at these widths, rounded to nearest."""
    sums = dict.fromkeys(allocations, 0.0)
    for index, sample in enumerate(samples):
        with torch.no_grad():
            expected = run(graph, sample)
            for allocation in allocations:
                chosen = zip(candidates.items(), allocation, strict=True)
                rounded = graph.with_params({name: widths[at].stored for (name, widths), at in chosen})
                sums[allocation] += measure.between(expected, run(rounded, sample)) / len(samples)
        progress("allocations", index + 1, len(samples))
    return sums


def _losses(
    graph: Graph,
    candidates: Mapping[str, Sequence[Candidate]],
    samples: Sequence[Batch],
    measure: Divergence,
    workers: Workers,
    progress: Progress,
) -> dict[str, list[float]]:
    """Mean divergence of the outputs with one weight at one width, for each weight in the order of its candidates."""
    readers = {name: _readers(graph, name) for name in candidates}
    shards = make_shards(len(samples))

    def work(shard: range) -> dict[str, Tensor]:
        sums = {name: torch.zeros(len(widths), dtype=torch.float64) for name, widths in candidates.items()}
        for index in shard:
            replay = Replay(graph, samples[index])
            for name, widths in candidates.items():
                weight = graph.params[name]
                for at, candidate in enumerate(widths):
                    error = candidate.stored.read().sub_(weight)
                    changed = replay.changed(dict.fromkeys(readers[name], error))
                    sums[name][at] += measure.between(replay.outputs, changed)
        return sums

    total = workers.total(shards, work, lambda done: progress("widths", done, len(shards)))
    for name, losses in total.items():
        if bool(losses.isnan().any()):
            bits = candidates[name][int(losses.isnan().nonzero()[0])].bits
            raise PassError(f"the outputs are NaN with {name} at {bits} bits")
    return {name: (losses / len(samples)).tolist() for name, losses in total.items()}


def _readers(graph: Graph, name: str) -> list[Operand]:
    return [
        (node.outputs[0].name, index)
        for node in graph.users[name]
        for index, value in enumerate(node.inputs)
        if value is not None and value.name == name
    ]
