"""Training objective: weighted sum of task loss, distillation loss and feature losses.

    loss = (1 - w) task(z, labels) + w T^2 KL(softmax(t / T) || softmax(z / T)) + v mean of the feature losses

z and t are the logits of the network in training and of the teacher (Hinton et al., 2015); the feature losses are those
of `feature_loss.py`. The logits of a virtual teacher are log p, p the probability `correct` for the label and equal
ones for the other classes (Yuan et al., 2020). Mean squared error or 1 - cosine of the scores can replace the KL term;
mean squared error does if the outputs are not class scores. Scores of several positions, [n, t, c] or [n, c, h, w],
have one softmax per position, and the loss is averaged over positions. Exits (`exits.py`) add the mean of their
losses to the task loss; peers (`peers.py`) have a loss each.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ...specs.options import Distillation, FinetuneOptions
from ..base import Context
from ..errors import PassError
from .exits import Exit
from .feature_loss import FeatureTerm, cosine_distance

Outputs = Sequence[Tensor]
TaskLoss = Callable[[Outputs, Tensor], Tensor]

IGNORED = -100  # label of ignored positions, as in torch
_FEWEST_SCORES = 2  # rank of [n, classes]
_SEQUENCE = 3  # rank of [n, positions, classes]
_TINY = 1e-12


@dataclass(frozen=True)
class Objective:
    """Sum of the loss terms: `task` if there are labels, `distill` if there is a teacher."""

    task: TaskLoss | None
    distill: Distillation | None
    feature_losses: tuple[FeatureTerm, ...]
    class_axis: int | None  # of the first output, if it is class scores
    ignore_index: int = IGNORED
    exits: tuple[Exit, ...] = ()

    @staticmethod
    def of(
        options: FinetuneOptions,
        context: Context,
        feature_losses: Sequence[FeatureTerm],
        *,
        shapes: Sequence[tuple[int, ...]],
        exits: Sequence[Exit] = (),
    ) -> Objective:
        """Objective of these options for a graph with outputs of these shapes."""
        distill = options.distill if context.original is not None else None
        labels = context.labels[0] if context.labels else None
        is_alone = len(shapes) == 1 and (len(shapes[0]) == _FEWEST_SCORES or options.class_axis is not None)
        is_classifier = labels is not None or is_alone
        axis = None
        if options.loss == "cross_entropy" and is_classifier:
            axis = class_axis(shapes[0], options.class_axis, labels=labels)
        task = task_loss(options, context, axis) if context.labels else None
        if task is None and options.own_loss is not None:
            raise PassError(f"loss {options.own_loss} needs labels; name them in `data.calibration`")
        if task is None and distill is None:
            raise PassError("no training signal: give labels, or set `distill`")
        if distill is not None and distill.teacher == "virtual" and axis is None:
            raise PassError(
                "distill.teacher: virtual needs class scores; set `class_axis`, or name another teacher"
            )
        return Objective(task, distill, tuple(feature_losses), axis, options.ignore_index, tuple(exits))

    @property
    def values(self) -> frozenset[str]:
        """Names of the values of the network in training that the loss reads beside the outputs."""
        read = [value for term in self.feature_losses for value in term.values]
        return frozenset([*read, *(exit.value for exit in self.exits)])

    def start(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Initial parameters of the terms."""
        found: dict[str, Tensor] = {}
        for term in self.feature_losses:
            found |= term.start(generator)
        for exit in self.exits:
            found |= exit.start(generator)
        return found

    def __call__(
        self,
        outputs: Outputs,
        labels: Tensor | None,
        teacher_outputs: Outputs | None,
        *,
        features: Mapping[str, Tensor],
        teacher_features: Mapping[str, Tensor],
        parameters: Mapping[str, Tensor],
        validates: bool = False,
    ) -> Tensor:
        """Loss of a batch, a scalar; `features` and `teacher_features` are the observed values by name.

        `validates`: only terms in which a lower loss is a better network.
        """
        task = None if self.task is None or labels is None else self.task(outputs, labels)
        if self.exits and not validates:
            assert task is not None
            return task + self._exit_loss(outputs, labels, features, parameters)
        if self.distill is None or (teacher_outputs is None and self.distill.teacher != "virtual"):
            assert task is not None
            return task
        soft = self._distillation(outputs, teacher_outputs, labels)
        loss = soft if task is None else (1 - self.distill.weight) * task + self.distill.weight * soft
        terms = [term for term in self.feature_losses if term.is_comparable or not validates]
        if terms and teacher_features:
            errors = [term.error(features, teacher_features, parameters) for term in terms]
            loss = loss + self.distill.layer_weight * torch.stack(errors).mean()
        return loss

    def _exit_loss(
        self,
        outputs: Outputs,
        labels: Tensor | None,
        features: Mapping[str, Tensor],
        parameters: Mapping[str, Tensor],
    ) -> Tensor:
        """Mean loss of the exits, whose teacher is the final output."""
        assert self.distill is not None and self.task is not None and labels is not None
        final, losses = [y.detach() for y in outputs], []
        for exit in self.exits:
            scores = [exit.scores(features, parameters), *final[1:]]
            soft = self._distillation(scores, final, labels)
            losses.append((1 - self.distill.weight) * self.task(scores, labels) + self.distill.weight * soft)
        return torch.stack(losses).mean()

    def _distillation(
        self, outputs: Outputs, teacher_outputs: Outputs | None, labels: Tensor | None
    ) -> Tensor:
        distill, axis = self.distill, self.class_axis
        assert distill is not None
        if teacher_outputs is not None and (axis is None or distill.outputs == "mse"):
            return mean_squared(outputs, teacher_outputs)
        assert axis is not None
        z = scores_of_positions(outputs[0], axis)
        if teacher_outputs is None:
            assert labels is not None
            classes = classes_of_positions(labels, z.shape[1], axis)
            counted = classes != self.ignore_index
            if not counted.any():
                return z.sum() * 0.0
            z, t = z[counted], _virtual_scores(classes[counted].long(), z.shape[1], distill.correct)
        else:
            t = scores_of_positions(teacher_outputs[0], axis)
        if distill.outputs == "cosine":
            return cosine_distance(z, t, axis=1)
        z, t = ((x / distill.temperature).log_softmax(1) for x in (z, t))
        divergence = functional.kl_div(z, t, reduction="batchmean", log_target=True)
        return distill.temperature**2 * divergence


