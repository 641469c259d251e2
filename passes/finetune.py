"""The pass `finetune`: weights and biases are trained through the interpreter, which is differentiable.

    loss = (1 - w) * cross_entropy(z, labels) + w * T^2 * KL(softmax(teacher / T) || softmax(z / T))

The teacher is the model as it was captured (Hinton et al., 2015). Where outputs are no class scores, the loss is the
mean squared difference from the teacher's. Statistics of batch norms stay as they are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from torch.optim import SGD, AdamW, Optimizer

from ..ir import Graph, ShapeError, Value, rebatch, run
from ..ir.ops.embedding import Embedding
from ..ir.ops.norm import BatchNorm, GroupNorm, InstanceNorm, LayerNorm, RmsNorm
from ..ir.ops.prelu import Prelu
from ..ir.ops.recurrent import Recurrent
from ..specs.options import FinetuneOptions
from .base import Context, PassResult, register
from .errors import CalibrationError, PassError
from .layers import LAYERS
from .report import Cell, Decision, PassReport, Table

_AFFINE = (BatchNorm, LayerNorm, GroupNorm, InstanceNorm, RmsNorm, Prelu, Embedding)
_MOMENTUM = 0.9


@register(FinetuneOptions)
def finetune(graph: Graph, options: FinetuneOptions, context: Context) -> PassResult:
    """Train the graph; PassError where there is nothing to learn from."""
    names = _trainable(graph, options, context)
    if not names:
        raise PassError("there are no weights to train")
    lesson = _Lesson.of(graph, options, context)
    start = {name: graph.params[name].detach().clone() for name in names}
    params = {name: tensor.clone().requires_grad_() for name, tensor in start.items()}
    optimizer = _optimizer(params, options)
    first = lesson.validate(params)
    best, best_params, waited = first.loss, start, 0
    rows: list[tuple[Cell, ...]] = [(0, None, first.loss, first.accuracy)]
    for epoch in range(options.epochs):
        trained = lesson.train(params, optimizer, epoch, context)
        measured = lesson.validate(params)
        rows.append((epoch + 1, trained, measured.loss, measured.accuracy))
        if not math.isfinite(trained):
            raise PassError(f"the loss is {trained} in epoch {epoch + 1}; lower learning_rate")
        waited += 1
        if measured.loss < best:
            best, waited = measured.loss, 0
            best_params = {name: tensor.detach().clone() for name, tensor in params.items()}
        if options.patience is not None and waited >= options.patience:
            break
    columns = ("epoch", "training_loss", "validation_loss", "validation_accuracy")
    decisions = tuple(_decision(graph, name, start[name], best_params[name]) for name in names)
    report = PassReport("finetune", decisions, (Table("epochs", columns, tuple(rows)),))
    return PassResult(graph.with_params(best_params), report)


@dataclass(frozen=True, slots=True)
class _Measured:
    loss: float
    accuracy: float | None


@dataclass(frozen=True)
class _Lesson:
    """The samples, what they should give, and the graph for one step's worth of them."""

    graph: Graph
    options: FinetuneOptions
    inputs: tuple[Tensor, ...]
    labels: Tensor | None
    taught: tuple[Tensor, ...] | None
    training: Tensor  # indices of samples
    validation: Tensor

    @staticmethod
    def of(graph: Graph, options: FinetuneOptions, context: Context) -> _Lesson:
        """Put samples together; the teacher answers once for all of them."""
        own = context.calibration[0][0].shape[0] if graph.inputs else 1
        inputs = tuple(torch.cat(column) for column in zip(*context.calibration, strict=True))
        labels = torch.cat([t.flatten() for t in context.labels]).long() if context.labels else None
        count = len(inputs[0])
        held = max(1, int(options.validation * count))
        if count <= held:
            raise CalibrationError(f"{count} samples are too few to train on")
        order = torch.randperm(count, generator=torch.Generator().manual_seed(options.seed))
        teacher = context.original if options.distill is not None else None
        taught = None if teacher is None else _answers(teacher, context.calibration)
        if taught is None and labels is None:
            raise PassError("there is nothing to learn from: give labels, or distill")
        with suppress(ShapeError):  # where the batch cannot change, a step is made of several runs
            graph = rebatch(graph, max(own, options.batch // own * own))
        return _Lesson(graph, options, inputs, labels, taught, order[held:], order[:held])

    def train(self, params: dict[str, Tensor], optimizer: Optimizer, epoch: int, context: Context) -> float:
        """One epoch; the mean loss."""
        generator = torch.Generator().manual_seed(self.options.seed + 1 + epoch)
        pieces = list(self._pieces(self.training, generator))
        together = max(1, self.options.batch // len(pieces[0]))
        steps, total = math.ceil(len(pieces) / together), 0.0
        for step in range(steps):
            done = (epoch + step / steps) / self.options.epochs
            for group in optimizer.param_groups:
                group["lr"] = self.options.learning_rate * math.cos(math.pi / 2 * done)
            optimizer.zero_grad()
            taken = pieces[step * together : (step + 1) * together]
            for index in taken:
                loss = self._loss(run(self.graph, [x[index] for x in self.inputs], params=params), index)
                torch.autograd.backward([loss / len(taken)])
                total += float(loss.detach())
            optimizer.step()
            context.progress("training", epoch * steps + step + 1, self.options.epochs * steps)
        return total / len(pieces)

    def validate(self, params: dict[str, Tensor]) -> _Measured:
        """Loss and, with labels, accuracy on the samples that are not trained on."""
        total, right, pieces = 0.0, 0, list(self._pieces(self.validation))
        with torch.no_grad():
            for index in pieces:
                outputs = run(self.graph, [x[index] for x in self.inputs], params=params)
                total += float(self._loss(outputs, index))
                if self.labels is not None:
                    right += int((outputs[0].flatten(1).argmax(1) == self.labels[index]).sum())
        seen = sum(len(index) for index in pieces)
        return _Measured(total / len(pieces), None if self.labels is None else right / seen)

    def _pieces(self, samples: Tensor, generator: torch.Generator | None = None) -> Iterator[Tensor]:
        """Whole batches of the graph; the last one is filled up with samples from the start."""
        size = self.graph.inputs[0].type.shape[0]
        if generator is not None:
            samples = samples[torch.randperm(len(samples), generator=generator)]
        missing = -len(samples) % size
        filled = torch.cat([samples, samples.repeat(1 + missing // len(samples))[:missing]])
        return iter(torch.split(filled, size))

    def _loss(self, outputs: Sequence[Tensor], index: Tensor) -> Tensor:
        if self.taught is None:
            assert self.labels is not None
            return functional.cross_entropy(outputs[0].flatten(1), self.labels[index])
        assert self.options.distill is not None
        taught = [answers[index] for answers in self.taught]
        if self.labels is None and (len(outputs) > 1 or outputs[0].ndim != 2):
            pairs = zip(outputs, taught, strict=True)
            return torch.stack([functional.mse_loss(y, z) for y, z in pairs if y.is_floating_point()]).sum()
        heat, weight = self.options.distill.temperature, self.options.distill.weight
        z, teacher = outputs[0].flatten(1) / heat, taught[0].flatten(1) / heat
        soft = functional.kl_div(
            z.log_softmax(1), teacher.log_softmax(1), reduction="batchmean", log_target=True
        )
        if self.labels is None:
            return soft * heat**2
        hard = functional.cross_entropy(outputs[0].flatten(1), self.labels[index])
        return (1 - weight) * hard + weight * heat**2 * soft


def _trainable(graph: Graph, options: FinetuneOptions, context: Context) -> list[str]:
    """Float weights and biases of layers that are not kept; a constant that is also kept elsewhere stays."""
    found: dict[str, Value] = {}
    held: set[str] = set()
    for node in graph.nodes:
        if isinstance(node.op, (*LAYERS, *_AFFINE)):
            values = [node.operand(1), node.operand(2)]
        elif isinstance(node.op, Recurrent):
            values = list(node.inputs[1 + node.op.states :])
        else:
            continue
        is_kept = any(context.selects(pattern, node.source.module) for pattern in options.keep)
        for value in values:
            if value is not None and graph.is_constant(value) and value.type.dtype.is_floating:
                found[value.name] = value
                held |= {value.name} if is_kept else set()
    return [name for name in found if name not in held]


def _optimizer(params: dict[str, Tensor], options: FinetuneOptions) -> Optimizer:
    groups = [
        {"params": [p for p in params.values() if p.ndim > 1], "weight_decay": options.weight_decay},
        {"params": [p for p in params.values() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if options.optimizer == "sgd":
        return SGD(groups, lr=options.learning_rate, momentum=_MOMENTUM)
    return AdamW(groups, lr=options.learning_rate)


def _answers(teacher: Graph, calibration: Sequence[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """The teacher's outputs for all samples, in order."""
    with torch.no_grad():
        answers = [run(teacher, inputs) for inputs in calibration]
    return tuple(torch.cat(column) for column in zip(*answers, strict=True))


def _decision(graph: Graph, name: str, before: Tensor, after: Tensor) -> Decision:
    change = float((after - before).norm() / before.norm().clamp(min=1e-30))
    return Decision(
        "finetune", name, graph.users[name][0].source, change > 0, f"changed by {100 * change:.1f} %"
    )
