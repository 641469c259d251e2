"""Training and validation split of the calibration data, its micro-batches, and the teacher's outputs for them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...ir import Graph, Value, rebatch, run, run_integer
from ...specs.options import FinetuneOptions
from ..base import Context
from ..calibration.calibrate import check_samples, passes_batches
from ..errors import CalibrationError, PassError
from .augment import augment, check_augmentation

_IMAGE_RANK = 4
_CACHED_BYTES = 2**28  # of features; outputs are always cached


@dataclass(frozen=True)
class MicroBatch:
    """Indices of samples that run in one forward pass. Only the first `count` are valid; the rest is padding."""

    index: Tensor
    count: int


@dataclass(frozen=True)
class Split:
    """Samples with their split; a step accumulates the gradients of `accumulated` micro-batches of `batch` samples."""

    names: tuple[str, ...]  # of the inputs
    inputs: tuple[Tensor, ...]
    labels: Tensor | None
    training: Tensor  # indices of samples
    validation: Tensor
    batch: int
    accumulated: int

    @staticmethod
    def of(graph: Graph, options: FinetuneOptions, context: Context) -> Split:
        """Split of the calibration samples; CalibrationError if they do not fit the graph or are too few."""
        check_samples(graph, context.calibration)
        leading = {v.type.shape[:1] for v in graph.inputs}
        if len(leading) != 1 or leading == {()}:
            raise PassError("training needs inputs whose first dimension is the batch; remove `finetune`")
        own = len(context.calibration[0][0])
        inputs = tuple(torch.cat(column) for column in zip(*context.calibration, strict=True))
        labels = torch.cat([t if t.ndim else t.view(1) for t in context.labels]) if context.labels else None
        held = max(1, int(options.validation * len(inputs[0])))
        if len(inputs[0]) <= held:
            raise CalibrationError(f"{len(inputs[0])} samples are too few for training")
        order = torch.randperm(len(inputs[0]), generator=torch.Generator().manual_seed(options.seed))
        wanted, grows = max(own, options.batch // own * own), _grows(graph, context.calibration[:2])
        if own > 1 and not grows:  # the rows are not samples: they cannot be shuffled
            raise PassError(
                "training needs inputs whose first dimension is the batch: add one to the model, or remove `finetune`"
            )
        batch = wanted if grows else own
        accumulated = max(1, options.batch // batch)
        if options.augment is not None:
            check_augmentation(options.augment, graph.inputs, inputs, labels)
        names = tuple(value.name for value in graph.inputs)
        return Split(names, inputs, labels, order[held:], order[:held], batch, accumulated)

    @property
    def steps(self) -> int:
        """Optimizer steps per epoch."""
        return math.ceil(math.ceil(len(self.training) / self.batch) / self.accumulated)

    def batched(self, graph: Graph) -> Graph:
        """The graph with the batch size of the micro-batches."""
        return graph if graph.inputs[0].type.shape[0] == self.batch else rebatch(graph, self.batch)

    def training_steps(self, seed: int) -> Iterator[list[MicroBatch]]:
        """The micro-batches of each step of an epoch, shuffled by `seed`."""
        order = torch.randperm(len(self.training), generator=torch.Generator().manual_seed(seed))
        micro_batches = list(self.micro_batches(self.training[order]))
        return (
            micro_batches[at : at + self.accumulated] for at in range(0, len(micro_batches), self.accumulated)
        )

    def inputs_of(
        self, micro_batch: MicroBatch, options: FinetuneOptions, generator: torch.Generator | None = None
    ) -> tuple[Tensor, ...]:
        """Inputs of a micro-batch; with a generator, augmented according to the options."""
        found = tuple(x[micro_batch.index] for x in self.inputs)
        if generator is not None and options.augment is not None:
            wanted = options.augment.inputs or self.names
            found = tuple(
                augment(x, options.augment, generator) if name in wanted else x
                for name, x in zip(self.names, found, strict=True)
            )
        # channels last: the fastest layout for convolutions of torch on a CPU
        return tuple(
            x.contiguous(memory_format=torch.channels_last) if x.ndim == _IMAGE_RANK else x for x in found
        )

    def labels_of(self, micro_batch: MicroBatch) -> Tensor | None:
        """Labels of a micro-batch."""
        return None if self.labels is None else self.labels[micro_batch.index]

    def micro_batches(self, samples: Tensor) -> Iterator[MicroBatch]:
        """Micro-batches of these samples; the last one is padded with samples from the start."""
        missing = -len(samples) % self.batch
        filled = torch.cat([samples, samples.repeat(1 + missing // len(samples))[:missing]])
        for start in range(0, len(filled), self.batch):
            yield MicroBatch(filled[start : start + self.batch], min(self.batch, len(samples) - start))


def _grows(graph: Graph, pair: Sequence[tuple[Tensor, ...]]) -> bool:
    """True if the graph accepts a larger batch; integer graphs are compared byte for byte."""
    is_integer = any(value.type.is_quantized for value in graph.results)
    return len(pair) == 2 and passes_batches(graph, pair, interpreter=run_integer if is_integer else run)


@dataclass(frozen=True)
class TeacherResults:
    """The teacher's outputs for a micro-batch, and its features by value name."""

    outputs: Sequence[Tensor]
    features: Mapping[str, Tensor]


@dataclass(frozen=True)
class Teacher:
    """The model that is the teacher of a distillation.

    Without augmentation it runs once over all samples, and its results are cached (features up to 256 MiB);
    results without a batch dimension are recomputed for each micro-batch.
    """

    graph: Graph
    values: frozenset[str]
    cached: TeacherResults | None

    @staticmethod
    def of(graph: Graph, split: Split, values: Sequence[str], *, runs_once: bool) -> Teacher:
        """The teacher for the samples of a split, whose features are the values of these names."""
        teacher = Teacher(split.batched(graph), frozenset(values), None)
        observed = [value for value in teacher.graph.results if value.name in teacher.values]
        kept = [*teacher.graph.outputs, *observed]
        by_sample = all(v.type.shape[:1] == (split.batch,) for v in kept)
        count = len(split.inputs[0])
        size = sum(v.type.numel * v.type.dtype.torch.itemsize for v in kept) * count // split.batch
        if not runs_once or not by_sample or (observed and size > _CACHED_BYTES):
            return teacher
        outputs, features = [], []
        for micro_batch in split.micro_batches(torch.arange(count)):
            results = teacher.run([x[micro_batch.index] for x in split.inputs])
            outputs.append([y[: micro_batch.count] for y in results.outputs])
            features.append({name: y[: micro_batch.count] for name, y in results.features.items()})
        of_features = {name: torch.cat([part[name] for part in features]) for name in features[0]}
        cached = TeacherResults([torch.cat(ys) for ys in zip(*outputs, strict=True)], of_features)
        return Teacher(teacher.graph, teacher.values, cached)

    def results(self, micro_batch: MicroBatch, inputs: Sequence[Tensor]) -> TeacherResults:
        """Results for a micro-batch, whose augmented inputs are `inputs`."""
        if self.cached is None:
            return self.run(inputs)
        features = {name: y[micro_batch.index] for name, y in self.cached.features.items()}
        return TeacherResults([y[micro_batch.index] for y in self.cached.outputs], features)

    def run(self, inputs: Sequence[Tensor]) -> TeacherResults:
        """Results of a forward pass without gradients."""
        features: dict[str, Tensor] = {}

        def observe(value: Value, tensor: Tensor) -> None:
            if value.name in self.values:
                features[value.name] = tensor

        with torch.no_grad():
            return TeacherResults(run(self.graph, inputs, observe=observe), features)
