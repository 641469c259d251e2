"""What a student's answers cost: against labels, against the teacher's outputs, against layers of the teacher.

    loss = (1 - w) task(z, labels) + w T^2 KL(softmax(t / T) || softmax(z / T)) + v mean over layers |R h - g|^2 / |g|^2

z, t are the outputs of student and teacher (Hinton et al., 2015), h, g a layer's results in both, R a linear map of
channels that is learned along with the student where h has fewer (Romero et al., FitNets, 2015). Where outputs are no
class scores, the divergence is their mean squared difference.
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
from .hints import Hint

Outputs = Sequence[Tensor]
TaskLoss = Callable[[Outputs, Tensor], Tensor]


@dataclass(frozen=True)
class Objective:
    """The loss, put together: `task` where there are labels, `distill` where there is a teacher."""

    task: TaskLoss | None
    distill: Distillation | None
    hints: tuple[Hint, ...]
    are_scores: bool  # the first output is class scores

    @staticmethod
    def of(
        options: FinetuneOptions, context: Context, hints: Sequence[Hint], *, outputs: int, rank: int
    ) -> Objective:
        """The loss of these options for a graph of so many outputs, the first of this rank."""
        distill = options.distill if context.original is not None else None
        task = task_loss(options, context) if context.labels else None
        if task is None and options.own_loss is not None:
            raise PassError(f"loss {options.own_loss} needs labels; name them in `data.calibration`")
        if task is None and distill is None:
            raise PassError("there is nothing to learn from: give labels, or distill")
        is_classifier = task is not None or (outputs == 1 and rank == 2)
        return Objective(task, distill, tuple(hints), options.loss == "cross_entropy" and is_classifier)

    def __call__(
        self,
        outputs: Outputs,
        labels: Tensor | None,
        taught: Outputs | None,
        *,
        layers: Mapping[str, Tensor],
        shown: Mapping[str, Tensor],
        learned: Mapping[str, Tensor],
    ) -> Tensor:
        """One number for a batch; `layers` and `shown` hold the results of hinted layers, of student and teacher."""
        task = None if self.task is None or labels is None else self.task(outputs, labels)
        if self.distill is None or taught is None:
            assert task is not None
            return task
        soft = self._teaching(outputs, taught)
        loss = soft if task is None else (1 - self.distill.weight) * task + self.distill.weight * soft
        if self.hints and shown:
            errors = [hint.error(layers, shown, learned) for hint in self.hints]
            loss = loss + self.distill.layer_weight * torch.stack(errors).mean()
        return loss

    def _teaching(self, outputs: Outputs, taught: Outputs) -> Tensor:
        assert self.distill is not None
        if not self.are_scores:
            return mean_squared(outputs, taught)
        heat = self.distill.temperature
        z, t = (x[0].flatten(1) / heat for x in (outputs, taught))
        divergence = functional.kl_div(
            z.log_softmax(1), t.log_softmax(1), reduction="batchmean", log_target=True
        )
        return heat**2 * divergence


def mean_squared(outputs: Outputs, wanted: Outputs) -> Tensor:
    """The sum over outputs of their mean squared differences."""
    pairs = zip(outputs, wanted, strict=True)
    return torch.stack([functional.mse_loss(y, z) for y, z in pairs if y.is_floating_point()]).sum()


def cross_entropy(scores: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of class scores; PassError where the labels do not fit them.

    Labels are a class for each sample, or for each position of scores [n, positions, classes] or
    [n, classes, positions...], or the probability of each class in the shape of the scores.
    """
    if labels.shape == scores.shape and labels.ndim > 1:
        return functional.cross_entropy(scores, labels.to(scores.dtype))
    if labels.numel() == len(scores):
        rows = scores.flatten(1)
    elif labels.shape == scores.shape[:-1]:
        rows = scores.flatten(0, -2)
    elif scores.ndim > 1 and labels.shape == scores.movedim(1, -1).shape[:-1]:
        rows = scores.movedim(1, -1).flatten(0, -2)
    else:
        shapes = " and ".join("x".join(map(str, t.shape)) for t in (labels, scores))
        raise PassError(f"labels and scores have the shapes {shapes}; give one class for each sample")
    wrong = labels[(labels != labels.floor()) | (labels < 0) | (labels >= rows.shape[1])]
    if len(wrong):
        raise PassError(f"a label is {wrong[0].item():g}; there are {rows.shape[1]} classes, from 0")
    return functional.cross_entropy(rows, labels.flatten().long())


def task_loss(options: FinetuneOptions, context: Context) -> TaskLoss:
    """The loss against labels; PassError where the user's own cannot be had."""
    if options.loss == "cross_entropy":
        return lambda outputs, labels: cross_entropy(outputs[0], labels)
    if options.loss == "mse":
        return _labels_squared
    source = options.own_loss
    assert source is not None
    function = context.load(source)
    if not callable(function):
        raise PassError(
            f"loss {source}: is a {type(function).__name__}; name a function of outputs and labels"
        )
    return _own_loss(function, str(source))


def _labels_squared(outputs: Outputs, labels: Tensor) -> Tensor:
    if labels.numel() != outputs[0].numel():
        raise PassError(
            f"loss mse: {labels.numel()} labels for an output of {outputs[0].numel()} numbers; one for each is needed"
        )
    return functional.mse_loss(outputs[0], labels.to(outputs[0].dtype).view_as(outputs[0]))


def _own_loss(function: Callable[..., object], place: str) -> TaskLoss:
    """The user's function, with its mistakes told as the user's."""

    def loss(outputs: Outputs, labels: Tensor) -> Tensor:
        try:
            value = function(outputs[0] if len(outputs) == 1 else tuple(outputs), labels)
        except Exception as err:  # the user's function may raise anything
            last = traceback.extract_tb(err.__traceback__)[-1]
            raise PassError(
                f"loss {place}: calling it raises {type(err).__name__}: {err} (see {last.filename}:{last.lineno})"
            ) from err
        if not isinstance(value, Tensor) or value.numel() != 1:
            given = (
                f"a tensor of shape {tuple(value.shape)}"
                if isinstance(value, Tensor)
                else type(value).__name__
            )
            raise PassError(f"loss {place}: gives {given}; it must give a tensor of one number")
        if torch.is_grad_enabled() and not value.requires_grad:
            raise PassError(
                f"loss {place}: does not depend on the outputs in a way that can be differentiated"
            )
        return value.reshape(())

    return loss
