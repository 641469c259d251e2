"""The metric of an evaluation: found and checked before any pass runs, measured on one output of each form.

top1        share of samples whose largest entry is at the label, or whose single integer is the label
agreement   share of samples decided as the captured model decides them
mse         mean squared error against the labels
snr         10 log10 of the captured model's output over the difference from it, in dB
file.py:f   f(output, labels), a function of the user's: tensors [n, ...] in, labels None without any
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..ir import Graph, TensorType, run, run_integer
from ..specs import Evaluation, FileSource, ModuleSource
from .data import Samples, correct_answers, decisions, own_batch, run_samples, snr_db
from .errors import Problem, UserError, first_line, shorten
from .interface import Interface
from .loading import find_source
from .measure import is_quantized
from .report import Measurement
from .sources import user_line

OwnMetric = Callable[[Tensor, Tensor | None], object]

_UNITS = {"top1": "%", "agreement": "%", "snr": "dB"}


@dataclass(frozen=True)
class Metric:
    """A metric, and the output that it is measured on, by position and name.

    `classes` is the number of values of the output for each sample, `own` the function of a metric of the user's.
    """

    name: str
    output: int
    output_name: str
    classes: int = 0
    own: OwnMetric | None = None


def find_metric(evaluation: Evaluation, graph: Graph, samples: Samples, *, folder: Path) -> Metric | None:
    """The metric of a spec for a captured model; None for a model without outputs.

    UserError where there is no such output or function, where the output decides nothing, and for labels that
    cannot be what the metric compares with.
    """
    place, chosen = str(evaluation.origin), evaluation.measured
    if not graph.outputs:
        return None
    output = find_output(evaluation.output, graph.output_names, place="data.evaluation.output")
    name = graph.output_names[output]
    if isinstance(chosen, FileSource | ModuleSource):
        found = find_source(chosen, folder=folder)
        if not callable(found):
            fact = f"{chosen.attribute} is a {type(found).__name__}"
            raise UserError(
                Problem("D111", str(chosen), fact, "name a function of the output and the labels")
            )
        return Metric(chosen.attribute, output, name, own=found)
    type_, batch = graph.outputs[output].type, own_batch(graph.inputs, samples)
    metric = Metric(chosen, output, name, type_.numel // batch)
    if chosen in ("top1", "agreement"):
        _check_decides(metric, type_, batch)
    if chosen == "top1":
        check_classes(samples, metric, place)
    if chosen == "mse":
        _check_values(samples, metric, place)
    return metric


def find_top1(name: str | None, interface: Interface, samples: Samples, *, place: str) -> Metric | None:
    """Accuracy of a compiled network on the output of this name, the first for None; None without labels."""
    if samples.labels is None:
        return None
    option = "--output" if name is None else f"--output {shorten(name)}"
    output = find_output(name, interface.output_names, place=option)
    port, batch = interface.outputs[output], own_batch(interface.input_values, samples)
    metric = Metric("top1", output, port.name, port.elements // batch)
    _check_decides(metric, port.type, batch)
    check_classes(samples, metric, place)
    return metric


def find_output(name: str | None, names: Sequence[str], *, place: str) -> int:
    """The position of the output of this name, the first for None; UserError where there is none."""
    if name is None:
        return 0
    if name not in names:
        raise UserError(
            Problem("D112", place, f"there is no output {name!r}", f"there are {', '.join(names)}")
        )
    return names.index(name)


def check_classes(samples: Samples, metric: Metric, place: str) -> None:
    """UserError unless the labels are one class for each sample, from 0; an output of one number bounds them not."""
    labels, classes = samples.labels, metric.classes
    assert labels is not None
    if labels.shape != (len(samples),):
        given = "x".join(map(str, labels.shape))
        fact = f"labels of shape {given} name no class for each of {len(samples)} samples"
        raise UserError(Problem("D109", place, fact, "give one number for each, from 0"))
    top = classes - 1 if classes > 1 else math.inf
    wrong = [i for i, label in enumerate(labels.tolist()) if label != int(label) or not 0 <= label <= top]
    if wrong:
        shown = ", ".join(f"{labels[i].item():g} in sample {i}" for i in wrong[:3])
        fact = f"{len(wrong)} of {len(samples)} labels name no class of the output {metric.output_name!r}: {shown}"
        known = f"are whole numbers from 0 to {top}" if classes > 1 else "are whole numbers from 0"
        raise UserError(Problem("D109", place, fact, f"the classes {known}"))


def _check_decides(metric: Metric, type_: TensorType, batch: int) -> None:
    """UserError unless the output has for each sample one number for each class, or the number of the class."""
    shape, dtype = "x".join(map(str, type_.shape)) or "a single number", type_.dtype.torch
    place, advice = f"{metric.name} of {metric.output_name}", "choose another `output`, or another metric"
    if batch > 1 and type_.shape[:1] != (batch,):
        fact = f"the output, {shape}, has no row for each of the {batch} samples of a batch"
        raise UserError(Problem("D110", place, fact, advice))
    if dtype.is_complex or (metric.classes < 2 and dtype.is_floating_point):
        fact = f"the output, {shape}, has no number for each class"
        raise UserError(Problem("D110", place, fact, advice))


def measure_forms(
    captured: Graph, compiled: Graph, samples: Samples, metric: Metric
) -> tuple[Measurement, ...]:
    """The metric of the captured model, unless it is what is compared with, and of the compiled graph."""
    with torch.no_grad():
        reference = run_samples(captured, samples)[metric.output]
        samples = samples.first(samples.calls(captured.inputs) * own_batch(captured.inputs, samples))
        is_integer = is_quantized(compiled)
        output = run_samples(compiled, samples, interpreter=run_integer if is_integer else run)[metric.output]
    forms = [("integer" if is_integer else "rewritten float", output)]
    if metric.name not in ("agreement", "snr") or metric.own:
        forms.insert(0, ("float model", reference))
    return tuple(_measurement(metric, stage, form, reference, samples) for stage, form in forms)


def _measurement(
    metric: Metric, stage: str, output: Tensor, reference: Tensor, samples: Samples
) -> Measurement:
    labels, count, correct = samples.labels, len(samples), None
    if metric.own is not None:
        value = _own_value(metric.own, metric.name, output, labels)
    elif metric.name == "snr":
        value = snr_db(reference, output)
    elif metric.name == "mse":
        assert labels is not None
        value = (output.flatten().double() - labels.flatten().double()).square().mean().item()
    else:
        wanted = decisions(reference, count) if metric.name == "agreement" else labels
        assert wanted is not None
        correct = correct_answers(output, wanted)
        value = 100 * correct / count
    return Measurement(
        stage=stage,
        metric=metric.name,
        output=metric.output_name,
        value=value,
        unit="" if metric.own else _UNITS.get(metric.name, ""),
        correct=correct,
        samples=count,
    )


def _own_value(function: OwnMetric, name: str, output: Tensor, labels: Tensor | None) -> float:
    advice = "it takes the output and the labels, and gives a number"
    try:
        value = float(function(output.clone(), None if labels is None else labels.clone()))  # type: ignore[arg-type]  # checked by failing
    except Exception as err:  # the user's function may raise anything
        line = user_line(err)
        fact = f"calling it raises {first_line(err)}"
        raise UserError(Problem("D111", f"metric {name}", fact, f"see {line}" if line else advice)) from err
    if math.isnan(value):
        raise UserError(Problem("D111", f"metric {name}", "its value is NaN", advice))
    return value


def _check_values(samples: Samples, metric: Metric, place: str) -> None:
    labels, size = samples.labels, metric.classes
    if labels is not None and labels.numel() != len(samples) * size:
        given = "x".join(map(str, labels.shape))
        fact = f"labels of shape {given} are not {size} numbers for each of {len(samples)} samples"
        advice = f"give one for each number of the output {metric.output_name!r}"
        raise UserError(Problem("D109", place, fact, advice))
