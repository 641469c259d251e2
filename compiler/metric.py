"""The metric of an evaluation: resolved and checked before any pass runs, measured on one output of each form of the
network.

top1        share of samples, or positions, whose largest entry is at the label, or whose integer is the label
agreement   share of samples, or positions, decided as the captured model decides them
mse         mean squared error against the labels
snr         10 log10 of the captured model's output over the difference from it, in dB
file.py:f   f(output, labels), a function of the user's: tensors [n, ...] in, labels None without any
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..ir import Graph, TensorType, run, run_integer
from ..specs import Evaluation, FileSource, ModuleSource
from .data import Samples, own_batch, run_samples, snr_db
from .errors import Problem, UserError, first_line
from .frontend.sources import user_line
from .loading import find_source
from .measure import is_quantized
from .report import Measurement

OwnMetric = Callable[[Tensor, Tensor | None], object]

COMPARING = ("agreement", "snr")
"""Metrics that compare with the captured model."""

_UNITS = {"top1": "%", "agreement": "%", "snr": "dB"}


@dataclass(frozen=True)
class Scores:
    """Class scores of an output: its shape for one sample, and the class dimension.

    If `axis` is None there is no such dimension, and integers are class indices themselves.
    """

    shape: tuple[int, ...]
    axis: int | None

    @property
    def classes(self) -> int | None:
        """Number of classes; None if it is unbounded."""
        return None if self.axis is None else self.shape[self.axis]

    def decisions(self, output: Tensor, count: int) -> Tensor:
        """The class of each position of `count` samples."""
        rows = output.reshape(count, *self.shape)
        if self.axis is None:
            return rows.to(torch.int64)
        return (rows.to(torch.uint8) if rows.dtype is torch.bool else rows).argmax(1 + self.axis)


@dataclass(frozen=True)
class Metric:
    """A metric, and the position and name of its output.

    `scores` are those of a metric that counts decisions; `own` is the function of a user's metric.
    """

    name: str
    output: int
    output_name: str
    scores: Scores | None = None
    own: OwnMetric | None = None


def find_metric(
    evaluation: Evaluation,
    outputs: Mapping[str, TensorType],
    samples: Samples,
    *,
    batch: int,
    folder: Path,
    place: str = "data.evaluation.output",
) -> Metric | None:
    """The metric for a network with these outputs that takes `batch` samples at once; None for a network without
    outputs.

    UserError if the output or the function does not exist, if the output has no decisions, and for labels with which
    the metric cannot compare. Messages show `place`.
    """
    origin, chosen = str(evaluation.origin), evaluation.measured
    if not outputs:
        return None
    index = find_output(evaluation.output, list(outputs), place=place)
    name, type_ = list(outputs.items())[index]
    if isinstance(chosen, FileSource | ModuleSource):
        found = find_source(chosen, folder=folder)
        if not callable(found):
            fact = f"{chosen.attribute} is a {type(found).__name__}"
            raise UserError(
                Problem("D111", str(chosen), fact, "name a function of the output and the labels")
            )
        return Metric(chosen.attribute, index, name, own=found)
    if chosen == "mse":
        _check_values(samples, type_.numel // batch, name, origin)
    if chosen not in ("top1", "agreement"):
        return Metric(chosen, index, name)
    labels = samples.labels if chosen == "top1" else None
    scores = _find_scores(f"{chosen} of {name}", type_, batch, evaluation.class_axis, labels, origin)
    if labels is not None:
        _check_classes(labels, scores, name, origin)
    return Metric(chosen, index, name, scores)


def find_output(name: str | None, names: Sequence[str], *, place: str) -> int:
    """The position of the output with this name, the first one for None; UserError if it does not exist."""
    if name is None:
        return 0
    if name not in names:
        raise UserError(Problem("D112", place, f"no output {name!r}", f"there are {', '.join(names)}"))
    return names.index(name)


def _find_scores(
    what: str, type_: TensorType, batch: int, wanted: int | None, labels: Tensor | None, origin: str
) -> Scores:
    """Class dimension of an output: from the spec, else inferred; UserError if it is ambiguous.

    `labels` are the classes of samples or positions; None if decisions are compared with those of another network.
    """
    shape, is_whole = type_.shape, not type_.dtype.is_floating
    text, elsewhere = _text(shape) or "a single number", "another metric, such as `file.py:function`"

    def refusal(fact: str, advice: str) -> UserError:
        return UserError(Problem("D110", what, f"the output, {text}, {fact}", f"{advice}, or {elsewhere}"))

    if batch > 1 and shape[:1] != (batch,):
        raise refusal(f"has no row for each of the {batch} samples of a batch", "choose another `output`")
    lead = int(shape[:1] == (batch,))
    sample = shape[lead:]
    wide = [i for i, size in enumerate(sample) if size > 1]
    if wanted is not None:
        axis = wanted % len(shape) - lead if -len(shape) <= wanted < len(shape) else -1
        if axis < 0 or sample[axis] < 2:
            raise refusal(f"has less than two classes along dimension {wanted}", "correct `class_axis`")
        axes: list[int | None] = [axis] if labels is None or _fits(labels, _without(sample, axis)) else []
    elif labels is None:
        axes = [None] if is_whole else [*wide]
    else:
        axes = [i for i in wide if _fits(labels, _without(sample, i))]
        axes = [None] if is_whole and _fits(labels, sample) else axes
    if not wide and not is_whole:
        raise refusal("has no number for each class", "choose another `output`")
    if not axes:
        assert labels is not None
        fact = f"labels of shape {_text(labels.shape)} have no class for each of {len(labels)} samples"
        fact += f", or each position of the output, {text}" if len(wide) > 1 else ""
        raise UserError(Problem("D109", origin, fact, f"give one number for each, from 0, or {elsewhere}"))
    if len(axes) > 1:
        dimensions = " or ".join(str(i + lead) for i in axes if i is not None)
        raise refusal(f"may have its classes along dimension {dimensions}", "set `class_axis`")
    return Scores(sample, axes[0])


def _without(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return shape[:axis] + shape[axis + 1 :]


def _fits(labels: Tensor, positions: Sequence[int]) -> bool:
    """True if there is one label for each sample and position; dimensions of size one are ignored."""
    return [n for n in labels.shape[1:] if n > 1] == [n for n in positions if n > 1]


def _text(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def _check_classes(labels: Tensor, scores: Scores, name: str, origin: str) -> None:
    """UserError unless the labels are class indices."""
    top = math.inf if scores.classes is None else scores.classes - 1
    each = labels[0].numel()
    flat = enumerate(labels.flatten().tolist())
    wrong = [(i // each, label) for i, label in flat if label != int(label) or not 0 <= label <= top]
    if wrong:
        shown = ", ".join(f"{label:g} in sample {i}" for i, label in wrong[:3])
        fact = f"{len(wrong)} of {labels.numel()} labels are not classes of the output {name!r}: {shown}"
        known = "are whole numbers from 0" + ("" if scores.classes is None else f" to {top}")
        raise UserError(Problem("D109", origin, fact, f"the classes {known}"))


def measure_forms(
    captured: Graph, compiled: Graph, samples: Samples, metric: Metric
) -> tuple[Measurement, ...]:
    """The metric of the captured model, unless the metric compares with it, and of the compiled graph."""
    with torch.no_grad():
        reference = run_samples(captured, samples)[metric.output]
        samples = samples.first(samples.calls(captured.inputs) * own_batch(captured.inputs, samples))
        is_integer = is_quantized(compiled)
        output = run_samples(compiled, samples, interpreter=run_integer if is_integer else run)[metric.output]
    stage = "integer" if is_integer else "rewritten float"
    if metric.name in COMPARING and not metric.own:
        return (measure(metric, stage, output, samples, reference=reference),)
    return tuple(
        measure(metric, name, form, samples) for name, form in (("float model", reference), (stage, output))
    )


def measure(
    metric: Metric, stage: str, output: Tensor, samples: Samples, *, reference: Tensor | None = None
) -> Measurement:
    """The metric of an output for all samples; `reference` is the output of the captured model to compare with."""
    labels, correct, compared = samples.labels, None, None
    if metric.own is not None:
        value = _own_value(metric.own, metric.name, output, labels)
    elif metric.scores is not None:
        count = len(samples)
        wanted = labels if reference is None else metric.scores.decisions(reference, count)
        assert wanted is not None
        found = metric.scores.decisions(output, count)
        correct, compared = int((found.flatten() == wanted.flatten()).sum()), found.numel()
        value = 100 * correct / compared
    elif metric.name == "snr":
        assert reference is not None
        value = snr_db(reference, output)
    else:
        assert labels is not None
        value = (output.flatten().double() - labels.flatten().double()).square().mean().item()
    return Measurement(
        stage=stage,
        metric=metric.name,
        output=metric.output_name,
        value=value,
        unit="" if metric.own else _UNITS.get(metric.name, ""),
        correct=correct,
        compared=compared,
        samples=len(samples),
    )


def _own_value(function: OwnMetric, name: str, output: Tensor, labels: Tensor | None) -> float:
    advice = "it takes the output and the labels, and returns a number"
    try:
        value = float(function(output.clone(), None if labels is None else labels.clone()))  # type: ignore[arg-type]  # checked by failing
    except Exception as err:  # the user's function may raise any error
        line = user_line(err)
        fact = f"calling it raises {first_line(err)}"
        raise UserError(Problem("D111", f"metric {name}", fact, f"see {line}" if line else advice)) from err
    if math.isnan(value):
        raise UserError(Problem("D111", f"metric {name}", "its value is NaN", advice))
    return value


def _check_values(samples: Samples, size: int, name: str, origin: str) -> None:
    labels = samples.labels
    if labels is not None and labels.numel() != len(samples) * size:
        fact = (
            f"labels of shape {_text(labels.shape)} are not {size} numbers for each of {len(samples)} samples"
        )
        advice = f"give one label for each number of the output {name!r}, or another metric, such as `file.py:function`"
        raise UserError(Problem("D109", origin, fact, advice))
