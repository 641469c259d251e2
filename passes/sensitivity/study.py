"""Common inputs of all sensitivity methods: folded graph, blocks, sharded samples, and loss."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from ...ir import Graph, IRError, rebatch
from ..calibration.calibrate import Batch, batch_size, check_samples, passes_batches
from ..errors import PassError
from ..fuse.fold_batchnorm import FOLD_BATCHNORM, FOLD_BATCHNORM_BEFORE
from ..pattern import apply_rules
from ..progress_callback import Progress, silent
from ..workers import ALONE, SHARDS, Workers, make_shards
from .blocks import Block, Rounding, data_of, find_blocks, round_weight
from .objective import Loss, choose_loss
from .sensitivity_table import Objective

Result = TypeVar("Result")


@dataclass(frozen=True)
class Stack:
    """Some samples as one batch, with the graph for this batch size."""

    graph: Graph
    inputs: Batch
    labels: Tensor | None
    first: int
    count: int


@dataclass(frozen=True)
class Study:
    """The inputs of a measurement. `together` is the number of samples in one batch."""

    graph: Graph
    blocks: tuple[Block, ...]
    samples: tuple[Batch, ...]
    labels: tuple[Tensor, ...]
    loss: Loss
    rounding: Rounding
    shards: tuple[range, ...]
    together: int
    workers: Workers
    progress: Progress
    notes: tuple[str, ...]

    def stacks(self, shard: range) -> Iterator[Stack]:
        """The samples of a shard, in the largest possible batches."""
        for first in shard[:: self.together]:
            chosen = range(first, min(first + self.together, shard.stop))
            inputs = tuple(torch.cat(x) for x in zip(*(self.samples[i] for i in chosen), strict=True))
            labels = torch.cat([self.labels[i].flatten() for i in chosen]) if self.labels else None
            rows = len(chosen) * self.graph.inputs[0].type.shape[0] if len(chosen) > 1 else 0
            graph = rebatch(self.graph, rows) if rows else self.graph
            yield Stack(graph, inputs, labels, first, len(chosen))

    def over_shards(self, label: str, work: Callable[[range], Result]) -> list[Result]:
        """Results of `work` for each shard, in order, by any worker."""
        mine = len(self.shards[self.workers.rank :: self.workers.size])
        return self.workers.map(self.shards, work, lambda done: self.progress(label, done, mine))


def prepare(
    graph: Graph,
    batches: Sequence[Batch],
    labels: Sequence[Tensor] = (),
    *,
    objective: Objective | None = None,
    class_axis: int | None = None,
    rounding: Rounding = round_weight,
    shards: int = SHARDS,
    workers: Workers = ALONE,
    progress: Progress = silent,
) -> Study:
    """Folds, finds blocks and shards the samples; PassError if the sensitivity cannot be measured."""
    if any(v.type.is_quantized for v in graph.constants):
        raise PassError("sensitivity is measured on float graphs; measure before quantize")
    check_samples(graph, batches)
    if labels and len(labels) != len(batches):
        raise PassError(f"{len(labels)} labels for {len(batches)} calibration samples")
    folded, _ = apply_rules(graph, (FOLD_BATCHNORM, FOLD_BATCHNORM_BEFORE))
    single, samples, each = _single_rows(folded, batches, labels)
    blocks = find_blocks(single)
    if not blocks:
        raise PassError("the graph has no layer with constant float weights")
    loss = choose_loss(folded, objective, axis=class_axis, labels=labels[0] if labels else None)
    together = batch_size(single, samples) if _leads_with_batch(single, blocks) else 1
    notes = _notes(loss, bool(labels), len(samples))
    cut = make_shards(len(samples), shards)
    return Study(single, blocks, samples, each, loss, rounding, cut, together, workers, progress, notes)


def _single_rows(
    graph: Graph, batches: Sequence[Batch], labels: Sequence[Tensor]
) -> tuple[Graph, tuple[Batch, ...], tuple[Tensor, ...]]:
    """The graph for one row, and each row as a sample, if rows are independent."""
    firsts = {v.type.shape[:1] for v in graph.inputs}
    rows = firsts.pop()[0] if len(firsts) == 1 and firsts != {()} else 1
    if rows == 1:
        return graph, tuple(batches), tuple(labels)
    samples = tuple(tuple(x[row : row + 1] for x in batch) for batch in batches for row in range(rows))
    try:
        single = rebatch(graph, 1)
    except IRError:
        return graph, tuple(batches), tuple(labels)
    if not passes_batches(single, samples[:2]):
        return graph, tuple(batches), tuple(labels)
    apart = (t.reshape(rows, -1)[row] for t in labels for row in range(rows))
    return single, samples, tuple(apart)


def _leads_with_batch(graph: Graph, blocks: Sequence[Block]) -> bool:
    """True if operands and results of layers have the samples along the first dimension."""
    own = graph.inputs[0].type.shape[0] if graph.inputs and graph.inputs[0].type.shape else 0
    try:
        double = rebatch(graph, 2 * own)
    except IRError:
        return False
    types = {v.name: v.type for v in double.inputs}
    types |= {v.name: v.type for node in double.nodes for v in node.outputs}
    values = [v for block in blocks for node in block.nodes for v in (data_of(node), node.output)]
    return all(types[v.name].shape == (2 * v.type.shape[0], *v.type.shape[1:]) for v in values)


def _notes(loss: Loss, has_labels: bool, samples: int) -> tuple[str, ...]:
    found = []
    if loss.name == "values":
        found.append(
            "the network has no class scores: the loss is half the mean squared change of its outputs"
        )
    if loss.name == "values" and has_labels:
        found.append("labels are not used")
    if samples == 1:
        found.append("standard errors cannot be estimated from one sample: they are zero")
    return tuple(found)
