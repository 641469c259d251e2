"""The training loop: epochs of steps, a validation after each, the best kept, the state in a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import Optimizer

from ...ir import Graph, Value
from ...specs.options import FinetuneOptions
from ..base import Context
from ..errors import PassError
from . import checkpoint
from .checkpoint import Progressed, Row
from .hints import find_hints
from .integer_student import IntegerStudent
from .lesson import Lesson, Piece, Teacher
from .losses import Objective, count_correct
from .optimizer import OptimizerState, learning_rate, make_optimizer
from .student import FloatStudent, Student, trainable


@dataclass(frozen=True)
class Trained:
    """The graph with the weights of the best epoch, the optimizer after the last one, and a row for each epoch.

    A row is (epoch, training loss, validation loss, validation accuracy); epoch 0 is before training.
    """

    graph: Graph
    state: OptimizerState
    rows: tuple[Row, ...]
    training_samples: int
    validation_samples: int

    @property
    def samples_text(self) -> str:
        """How many samples there were, for the user."""
        return f"trained on {self.training_samples:,} samples, {self.validation_samples:,} held back"


def train(
    graph: Graph, options: FinetuneOptions, context: Context, *, state: OptimizerState | None = None
) -> Trained:
    """Train a graph; PassError where there is nothing to train, or nothing to learn from.

    With `state`, of an earlier training, the optimizer goes on from there. A pass that cuts channels in between cuts
    the moments by the same index sets first, since each has the shape of the constant of its name:

        trained = train(graph, options, context)
        smaller = cut_graph(kept)
        state = trained.state.mapped(lambda name, moment: cut_as_constant(name, moment))
        trained = train(smaller, options, context, state=state)

    Moments of constants that are gone are dropped, new constants start without. The schedule of the learning rate
    starts anew with each call. Two calls with the same arguments give the same bytes.
    """
    student = student_of(graph, options, context)
    lesson = Lesson.of(graph, options, context)
    return _Training.of(graph, student, lesson, options, context).run(state)


def student_of(graph: Graph, options: FinetuneOptions, context: Context) -> Student:
    """What can be trained of a graph; PassError where that is nothing."""
    values = trainable(graph, options, context)
    if not values:
        raise PassError("there are no weights to train")
    if any(value.type.is_quantized for value in graph.results):
        return IntegerStudent.of(graph, options, context)
    return FloatStudent(graph, tuple(value.name for value in values), options.keep_zeros)


def _what_helps(learned: Mapping[str, Tensor]) -> str:
    """What to do where the loss is not finite: in half precision Adam divides by squares that are zero."""
    halves = any(tensor.dtype is torch.float16 for tensor in learned.values())
    return "set `dtype: float32` under `model`" if halves else "lower learning_rate"


@dataclass(frozen=True)
class _Training:
    """All that stays the same from one epoch to the next."""

    graph: Graph
    batched: Graph
    student: Student
    lesson: Lesson
    teacher: Teacher | None
    objective: Objective
    options: FinetuneOptions
    context: Context

    @staticmethod
    def of(
        graph: Graph, student: Student, lesson: Lesson, options: FinetuneOptions, context: Context
    ) -> _Training:
        """Bring student and teacher together."""
        original, distill = context.original, options.distill
        hints = () if original is None or distill is None else find_hints(graph, original, distill.layers)
        shapes = [value.type.shape for value in graph.outputs]
        objective = Objective.of(options, context, hints, shapes=shapes)
        teacher = None
        if original is not None and distill is not None:
            values, is_fixed = [hint.value for hint in hints], options.augment is None
            teacher = Teacher.of(original, lesson, values, answers_once=is_fixed)
        return _Training(graph, lesson.batched(graph), student, lesson, teacher, objective, options, context)

    def run(self, state: OptimizerState | None) -> Trained:
        """All epochs, from the start or from a checkpoint."""
        options = self.options
        identity, at = "", None
        if options.checkpoint is not None:
            identity = checkpoint.training_digest(self.graph, options, self.lesson, resumes=state)
            at = checkpoint.load(options.checkpoint, identity)
        at = at or self._start(state)
        learned = {name: tensor.clone().requires_grad_() for name, tensor in at.learned.items()}
        optimizer = make_optimizer(learned, options)
        at.state.enter(optimizer, learned)
        while at.epoch < options.epochs and not self._is_patient_no_more(at):
            trained = self._epoch(learned, optimizer, at.epoch)
            if not math.isfinite(trained):
                raise PassError(f"the loss is {trained} in epoch {at.epoch + 1}; {_what_helps(learned)}")
            rows = (*at.rows, (at.epoch + 1, trained, *self._validate(learned)))
            now = {name: tensor.detach().clone() for name, tensor in learned.items()}
            after = Progressed(now, now, OptimizerState.of(optimizer, learned), rows)
            at = after if after.best_epoch == after.epoch else Progressed(now, at.best, after.state, rows)
            if options.checkpoint is not None:
                checkpoint.save(options.checkpoint, at, identity)
        counts = len(self.lesson.training), len(self.lesson.validation)
        return Trained(self.student.taught(at.best), at.state, at.rows, *counts)

    def _start(self, state: OptimizerState | None) -> Progressed:
        generator = torch.Generator().manual_seed(self.options.seed)
        learned = self.student.start()
        for hint in self.objective.hints:
            learned |= hint.start(generator)
        row: Row = (0, None, *self._validate(learned))
        return Progressed(learned, learned, state or OptimizerState(), (row,))

    def _is_patient_no_more(self, at: Progressed) -> bool:
        return self.options.patience is not None and at.epoch - at.best_epoch >= self.options.patience

    def _epoch(self, learned: Mapping[str, Tensor], optimizer: Optimizer, epoch: int) -> float:
        """One epoch; the mean loss."""
        options, steps, total, seen = self.options, self.lesson.steps, 0.0, 0
        seed = options.seed + 1 + epoch
        generator = torch.Generator().manual_seed(seed)
        for step, pieces in enumerate(self.lesson.training_steps(seed)):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(options, epoch + (step + 1) / steps)
            optimizer.zero_grad()
            for piece in pieces:
                loss, _ = self._loss(piece, learned, generator)
                torch.autograd.backward([loss / len(pieces)])
                total, seen = total + float(loss.detach()), seen + 1
            optimizer.step()
            self.context.progress("training", epoch * steps + step + 1, options.epochs * steps)
        return total / seen

    def _validate(self, learned: Mapping[str, Tensor]) -> tuple[float, float | None]:
        """Loss and, for classes with labels, accuracy on the samples that are held back."""
        total, seen, right, counted = 0.0, 0, 0, 0
        axis = self.objective.class_axis
        with torch.no_grad():
            for piece in self.lesson.pieces(self.lesson.validation):
                loss, outputs = self._loss(piece, learned, None)
                total, seen = total + piece.count * float(loss), seen + piece.count
                labels = self.lesson.labels_of(piece)
                if axis is not None and labels is not None and labels.shape != outputs[0].shape:
                    correct = count_correct(
                        outputs[0][: piece.count],
                        labels[: piece.count],
                        axis=axis,
                        ignore_index=self.options.ignore_index,
                    )
                    right, counted = right + correct[0], counted + correct[1]
        return total / seen, right / counted if counted else None

    def _loss(
        self, piece: Piece, learned: Mapping[str, Tensor], generator: torch.Generator | None
    ) -> tuple[Tensor, list[Tensor]]:
        """Loss and outputs; with a generator as in training, without as in validation."""
        inputs = self.lesson.inputs_of(piece, self.options, generator)
        shown = None if self.teacher is None else self.teacher.show(piece, inputs)
        hinted = frozenset() if self.teacher is None else self.teacher.values
        layers: dict[str, Tensor] = {}

        def observe(value: Value, tensor: Tensor) -> None:
            if value.name in hinted:
                layers[value.name] = tensor

        outputs = self.student.answer(self.batched, inputs, learned, observe=observe)
        loss = self.objective(
            outputs,
            self.lesson.labels_of(piece),
            None if shown is None else shown.outputs,
            layers=layers,
            shown={} if shown is None else shown.layers,
            learned=learned,
        )
        return loss, outputs
