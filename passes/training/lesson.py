"""The samples of a training: which are trained on, which are held back, and what the teacher says to them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...ir import Graph, Value, rebatch, run, run_integer
from ...specs.options import FinetuneOptions
from ..base import Context
from ..calibrate import check_samples, passes_batches
from ..errors import CalibrationError, PassError
from .augment import augment

_IMAGE_RANK = 4


@dataclass(frozen=True)
class Piece:
    """Samples that run together. The last ones may only fill up the batch: `count` are meant."""

    index: Tensor
    count: int


@dataclass(frozen=True)
class Lesson:
    """Samples, labels, and who holds which back; a step is `together` pieces of the graph's batch."""

    inputs: tuple[Tensor, ...]
    labels: Tensor | None
    training: Tensor  # indices of samples
    validation: Tensor
    batch: int
    together: int

    @staticmethod
    def of(graph: Graph, options: FinetuneOptions, context: Context) -> Lesson:
        """Put the samples together; CalibrationError where they do not fit the graph, or are too few."""
        check_samples(graph, context.calibration)
        leading = {v.type.shape[:1] for v in graph.inputs}
        if len(leading) != 1 or leading == {()}:
            raise PassError("training takes inputs whose first dimension is the batch; take `finetune` out")
        own = len(context.calibration[0][0])
        inputs = tuple(torch.cat(column) for column in zip(*context.calibration, strict=True))
        labels = torch.cat([t if t.ndim else t.view(1) for t in context.labels]) if context.labels else None
        held = max(1, int(options.validation * len(inputs[0])))
        if len(inputs[0]) <= held:
            raise CalibrationError(f"{len(inputs[0])} samples are too few to train on")
        order = torch.randperm(len(inputs[0]), generator=torch.Generator().manual_seed(options.seed))
        wanted, grows = max(own, options.batch // own * own), _grows(graph, context.calibration[:2])
        if own > 1 and not grows:  # rows are no samples: they cannot be put in another order
            raise PassError(
                "training takes inputs whose first dimension is the batch: give the model one, or take `finetune` out"
            )
        batch = wanted if grows else own
        together = max(1, options.batch // batch)
        return Lesson(inputs, labels, order[held:], order[:held], batch, together)

    @property
    def steps(self) -> int:
        """Steps of the optimizer in one epoch."""
        return math.ceil(math.ceil(len(self.training) / self.batch) / self.together)

    def batched(self, graph: Graph) -> Graph:
        """A graph for the batch of the lesson."""
        return graph if graph.inputs[0].type.shape[0] == self.batch else rebatch(graph, self.batch)

    def training_steps(self, seed: int) -> Iterator[list[Piece]]:
        """All training samples in the order of a seed, piece by piece, for each step."""
        order = torch.randperm(len(self.training), generator=torch.Generator().manual_seed(seed))
        pieces = list(self.pieces(self.training[order]))
        return (pieces[at : at + self.together] for at in range(0, len(pieces), self.together))

    def inputs_of(
        self, piece: Piece, options: FinetuneOptions, generator: torch.Generator | None = None
    ) -> tuple[Tensor, ...]:
        """The inputs of a piece, changed at random where the options say so and there is a generator."""
        found = tuple(x[piece.index] for x in self.inputs)
        if generator is not None and options.augment is not None:
            found = tuple(augment(x, options.augment, generator) for x in found)
        # images pixel by pixel: what the convolutions of torch on a CPU are fastest on
        return tuple(
            x.contiguous(memory_format=torch.channels_last) if x.ndim == _IMAGE_RANK else x for x in found
        )

    def labels_of(self, piece: Piece) -> Tensor | None:
        """The labels of a piece."""
        return None if self.labels is None else self.labels[piece.index]

    def pieces(self, samples: Tensor) -> Iterator[Piece]:
        """These samples in whole batches; the last one is filled up with samples from the start."""
        missing = -len(samples) % self.batch
        filled = torch.cat([samples, samples.repeat(1 + missing // len(samples))[:missing]])
        for start in range(0, len(filled), self.batch):
            yield Piece(filled[start : start + self.batch], min(self.batch, len(samples) - start))


def _grows(graph: Graph, pair: Sequence[tuple[Tensor, ...]]) -> bool:
    """Whether the graph takes several samples at once; one on integers is compared byte for byte."""
    is_integer = any(value.type.is_quantized for value in graph.results)
    return len(pair) == 2 and passes_batches(graph, pair, interpreter=run_integer if is_integer else run)


@dataclass(frozen=True)
class Shown:
    """What the teacher shows of a piece: its outputs, and the results of layers by value name."""

    outputs: Sequence[Tensor]
    layers: Mapping[str, Tensor]


@dataclass(frozen=True)
class Teacher:
    """The captured model. Where inputs do not change and no layers are asked for, it answers once for all samples.

    Outputs without a batch it gives anew for each piece.
    """

    graph: Graph
    values: frozenset[str]
    known: tuple[Tensor, ...] | None

    @staticmethod
    def of(graph: Graph, lesson: Lesson, values: Sequence[str], *, answers_once: bool) -> Teacher:
        """The teacher of a lesson, asked for these values beside its outputs."""
        teacher = Teacher(lesson.batched(graph), frozenset(values), None)
        by_sample = all(v.type.shape[:1] == (lesson.batch,) for v in teacher.graph.outputs)
        if not answers_once or values or not by_sample:
            return teacher
        answers = []
        for piece in lesson.pieces(torch.arange(len(lesson.inputs[0]))):
            shown = teacher.shown([x[piece.index] for x in lesson.inputs])
            answers.append([y[: piece.count] for y in shown.outputs])
        return Teacher(
            teacher.graph, teacher.values, tuple(torch.cat(ys) for ys in zip(*answers, strict=True))
        )

    def show(self, piece: Piece, inputs: Sequence[Tensor]) -> Shown:
        """What the teacher says to the inputs that were made of a piece."""
        if self.known is not None:
            return Shown([y[piece.index] for y in self.known], {})
        return self.shown(inputs)

    def shown(self, inputs: Sequence[Tensor]) -> Shown:
        """What the teacher says to inputs."""
        layers: dict[str, Tensor] = {}

        def observe(value: Value, tensor: Tensor) -> None:
            if value.name in self.values:
                layers[value.name] = tensor

        with torch.no_grad():
            return Shown(run(self.graph, inputs, observe=observe), layers)
