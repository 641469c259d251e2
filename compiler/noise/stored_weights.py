"""Noise of stored weights at the outputs: the graph after `weight_only` against the one before, on a few samples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ...ir import Graph, run
from ...passes import Context, weight_only
from ...specs.options import Gptq, Nearest, WeightOnlyOptions
from ...specs.options.least_snr import LeastSnr
from ..report import Noise, TriedChange
from .findings import Findings, change_of_options, output_ratio
from .ratios import Powers


def examine_stored(
    reference: Graph,
    stored: Graph,
    calls: Sequence[Sequence[Tensor]],
    options: WeightOnlyOptions | None,
    context: Context,
) -> Findings:
    """Ratios of the outputs and, for low ones, changes of the options (if given) with the ratios that they reach.

    Integers among the outputs, such as caches in codes, have no ratio.
    """
    least = LeastSnr()
    powers = _powers(reference, stored, calls)
    names = [stored.output_names[index] for index in _measured(stored)]
    outputs = tuple(output_ratio(name, power, least) for name, power in zip(names, powers, strict=True))
    noise = Noise(samples=len(calls), outputs=outputs)
    if noise.is_low and options is not None:
        tried = []
        for name, value in _changes(options, context):
            changed = weight_only(reference, options.model_copy(update={name: value}), context).graph
            text = value if isinstance(value, str) else value.kind
            tried.append(change_of_options({name: text}, outputs, _powers(reference, changed, calls), least))
        noise = noise.model_copy(update={"changes": tuple(sorted(tried, key=_gain, reverse=True))})
    return Findings({}, noise)


def _changes(options: WeightOnlyOptions, context: Context) -> Iterator[tuple[str, str | Gptq]]:
    """Options with other values that lose less."""
    if options.activations == "int8":
        yield "activations", "float32"
    if options.budget is None and options.weights != "int8":
        yield "weights", "int8"
    if isinstance(options.rounding, Nearest) and len(context.calibration):
        yield "rounding", Gptq()


def _measured(graph: Graph) -> list[int]:
    """Positions of the outputs that are floats, or of all if none is."""
    every = range(len(graph.outputs))
    return [index for index in every if graph.outputs[index].type.dtype.is_floating] or list(every)


def _powers(reference: Graph, stored: Graph, calls: Sequence[Sequence[Tensor]]) -> list[Powers]:
    measured = _measured(stored)
    parts: list[list[Powers]] = [[] for _ in measured]
    with torch.no_grad():
        for inputs in calls:
            expected, actual = run(reference, inputs), run(stored, inputs)
            for part, index in zip(parts, measured, strict=True):
                part.append(Powers.of(expected[index], actual[index], samples=1))
    return [Powers.joined(part) for part in parts]


def _gain(change: TriedChange) -> tuple[bool, float]:
    after = [effect.snr_db_after for effect in change.effects]
    return change.is_enough, min((ratio if ratio is not None else 1e9 for ratio in after), default=0.0)