def _virtual_scores(classes: Tensor, count: int, correct: float) -> Tensor:
    """Logits [n, count] of a virtual teacher: `correct` for the label, the rest shared among the other classes."""
    others = (1 - correct) / max(1, count - 1)
    probabilities = torch.full((len(classes), count), others)
    probabilities.scatter_(1, classes[:, None], correct)
    return probabilities.clamp(min=_TINY).log()


def classes_of_positions(labels: Tensor, count: int, axis: int) -> Tensor:
    """One class for each position, [positions of all samples], of labels that are classes or probabilities of them.

    Probabilities are those of `count` classes along dimension `axis`.
    """
    if labels.is_floating_point() and labels.ndim > axis and labels.shape[axis] == count:
        return labels.movedim(axis, -1).flatten(0, -2).argmax(1)
    return labels.flatten()


def mean_squared(outputs: Outputs, wanted: Outputs) -> Tensor:
    """Mean squared error, summed over the outputs."""
    pairs = zip(outputs, wanted, strict=True)
    return torch.stack([functional.mse_loss(y, z) for y, z in pairs if y.is_floating_point()]).sum()


def class_axis(shape: Sequence[int], wanted: int | None, *, labels: Tensor | None = None) -> int:
    """Class dimension of scores of this shape; PassError if it is ambiguous.

    `wanted` is the value of the spec. Default: the last dimension of [n, c] and [n, t, c], dimension 1 of [n, c, h, w]
    and higher ranks; if the labels, one class per position, fit only the other of the two, that one.
    """
    rank = len(shape)
    if wanted is not None:
        if rank < _FEWEST_SCORES or not (1 <= wanted < rank or -rank < wanted < 0):
            raise PassError(
                f"class_axis: {wanted} is not a class dimension of scores {_text(shape)}; dimension 0 is the batch"
            )
        return wanted % rank
    if rank < _FEWEST_SCORES:
        raise PassError(f"scores of shape {_text(shape)} have no class dimension")
    candidates = (1,) if rank == _FEWEST_SCORES else (rank - 1, 1) if rank == _SEQUENCE else (1, rank - 1)
    fitting = [axis for axis in candidates if labels is not None and _fit(labels, shape, axis)]
    if len(fitting) > 1:
        raise PassError(
            f"the classes of scores {_text(shape)} can be dimension {fitting[0]} or {fitting[1]}; "
            "set `class_axis`"
        )
    return (fitting or candidates)[0]


def scores_of_positions(scores: Tensor, axis: int) -> Tensor:
    """Scores as [positions of all samples, classes]."""
    return scores.movedim(axis, -1).flatten(0, -2)


