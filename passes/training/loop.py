"""Training loop: validation after each epoch, best parameters kept, state saved in a checkpoint."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.optim import Optimizer

from ...ir import Graph, Value
from ...specs.options import Adapter, FinetuneOptions, LowRank, Prompts
from ...specs.options import Teacher as TeacherModel
from ..base import Context
from ..errors import PassError
from . import checkpoint
from .checkpoint import Row, TrainingState
from .exits import find_exits
from .feature_loss import FeatureTerm, find_feature_losses
from .gated_prompts import with_gated_prompts
from .integer_trainable import IntegerTrainable
from .learned_pairs import find_learned_pairs
from .losses import Objective, count_correct
from .low_rank_trainable import LowRankTrainable
from .optimizer import OptimizerState, learning_rate, make_optimizer
from .peers import Peers
from .prompt_tuning import with_prompts
from .split import MicroBatch, Split, Teacher, TeacherResults
from .stored_trainable import StoredTrainable
from .trainable import FloatTrainable, Trainable, trainable_constants


@dataclass(frozen=True)
class Trained:
    """The graph with the weights of the best epoch, the optimizer state after the last one, and a row per epoch.

    A row is (epoch, training loss, validation loss, validation accuracy); epoch 0 is before training.
    """

    graph: Graph
    state: OptimizerState
    rows: tuple[Row, ...]
    training_samples: int
    validation_samples: int

    @property
    def samples_text(self) -> str:
        """Numbers of training and validation samples, for the user."""
        return f"trained on {self.training_samples:,} samples, {self.validation_samples:,} held back"


def train(
    graph: Graph,
    options: FinetuneOptions,
    context: Context,
    *,
    state: OptimizerState | None = None,
    trainable: Trainable | None = None,
    at: Callable[[float], Trainable] | None = None,
    identity: str = "",
) -> Trained:
    """Train a graph; PassError if it has no weights to train, or there is no training signal.

    `trainable`: its trainable form, if only some of the constants that layers learn are trained. `at`: the form for a
    completed share of the training, if it changes; validation and the result are those of `trainable`. `identity`: text
    of further settings that the training depends on, which a checkpoint stores.

    `state`: optimizer state of an earlier training to continue from. A pass that removes channels in between removes
    them from the moments too, which have the shape of the constant of the same name:

        trained = train(graph, options, context)
        smaller = cut_graph(kept)
        state = trained.state.mapped(lambda name, moment: cut_as_constant(name, moment))
        trained = train(smaller, options, context, state=state)

    Moments of removed constants are dropped, new constants start without moments. The learning rate schedule restarts
    with each call. Two calls with the same arguments give the same bytes.
    """
    trainable = trainable or make_trainable(graph, options, context)
    split = Split.of(graph, options, context)
    training = _Training.of(graph, trainable, split, options, context)
    return replace(training, at=at, identity=identity).run(state)


def make_trainable(graph: Graph, options: FinetuneOptions, context: Context) -> Trainable:
    """Trainable form of a graph; PassError if it has no weights to train."""
    is_integer = any(value.type.is_quantized for value in graph.results)
    if not isinstance(options.trains, str) and is_integer:
        (kind,) = options.trains.model_fields_set
        raise PassError(f"trains: {kind}: an integer graph has no {kind}; move `finetune` before `quantize`")
    if isinstance(options.trains, LowRank):
        return LowRankTrainable.of(graph, options, options.trains.lora, context)
    if isinstance(options.trains, Prompts):
        return with_prompts(graph, options, options.trains.prompts)
    if isinstance(options.trains, Adapter):
        return with_gated_prompts(graph, options, options.trains.adapter, context)
    values = trainable_constants(graph, options, context)
    if not values:
        raise PassError("there are no weights to train")
    if is_integer:
        return IntegerTrainable.of(graph, options, context)
    if any(value.type.is_quantized for value in values):
        return StoredTrainable.of(graph, options, context)
    return FloatTrainable(graph, tuple(value.name for value in values), options.keep_zeros)


def teacher_graph(graph: Graph, options: FinetuneOptions, context: Context) -> Graph | None:
    """The graph whose outputs are distilled; None without one. PassError if its outputs have other shapes."""
    distill = options.distill
    if distill is None or distill.is_own_teacher or context.original is None:
        return None
    if not isinstance(distill.teacher, TeacherModel):
        return context.original
    teacher = context.teacher(distill.teacher)
    shapes = [[value.type.shape for value in g.outputs] for g in (graph, teacher)]
    if shapes[0] != shapes[1]:
        raise PassError(
            f"distill.teacher: {distill.teacher.source} has outputs of shapes {shapes[1]}, the network of {shapes[0]}; "
            "a teacher has the same outputs"
        )
    return teacher


def _check_precision(trainable: Trainable) -> None:
    """PassError unless a graph has activations whose precision can be raised."""
    if not isinstance(trainable, IntegerTrainable):
        raise PassError(
            "distill.teacher: stochastic_precision raises the bits of integer activations; move `finetune` behind "
            "`quantize`, or name another teacher"
        )


def _what_helps(parameters: Mapping[str, Tensor]) -> str:
    """Advice for a loss that is not finite. In float16 the squared gradients of Adam underflow to zero."""
    halves = any(tensor.dtype is torch.float16 for tensor in parameters.values())
    return "set `dtype: float32` under `model`" if halves else "lower learning_rate"


@dataclass(frozen=True)
class _Training:
    """Everything that is constant over the epochs."""

    graph: Graph
    batched: Graph
    trainable: Trainable
    split: Split
    teacher: Teacher | None
    objective: Objective
    options: FinetuneOptions
    context: Context
    peers: Peers | None = None
    at: Callable[[float], Trainable] | None = None
    identity: str = ""

    @staticmethod
    def of(
        graph: Graph, trainable: Trainable, split: Split, options: FinetuneOptions, context: Context
    ) -> _Training:
        """Combine trainable, teacher and objective."""
        taught = teacher_graph(graph, options, context)
        terms = _feature_terms(graph, taught, split, options, context)
        shapes = [value.type.shape for value in graph.outputs]
        modules = () if options.distill is None else options.distill.exits
        exits = find_exits(graph, context.original or graph, modules, shapes[0])
        objective = Objective.of(options, context, terms, shapes=shapes, exits=exits)
        if options.distill is not None and options.distill.teacher == "stochastic_precision":
            _check_precision(trainable)
        teacher = None
        if taught is not None:
            values = [value for term in terms for value in term.teacher_values]
            teacher = Teacher.of(taught, split, values, runs_once=options.augment is None)
        peers = None
        if options.distill is not None and options.distill.teacher == "peers":
            peers = Peers.of(options.distill, objective.class_axis, shapes[0])
        return _Training(
            graph, split.batched(graph), trainable, split, teacher, objective, options, context, peers
        )

    def run(self, state: OptimizerState | None) -> Trained:
        """Run all epochs, from the start or from a checkpoint."""
        options = self.options
        identity, at = "", None
        if options.checkpoint is not None:
            teacher = None if self.teacher is None else self.teacher.graph
            identity = checkpoint.training_digest(
                self.graph, options, self.split, teacher=teacher, resumes=state, identity=self.identity
            )
            at = checkpoint.load(options.checkpoint, identity)
        at = at or self._start(state)
        parameters = {name: tensor.clone().requires_grad_() for name, tensor in at.parameters.items()}
        optimizer = make_optimizer(parameters, options)
        at.state.enter(optimizer, parameters)
        while at.epoch < options.epochs and not self._is_patient_no_more(at):
            trained = self._epoch(parameters, optimizer, at.epoch)
            if not math.isfinite(trained):
                raise PassError(f"the loss is {trained} in epoch {at.epoch + 1}; {_what_helps(parameters)}")
            rows = (*at.rows, (at.epoch + 1, trained, *self._validate(parameters)))
            now = {name: tensor.detach().clone() for name, tensor in parameters.items()}
            after = TrainingState(now, now, OptimizerState.of(optimizer, parameters), rows)
            at = after if after.best_epoch == after.epoch else TrainingState(now, at.best, after.state, rows)
            if options.checkpoint is not None:
                checkpoint.save(options.checkpoint, at, identity)
        counts = len(self.split.training), len(self.split.validation)
        return Trained(self.trainable.export(at.best), at.state, at.rows, *counts)

    def _start(self, state: OptimizerState | None) -> TrainingState:
        generator = torch.Generator().manual_seed(self.options.seed)
        parameters = self.trainable.start()
        if self.peers is not None:
            parameters |= self.peers.start(parameters, generator)
        parameters |= self.objective.start(generator)
        row: Row = (0, None, *self._validate(parameters))
        return TrainingState(parameters, parameters, state or OptimizerState(), (row,))

    def _is_patient_no_more(self, at: TrainingState) -> bool:
        return self.options.patience is not None and at.epoch - at.best_epoch >= self.options.patience

    def _epoch(self, parameters: Mapping[str, Tensor], optimizer: Optimizer, epoch: int) -> float:
        """Train one epoch; returns the mean loss."""
        options, steps, total, seen = self.options, self.split.steps, 0.0, 0
        seed = options.seed + 1 + epoch
        generator = torch.Generator().manual_seed(seed)
        for step, micro_batches in enumerate(self.split.training_steps(seed)):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(options, epoch + (step + 1) / steps)
            optimizer.zero_grad()
            done = (epoch + step / steps) / options.epochs
            form = self.trainable if self.at is None else self.at(done)
            for micro_batch in micro_batches:
                loss, _ = self._loss(form, micro_batch, parameters, generator)
                torch.autograd.backward([loss / len(micro_batches)])
                total, seen = total + float(loss.detach()), seen + 1
            optimizer.step()
            self.context.progress("training", epoch * steps + step + 1, options.epochs * steps)
        return total / seen

    def _validate(self, parameters: Mapping[str, Tensor]) -> tuple[float, float | None]:
        """Validation loss and, for classes with labels, validation accuracy."""
        total, seen, right, counted = 0.0, 0, 0, 0
        axis = self.objective.class_axis
        with torch.no_grad():
            for micro_batch in self.split.micro_batches(self.split.validation):
                loss, outputs = self._loss(self.trainable, micro_batch, parameters, None)
                total, seen = total + micro_batch.count * float(loss), seen + micro_batch.count
                labels = self.split.labels_of(micro_batch)
                if axis is not None and labels is not None and labels.shape != outputs[0].shape:
                    correct = count_correct(
                        outputs[0][: micro_batch.count],
                        labels[: micro_batch.count],
                        axis=axis,
                        ignore_index=self.options.ignore_index,
                    )
                    right, counted = right + correct[0], counted + correct[1]
        return total / seen, right / counted if counted else None

    def _loss(
        self,
        form: Trainable,
        micro_batch: MicroBatch,
        parameters: Mapping[str, Tensor],
        generator: torch.Generator | None,
    ) -> tuple[Tensor, list[Tensor]]:
        """Loss and outputs of a micro-batch; a generator enables augmentation, and the terms of training alone."""
        inputs = self.split.inputs_of(micro_batch, self.options, generator)
        labels = self.split.labels_of(micro_batch)
        if self.peers is not None and generator is not None:
            return self._loss_of_peers(self.peers, form, inputs, labels, parameters)
        teacher = self._teacher_results(form, micro_batch, inputs, parameters, generator)
        observed = self.objective.values
        features: dict[str, Tensor] = {}

        def observe(value: Value, tensor: Tensor) -> None:
            if value.name in observed:
                features[value.name] = tensor

        outputs = form.forward(self.batched, inputs, parameters, observe=observe)
        loss = self.objective(
            outputs,
            labels,
            None if teacher is None else teacher.outputs,
            features=features,
            teacher_features={} if teacher is None else teacher.features,
            parameters=parameters,
            validates=generator is None,
        )
        return loss, outputs

    def _teacher_results(
        self,
        form: Trainable,
        micro_batch: MicroBatch,
        inputs: Sequence[Tensor],
        parameters: Mapping[str, Tensor],
        generator: torch.Generator | None,
    ) -> TeacherResults | None:
        """Results of the teacher for a micro-batch; None without one.

        A teacher that is the network itself changes with it, so that validation has the task loss alone.
        """
        if self.teacher is not None:
            return self.teacher.results(micro_batch, inputs)
        distill = self.objective.distill
        if distill is None or distill.teacher != "stochastic_precision" or generator is None:
            return None
        assert isinstance(form, IntegerTrainable)
        with torch.no_grad():
            finer = form.with_finer_activations(generator)
            outputs = finer.forward(self.batched, inputs, parameters, observe=_unobserved)
        return TeacherResults(outputs, {})

    def _loss_of_peers(
        self,
        peers: Peers,
        form: Trainable,
        inputs: Sequence[Tensor],
        labels: Tensor | None,
        parameters: Mapping[str, Tensor],
    ) -> tuple[Tensor, list[Tensor]]:
        """Sum of the losses of all peers, and the outputs of the first one."""
        outputs = [
            form.forward(self.batched, inputs, peers.parameters_of(index, parameters), observe=_unobserved)
            for index in range(peers.distill.peers)
        ]
        losses = [
            self.objective(own, labels, wanted, features={}, teacher_features={}, parameters=parameters)
            for own, wanted in zip(outputs, peers.teachers(outputs, parameters), strict=True)
        ]
        return torch.stack(losses).sum(), outputs[0]


def _unobserved(value: Value, tensor: Tensor) -> None:
    """Observer of values that no loss reads."""


def _feature_terms(
    graph: Graph, teacher: Graph | None, split: Split, options: FinetuneOptions, context: Context
) -> tuple[FeatureTerm, ...]:
    """The feature losses against a teacher."""
    distill, original = options.distill, context.original
    if teacher is None or original is None or distill is None:
        return ()
    if distill.matching == "attention":
        return (find_learned_pairs(graph, original, teacher, distill.layers, batch=split.batch),)
    return find_feature_losses(graph, original, teacher, distill.layers)
