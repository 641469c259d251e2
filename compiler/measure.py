"""Figures on data: accuracy of each form of a network, and how far integers are from floats, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..ir import Graph, Value, run, run_integer
from .data import Samples, batches, correct_answers, own_batch, run_samples, snr_db, unrolled
from .errors import Problem, UserError
from .report import Measurement

_LAYER_SAMPLES = 16


def is_quantized(graph: Graph) -> bool:
    """True when any node computes on quantized values."""
    return any(v.type.is_quantized for node in graph.nodes for v in (*node.operands, *node.outputs))


def measure_forms(
    captured: Graph, compiled: Graph, samples: Samples, metric: str
) -> tuple[tuple[Measurement, ...], list[Tensor]]:
    """The metric of the captured model and of the compiled graph on `samples`, and the compiled graph's outputs.

    `top1` needs labels; `agreement` and `snr` compare the compiled graph with the captured model.
    """
    with torch.no_grad():
        reference = run_samples(captured, samples)
        samples = samples.first(len(reference[0]) if captured.outputs else None)
        interpreter = run_integer if is_quantized(compiled) else run
        outputs = run_samples(compiled, samples, interpreter=interpreter)
    stage = "integer" if is_quantized(compiled) else "rewritten float"
    rows = [] if metric != "top1" else [_top1("float model", reference[0], samples)]
    rows.append(_measurement(stage, metric, reference[0], outputs[0], samples))
    return tuple(rows), outputs


def check_labels(samples: Samples, captured: Graph, metric: str, place: str) -> None:
    """UserError where labels cannot be what `metric` compares the first output with."""
    labels, outputs = samples.labels, captured.outputs
    if labels is None or not outputs:
        return
    given, size = (
        "x".join(map(str, labels.shape)),
        outputs[0].type.numel // own_batch(captured.inputs, samples),
    )
    if metric == "top1" and labels.shape != (len(samples),):
        fact = f"labels of shape {given} name no class for each of {len(samples)} samples"
        raise UserError(Problem("D109", place, fact, "give one number for each, from 0"))
    if metric == "mse" and labels.numel() != len(samples) * size:
        fact = f"labels of shape {given} are not {size} numbers for each of {len(samples)} samples"
        raise UserError(Problem("D109", place, fact, "give one for each number of the first output"))


def layer_snr(reference: Graph, integer: Graph, samples: Samples) -> Mapping[str, float]:
    """Signal-to-noise ratio in dB of each value that both graphs compute under the same name, on a few samples."""
    few = unrolled(reference, samples.first(_LAYER_SAMPLES))
    wanted = {v.name for v in integer.results if v.type.is_quantized}
    with torch.no_grad():
        floats = _values(reference, few, wanted, exact=False)
        integers = _values(integer, few, wanted & floats.keys(), exact=True)
    whole = [
        name for name in integers if floats[name].shape == integers[name].shape
    ]  # no channel was removed
    return {name: snr_db(floats[name], integers[name]) for name in whole}


def _values(graph: Graph, samples: Samples, wanted: set[str], *, exact: bool) -> dict[str, Tensor]:
    interpreter = run_integer if exact else run
    parts: dict[str, list[Tensor]] = {}

    def observe(value: Value, tensor: Tensor) -> None:
        if value.name in wanted:
            grid = value.type.quantization if exact else None
            parts.setdefault(value.name, []).append(tensor if grid is None else grid.dequantize(tensor))

    for sized, inputs in batches(graph, samples, interpreter=interpreter):
        interpreter(sized, inputs, observe=observe)
    return {name: torch.cat([t.flatten() for t in tensors]) for name, tensors in parts.items()}


def _measurement(stage: str, metric: str, reference: Tensor, output: Tensor, samples: Samples) -> Measurement:
    if metric == "top1":
        return _top1(stage, output, samples)
    if metric == "agreement":
        return _share(stage, metric, correct_answers(output, reference.flatten(1).argmax(1)), len(samples))
    if metric == "mse":
        assert samples.labels is not None
        error = (output.flatten().double() - samples.labels.flatten().double()).square().mean().item()
        return Measurement(stage=stage, metric=metric, value=error, samples=len(samples))
    return Measurement(stage=stage, metric="snr", value=snr_db(reference, output), samples=len(samples))


def _top1(stage: str, output: Tensor, samples: Samples) -> Measurement:
    assert samples.labels is not None
    return _share(stage, "top1", correct_answers(output, samples.labels), len(samples))


def _share(stage: str, metric: str, correct: int, count: int) -> Measurement:
    return Measurement(
        stage=stage, metric=metric, value=100 * correct / count, correct=correct, samples=count
    )