def cross_entropy(
    scores: Tensor, labels: Tensor, *, axis: int | None = None, ignore_index: int = IGNORED
) -> Tensor:
    """Mean cross-entropy of class scores; PassError if the labels do not fit.

    Labels are one class per sample or position, in the shape of the scores without dimension `axis`, or class
    probabilities in the shape of the scores. Positions labelled `ignore_index` are excluded.
    """
    axis = class_axis(scores.shape, axis, labels=labels)
    rows = scores_of_positions(scores, axis)
    if labels.shape == scores.shape:
        return functional.cross_entropy(rows, scores_of_positions(labels, axis).to(rows.dtype))
    if len(labels) != len(scores) or not _fit(labels, scores.shape, axis):
        raise PassError(
            f"labels and scores have the shapes {_text(labels.shape)} and {_text(scores.shape)}; give one class for "
            f"each sample or position, or set the class dimension `class_axis` (here {axis})"
        )
    classes = labels.flatten()
    counts = classes != ignore_index
    wrong = classes[counts & ((classes != classes.floor()) | (classes < 0) | (classes >= rows.shape[1]))]
    if len(wrong):
        raise PassError(f"a label is {wrong[0].item():g}; the {rows.shape[1]} classes are numbered from 0")
    if not counts.any():
        return rows.sum() * 0.0
    return functional.cross_entropy(rows[counts], classes[counts].long())


def loss_of_calibration(outputs: Outputs, labels: Tensor | None, axis: int | None = None) -> Tensor:
    """Cross-entropy of the first output where labels name classes, else half the energy of all outputs."""
    if labels is not None and not labels.is_floating_point() and outputs[0].ndim >= _FEWEST_SCORES:
        return cross_entropy(outputs[0], labels, axis=axis)
    return torch.stack([y.square().mean() for y in outputs if y.is_floating_point()]).sum() / 2


def count_correct(scores: Tensor, labels: Tensor, *, axis: int, ignore_index: int) -> tuple[int, int]:
    """Numbers of correctly classified positions and of all positions that are not ignored."""
    classes = labels.flatten()
    counts = classes != ignore_index
    right = scores_of_positions(scores, axis).argmax(1) == classes
    return int((right & counts).sum()), int(counts.sum())


def _fit(labels: Tensor, shape: Sequence[int], axis: int) -> bool:
    """True if the labels have one class per position of the scores, ignoring dimensions of size 1."""
    positions = [size for i, size in enumerate(shape) if i not in (0, axis) and size != 1]
    return [size for size in labels.shape[1:] if size != 1] == positions


def _text(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def task_loss(options: FinetuneOptions, context: Context, axis: int | None = None) -> TaskLoss:
    """Task loss; PassError if the user's function cannot be loaded."""
    if options.loss == "cross_entropy":
        ignored = options.ignore_index
        return lambda outputs, labels: cross_entropy(outputs[0], labels, axis=axis, ignore_index=ignored)
    if options.loss == "mse":
        return _labels_squared
    source = options.own_loss
    assert source is not None
    function = context.load(source)
    if not callable(function):
        raise PassError(
            f"loss {source}: is a {type(function).__name__}, not a function of outputs and labels"
        )
    return _own_loss(function, str(source))


def _labels_squared(outputs: Outputs, labels: Tensor) -> Tensor:
    if labels.numel() != outputs[0].numel():
        raise PassError(
            f"loss mse: {labels.numel()} labels for an output of {outputs[0].numel()} elements; give one per element"
        )
    return functional.mse_loss(outputs[0], labels.to(outputs[0].dtype).view_as(outputs[0]))


def _own_loss(function: Callable[..., object], place: str) -> TaskLoss:
    """Wraps the user's function; its exceptions are reported with the user's file and line."""

    def loss(outputs: Outputs, labels: Tensor) -> Tensor:
        try:
            value = function(outputs[0] if len(outputs) == 1 else tuple(outputs), labels)
        except Exception as err:  # the user's function may raise any error
            own = traceback.extract_tb(err.__traceback__)[1:2]
            line = "".join(f" (see {frame.filename}:{frame.lineno})" for frame in own)
            raise PassError(f"loss {place}: calling it raises {type(err).__name__}: {err}{line}") from err
        if not isinstance(value, Tensor) or value.numel() != 1:
            given = (
                f"a tensor of shape {tuple(value.shape)}"
                if isinstance(value, Tensor)
                else type(value).__name__
            )
            raise PassError(f"loss {place}: returns {given}; it must return a tensor with one element")
        if torch.is_grad_enabled() and not value.requires_grad:
            raise PassError(f"loss {place}: is not differentiable with respect to the outputs")
        return value.reshape(())

    return loss
