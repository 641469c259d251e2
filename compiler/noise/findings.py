"""What the report says about noise: ratios of all values, and where one is low, its sources and what helps.

ratios    every value and output, integers against floats
targets   outputs below the least ratio, and the first layers below it whose noise reaches an output
sources   the few values whose own noise burdens the targets most (`propagation`), with the reasons (`reasons`)
changes   tried one by one, measured at the targets (`trials`); those that help have their price predicted
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from ...ir import Graph, Node
from ...passes import Context, Cost
from ...passes.quantize import prepare
from ...specs.options import QuantizeOptions
from ...specs.options.least_snr import LeastSnr
from ..data import Samples
from ..report import LowLayer, Noise, NoiseSource, OutputRatio, TriedChange
from .propagation import Propagation, Source
from .ratios import Powers
from .reasons import Extent, Reason, extents, grid_mates, reasons_of
from .trials import Change, Trial, Trials

Price = Callable[[Graph, QuantizeOptions, Context], "Cost | None"]
"""Predicted cost of a float graph quantized with these options; None where it cannot be predicted."""

_MOST_SOURCES = 3
_MOST_LAYERS = 32  # low layers of which it is asked whether their noise reaches an output
_GAIN_DB = 3.0
_TENTH_DB = 10.0
_HUGE = 1e300  # JSON has no infinity


@dataclass(frozen=True)
class Findings:
    """Ratios of all values of the integer graph by name, and what the report says of them."""

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
    price: Price,
    has_outliers: bool = False,
) -> Findings:
    """Findings about the integer graph that `quantize` made of `reference` with these options and this context.

    With outliers in the calibration data other observers are tried even where nothing is low.
    """
    floats = prepare(reference, context.calibration[: options.samples]).graph.params
    propagation = Propagation(reference, integer, floats, calibration)
    names = [v.name for v in integer.results if v.type.dtype.is_floating or v.type.is_quantized]
    snr_db = {name: propagation.ratio(name) for name in names}
    least = options.least_snr
    powers = propagation.output_powers()
    outputs = tuple(
        _output(name, power, least) for name, power in zip(integer.output_names, powers, strict=True)
    )
    samples = sum(piece.samples for piece in propagation.pieces)
    if least is None:
        return Findings(snr_db, Noise(samples=samples, outputs=outputs))
    layers = _low_layers(propagation, snr_db, least)
    noise = Noise(samples=samples, outputs=outputs, low_layers=layers)
    bench = _Bench(reference, integer, options, context, propagation, noise, least, price)
    if noise.is_low:
        seen = calibration.first(options.samples)
        return Findings(snr_db, bench.explained(seen))
    return Findings(snr_db, noise, bench.observer_notes() if has_outliers else ())


def _output(name: str, power: Powers, least: LeastSnr | None) -> OutputRatio:
    return OutputRatio(
        name=name,
        snr_db=finite(power.snr_db),
        signal=min(sum(power.signal), _HUGE),
        noise=min(sum(power.noise), _HUGE),
        least_db=None if least is None else least.output,
        is_low=least is not None and power.is_below(least.output),
    )


def _low_layers(
    propagation: Propagation, snr_db: Mapping[str, float], least: LeastSnr
) -> tuple[LowLayer, ...]:
    """The first low values on each path whose noise reaches an output; what is behind them is not looked at."""
    graph = propagation.graph
    behind = {_origin(graph, value.name) for value in graph.outputs}
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
                    module=_maker(graph, value.name).source.module,
                    snr_db=finite(snr_db[value.name]),
                    output=graph.output_names[worst],
                )
            )
    return tuple(found)


class _Bench:
    """Finds the sources of what is low, and tries changes."""

    def __init__(
        self,
        reference: Graph,
        integer: Graph,
        options: QuantizeOptions,
        context: Context,
        propagation: Propagation,
        noise: Noise,
        least: LeastSnr,
        price: Price,
    ) -> None:
        self._graph, self._propagation, self._noise, self._price = integer, propagation, noise, price
        pairs = zip(integer.outputs, noise.outputs, strict=True)
        outputs = [(value.name, row) for value, row in pairs]
        self._shown = {name: row.name for name, row in outputs} | {x.name: x.name for x in noise.low_layers}
        self._targets = {name: least.output for name, row in outputs if row.is_low}
        self._targets |= {layer.name: least.layer for layer in noise.low_layers}
        self._outputs = [name for name, _ in outputs]
        measured = [*dict.fromkeys([*self._targets, *self._outputs])]
        self._trials = Trials(reference, options, context, propagation, measured)
        self._observer = options.observer.kind
        self._plain: Cost | None = None

    def explained(self, calibration: Samples) -> Noise:
        """The noise with its sources, their reasons and what was tried."""
        found = self._propagation.sources(self._targets, most=_MOST_SOURCES)
        mates = dict.fromkeys(name for source in found for name in grid_mates(self._graph, source.name))
        seen = extents(self._graph, self._propagation.floats, calibration, list(mates))
        before = self._trials.measure(self._trials.unchanged())
        sources = tuple(self._source(source, seen, before) for source in found)
        at = max(self._targets, key=lambda name: self._targets[name] - before.snr_db.get(name, 0.0))
        changes = [self._tried(self._trials.measure(change), before, at) for change in self._trials.whole()]
        if not any(row.is_enough for row in (*changes, *(row for s in sources for row in s.changes))):
            changes += [self._tried(self._trials.measure(c), before, at) for c in self._joined(found, seen)]
        return self._noise.model_copy(update={"sources": sources, "changes": tuple(changes)})

    def _joined(self, found: Sequence[Source], seen: Mapping[str, Extent]) -> Iterator[Change]:
        """What keeps integers at all sources together, also with wide activations everywhere."""
        local = [
            change
            for source in found
            for change in self._trials.local(source.name, self._reasons(source, seen))
            if change.is_of_options and not change.is_in_float
        ]
        wide = [change for change in self._trials.whole() if change.options.activations == "int16"]
        kept = list({change.text: change for change in local}.values())
        for changes in (kept, [*kept, *wide]):
            if len(changes) > 1:
                yield self._trials.together(changes)

    def observer_notes(self) -> tuple[str, ...]:
        """What other observers give the outputs, those that help."""
        before = self._trials.measure(self._trials.unchanged())
        notes = []
        for change in self._trials.whole():
            if change.text.startswith("observer"):
                after = self._trials.measure(change)
                gains = {name: after.snr_db[name] - before.snr_db[name] for name in after.snr_db}
                best = max(gains, key=gains.__getitem__, default=None)
                if best is not None and gains[best] >= _GAIN_DB and min(gains.values()) >= 0:
                    notes.append(
                        f"outliers in the calibration data: `{change.text}` was tried and takes output "
                        f"{self._shown[best]} from {before.snr_db[best]:.1f} to {after.snr_db[best]:.1f} dB"
                    )
        return tuple(notes)

    def _source(self, source: Source, seen: Mapping[str, Extent], before: Trial) -> NoiseSource:
        """A source with what was tried there."""
        at = source.burdened
        reasons = self._reasons(source, seen)
        trials = [self._trials.measure(change) for change in self._trials.local(source.name, reasons)]
        node = _maker(self._graph, source.name)
        all_noise = sum(self._propagation.powers(at).noise)
        part = source.loads[at] * self._propagation.allowed(at, self._targets[at])
        return NoiseSource(
            name=source.name,
            op=self._graph.producers[source.name].op.name,
            module=node.source.module,
            location=node.source.location,
            at=self._shown[at],
            share_percent=100 * min(part / all_noise, 1.0) if all_noise else 0.0,
            snr_db=finite(self._propagation.own_ratio(source.name)),
            reasons=tuple(reason.text for reason in reasons),
            changes=tuple(self._tried(trial, before, at) for trial in trials),
        )

    def _reasons(self, source: Source, seen: Mapping[str, Extent]) -> Sequence[Reason]:
        ratio = self._propagation.ratio(source.burdened)
        return reasons_of(self._propagation, source, seen, target_snr_db=ratio, observer=self._observer)

    def _tried(self, trial: Trial, before: Trial, at: str) -> TriedChange:
        old, new = before.snr_db.get(at, -math.inf), trial.snr_db.get(at, -math.inf)
        helps = new >= old + _GAIN_DB and new > -math.inf
        flash, cycles = self._added(trial.change) if helps and trial.change.is_of_options else (None, None)
        return TriedChange(
            change=trial.change.text,
            at=self._shown[at],
            snr_db_before=finite(old),
            snr_db_after=finite(new),
            helps=helps,
            is_enough=new >= self._targets.get(at, -math.inf),
            flash_bytes=flash,
            cycles=cycles,
        )

    def _added(self, change: Change) -> tuple[int | None, int | None]:
        """Flash and cycles that a change adds."""
        if self._plain is None:
            self._plain = self._price(self._trials.graph, self._trials.options, self._trials.context)
        after = self._price(self._trials.graph, change.options, self._trials.context)
        if self._plain is None or after is None:
            return None, None
        return after.flash_bytes - self._plain.flash_bytes, after.cycles - self._plain.cycles


def finite(ratio: float) -> float | None:
    """A ratio for the report, which has no infinities."""
    return ratio if math.isfinite(ratio) else None


def _origin(graph: Graph, name: str) -> str:
    """The value that conversions make this one of."""
    while name in graph.producers and graph.producers[name].op.name in (
        "quantize",
        "dequantize",
        "requantize",
    ):
        name = graph.producers[name].operands[0].name
    return name


def _maker(graph: Graph, name: str) -> Node:
    """The node that computes a value, conversions passed over where they follow one."""
    return graph.producers.get(_origin(graph, name), graph.producers[name])
