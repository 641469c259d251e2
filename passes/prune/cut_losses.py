"""Loss of pruning each group alone: divergence from the outputs of the original network, in nats for classes.

Scores define the order in which units of a group are removed. The network runs with one group cut to each of its
levels, and its outputs are compared. So errors of units that cancel or add up are measured as they are, and the losses
of groups are comparable with rounding losses. Neither includes the gain of repairs.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ...ir import Graph, rebatch, run
from ...ir.coupling import Coupling
from ...ir.cutting import cut_graph
from ..calibration.calibrate import Batch
from ..progress_callback import Progress
from ..sensitivity.study import Stack, Study, prepare
from .channel_program import Measured, levels_of
from .ranking import Ranked

SAMPLES = 128
"""Largest number of samples for the losses, taken evenly from all."""


def measure_losses(
    coupling: Coupling, ranked: Ranked, batches: Sequence[Batch], progress: Progress
) -> Measured:
    """The loss of each group at each of its levels, with all other groups complete."""
    study = study_of(coupling.graph, batches)
    whole = outputs_of(study, coupling.graph)
    levels = levels_of(ranked)
    losses: list[np.ndarray] = []
    for group, found in enumerate(levels):
        progress("losses of channels", group, len(levels))
        kept = ranked.sizes
        row = []
        for level in found.tolist():
            kept[group] = level
            cut = cut_graph(coupling.kept(ranked.removed(kept)))
            row.append(0.0 if level == ranked.sizes[group] else divergence(study, whole, cut))
        losses.append(np.maximum.accumulate(np.array(row)[::-1])[::-1])
    return Measured(levels, tuple(losses))


def study_of(graph: Graph, batches: Sequence[Batch]) -> Study:
    """The samples in batches, and the loss."""
    return prepare(graph, batches[:: max(-(-len(batches) // SAMPLES), 1)])


def outputs_of(study: Study, graph: Graph) -> list[Tensor]:
    """Compared outputs of a graph, for each stack of samples of the study."""
    with torch.no_grad():
        return [study.loss.read(_run(graph, stack), stack.count) for stack in _stacks(study)]


def divergence(study: Study, whole: Sequence[Tensor], graph: Graph) -> float:
    """The mean divergence of a graph's outputs from those of the whole one."""
    pairs = zip(whole, outputs_of(study, graph), strict=True)
    return float(torch.cat([study.loss.divergence(z, y) for z, y in pairs]).mean())


def _stacks(study: Study) -> list[Stack]:
    return [stack for shard in study.shards for stack in study.stacks(shard)]


def _run(graph: Graph, stack: Stack) -> list[Tensor]:
    rows = stack.inputs[0].shape[0] if stack.inputs[0].ndim else 0
    fits = graph.inputs[0].type.shape[:1] in ((), (rows,))
    return run(graph if fits else rebatch(graph, rows), stack.inputs)
