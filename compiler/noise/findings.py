"""Noise for the report: ratios of all values, and for low ones the sources and the changes that help."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ...ir import Graph, decode_codebooks
from ...passes import Context
from ...passes.quantize.quantization import prepare
from ...specs.options import QuantizeOptions
from ...specs.options.least_snr import LeastSnr
from ..data import Samples
from ..report import Effect, LowLayer, Noise, OutputRatio, TriedChange
from .advice import Advised, Adviser
from .propagation import Propagation, origin_of
from .ratios import Powers, finite

_MOST_LAYERS = 32  # number of low layers whose effect on outputs is tested
_TENTH_DB = 10.0
_HELPS_DB = 3.0
_HUGE = 1e300  # JSON has no infinity


@dataclass(frozen=True)
class Findings:
    """Ratios of all values of the integer graph by name, and the noise section of the report."""

    snr_db: Mapping[str, float]
    noise: Noise
    notes: tuple[str, ...] = ()


def examine(
    reference: Graph,
    integer: Graph,
    options: QuantizeOptions,
    context: Context,
    calibration: Samples,
    *,
    spec: Advised,
    has_outliers: bool = False,
) -> Findings:
    """Findings about the integer graph that `quantize` made of `reference` with these options and this context.

    With outliers in the calibration data, other observers are tried even if no ratio is low.
    """
    floats = prepare(reference, context.calibration[: options.samples]).graph.params
    integer = decode_codebooks(integer)
    propagation = Propagation(reference, integer, floats, calibration)
    names = [v.name for v in integer.results if v.type.dtype.is_floating or v.type.is_quantized]
    snr_db = {name: propagation.ratio(name) for name in names}
    least = options.least_snr
    powers = propagation.output_powers()
    outputs = tuple(
        output_ratio(name, power, least) for name, power in zip(integer.output_names, powers, strict=True)
    )
    samples = sum(piece.samples for piece in propagation.pieces)
    if least is None:
        return Findings(snr_db, Noise(samples=samples, outputs=outputs))
    layers = _low_layers(propagation, snr_db, least)
    noise = Noise(samples=samples, outputs=outputs, low_layers=layers)
    adviser = Adviser(reference, options, context, propagation, calibration, noise, least, spec)
    if noise.is_low:
        return Findings(snr_db, adviser.explained())
    return Findings(snr_db, noise, adviser.observer_notes() if has_outliers else ())


def output_ratio(name: str, power: Powers, least: LeastSnr | None) -> OutputRatio:
    """The ratio of an output for the report."""
    return OutputRatio(
        name=name,
        snr_db=finite(power.snr_db),
        signal=min(sum(power.signal), _HUGE),
        noise=min(sum(power.noise), _HUGE),
        least_db=None if least is None else least.output,
        is_low=least is not None and power.is_below(least.output),
    )


def change_of_options(
    settings: dict[str, str], outputs: Sequence[OutputRatio], powers: Sequence[Powers], least: LeastSnr
) -> TriedChange:
    """A change of a pass's options for the report: `powers` of all outputs after it; effects at those that are low."""
    effects = tuple(
        Effect(
            at=output.name,
            snr_db_before=output.snr_db,
            snr_db_after=finite(power.snr_db),
            helps=power.snr_db >= (output.snr_db or 0.0) + _HELPS_DB or not power.is_below(least.output),
            is_enough=not power.is_below(least.output),
        )
        for output, power in zip(outputs, powers, strict=True)
        if output.is_low
    )
    text = ", ".join(f"{name}: {value}" for name, value in settings.items())
    return TriedChange(change=text, settings=settings, is_of_spec=True, effects=effects)


def _low_layers(
    propagation: Propagation, snr_db: Mapping[str, float], least: LeastSnr
) -> tuple[LowLayer, ...]:
    """The first low values on each path whose noise reaches an output; values after them are not tested."""
    graph = propagation.graph
    behind = {origin_of(graph, value.name) for value in graph.outputs}
    found: list[LowLayer] = []
    tried = 0
    for node in graph.nodes:
        value = node.outputs[0]
        if any(v.name in behind for v in node.operands):
            behind.update(v.name for v in node.outputs)
            continue
        if value.name in behind or snr_db.get(value.name, math.inf) >= least.layer or tried == _MOST_LAYERS:
            continue
        tried += 1
        ratios = [p.snr_db for p in propagation.arrived(propagation.whole_noise(value.name))]
        worst = min(range(len(ratios)), key=ratios.__getitem__, default=None)
        if worst is not None and ratios[worst] <= least.output + _TENTH_DB:
            behind.add(value.name)
            found.append(
                LowLayer(
                    name=value.name,
                    module=graph.producers.get(origin_of(graph, value.name), node).source.module,
                    snr_db=finite(snr_db[value.name]),
                    output=graph.output_names[worst],
                )
            )
    return tuple(found)
