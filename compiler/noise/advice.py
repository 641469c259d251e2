"""Causes of low ratios, and changes that help: each is tried, measured at all targets, and its cost predicted.

targets   outputs below the least ratio, and the first layers below it whose noise reaches another output
sources   the few values whose own noise affects the targets most (`propagation`), with the reasons (`reasons`)
changes   one by one; if none of them is enough, several together, and if outliers are a reason, one by one again for
          the sources that remain in a calibration without the outliers (`candidates`, `trials`)
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from ...ir import Graph
from ...passes import Context, Cost, PassError
from ...specs.options import AdaRound, QuantizeOptions
from ...specs.options.least_snr import LeastSnr
from ..data import Samples
from ..report import Effect, Noise, NoiseSource, TriedChange
from .candidates import Candidates, Cause, cause_of, observers
from .changes import Change, settings
from .propagation import Propagation, origin_of
from .ratios import Powers, finite
from .reasons import extents, grid_mates, reasons_of
from .trials import Trials

Price = Callable[[Graph, QuantizeOptions, Context], "Cost | None"]
"""Predicted cost of a float graph quantized with these options; None without a prediction, PassError if the
target does not support it."""
Accepts = Callable[[Mapping[str, str]], bool]
"""True if the spec accepts these settings, by option of the pass or by path."""

_MOST_SOURCES = 3
_MOST_TRIALS = 40
_MOST_LEARNED = 2  # changes that are measured with the learned rounding of the spec
_GAIN_DB = 3.0
_LOST_DB = 200.0  # missing ratio if there is no signal


@dataclass(frozen=True)
class Advised:
    """The spec under advice: costs, accepted settings, positions of excluded samples."""

    price: Price
    accepts: Accepts
    excluded: Collection[int] = ()

    def positions(self, count: int) -> list[int]:
        """Positions in the file of this many used samples."""
        return [p for p in range(count + len(self.excluded)) if p not in self.excluded][:count]


@dataclass(frozen=True)
class _Trial:
    """A change, its settings in the spec, and the resulting powers, by target."""

    change: Change
    settings: Mapping[str, str]
    powers: Mapping[str, Powers]


class Adviser:
    """Looks for the sources of noise, and for changes that help."""

    def __init__(
        self,
        reference: Graph,
        options: QuantizeOptions,
        context: Context,
        propagation: Propagation,
        calibration: Samples,
        noise: Noise,
        least: LeastSnr,
        spec: Advised,
    ) -> None:
        self._propagation, self._graph, self._noise, self._spec = propagation, propagation.graph, noise, spec
        self._reference, self._options, self._context = reference, options, context
        self._calibration = calibration
        outputs = [(v.name, row) for v, row in zip(self._graph.outputs, noise.outputs, strict=True)]
        low = {row.name for _, row in outputs if row.is_low}
        layers = [layer.name for layer in noise.low_layers if layer.output not in low]
        self._targets = {name: least.output for name, row in outputs if row.is_low}
        self._targets |= dict.fromkeys(layers, least.layer)
        self._shown = {name: name for name in layers} | {name: row.name for name, row in outputs}
        self._trials = Trials(reference, options, context, propagation, calibration, list(self._shown))
        self._positions = spec.positions(len(calibration))
        self._plain: Cost | None = None

    def explained(self) -> Noise:
        """The noise with its sources, their reasons, and the changes that were tried."""
        causes = self._causes(self._propagation, self._calibration, frozenset())
        ranked = self._ranked(self._tried(causes), self._trials.measure(Change(), nearest=True))
        if isinstance(self._options.rounding, AdaRound):
            helping = [trial for trial, row in ranked if row.helps and row.is_of_spec][:_MOST_LEARNED]
            learned = [replace(trial, powers=self._trials.measure(trial.change)) for trial in helping]
            ranked = self._ranked(learned, self._trials.measure(Change()))
        return self._noise.model_copy(
            update={
                "sources": tuple(self._source(cause) for cause in causes),
                "changes": tuple(row for _, row in ranked),
            }
        )

    def observer_notes(self) -> tuple[str, ...]:
        """Notes on other observers that raise the ratios of the outputs."""
        before = self._trials.measure(Change(), nearest=True)
        notes = []
        for change in observers(self._options):
            after = self._trials.measure(change, nearest=True)
            gains = {name: after[name].snr_db - before[name].snr_db for name in after}
            best = max(gains, key=gains.__getitem__, default=None)
            if best is not None and gains[best] >= _GAIN_DB and min(gains.values()) >= 0:
                notes.append(
                    f"outliers in the calibration data: `{self._text(change)}` was tried and takes output "
                    f"{self._shown[best]} from {before[best].snr_db:.1f} to {after[best].snr_db:.1f} dB"
                )
        return tuple(notes)

    def _causes(
        self, propagation: Propagation, calibration: Samples, excluded: frozenset[int]
    ) -> list[Cause]:
        """The sources in one of the integer graphs, which is calibrated without some samples."""
        graph = propagation.graph
        targets = {v.name: self._targets[v.name] for v in graph.results if v.name in self._targets}
        sources = propagation.sources(targets, most=_MOST_SOURCES) if targets else ()
        mates = dict.fromkeys(name for source in sources for name in grid_mates(graph, source.name))
        seen = extents(graph, propagation.floats, calibration.first(self._options.samples), list(mates))
        found = []
        for source in sources:
            reasons = reasons_of(
                propagation,
                source,
                seen,
                target_snr_db=propagation.ratio(source.burdened),
                observer=self._options.observer.kind,
                positions=[p for i, p in enumerate(self._positions) if i not in excluded],
            )
            found.append(cause_of(graph, source, reasons))
        return found

    def _source(self, cause: Cause) -> NoiseSource:
        at, name = cause.source.burdened, cause.source.name
        all_noise = sum(self._propagation.powers(at).noise)
        part = cause.source.loads[at] * self._propagation.allowed(at, self._targets[at])
        maker = self._graph.producers.get(origin_of(self._graph, name), self._graph.producers[name])
        return NoiseSource(
            name=name,
            op=self._graph.producers[name].op.name,
            module=maker.source.module,
            location=maker.source.location,
            at=self._shown[at],
            share_percent=100 * min(part / all_noise, 1.0) if all_noise else 0.0,
            snr_db=finite(self._propagation.own_ratio(name)),
            reasons=tuple(reason.text for reason in cause.reasons),
        )

    def _tried(self, causes: Sequence[Cause]) -> list[_Trial]:
        """Single changes; several together only if no single one that keeps integers is enough."""
        candidates = self._candidates(causes)
        trials: dict[tuple[str, ...], _Trial] = {}
        for changes in (candidates.single(), candidates.together(), self._without(candidates.outliers)):
            for change in changes:
                if len(trials) < _MOST_TRIALS:
                    self._try(change, trials)
            if any(t.change.is_of_integers and self._is_enough(t) for t in trials.values()):
                break
        return list(trials.values())

    def _without(self, outliers: frozenset[int]) -> Iterator[Change]:
        """Calibration without outliers: alone, and with each change for the sources that remain."""
        if not outliers:
            return
        without = Change(excluded=outliers)
        yield without
        integer, calibration = self._trials.quantized(without), self._calibration.without(outliers)
        if integer is not None:
            left = Propagation(self._reference, integer, self._propagation.floats, calibration)
            candidates = self._candidates(self._causes(left, calibration, outliers))
            for change in (*candidates.single(), *candidates.together()):
                if not change.excluded:
                    yield without.with_(change)

    def _candidates(self, causes: Sequence[Cause]) -> Candidates:
        return Candidates(
            self._trials.graph,
            self._trials.precisions,
            causes,
            can_exclude=not self._context.state,
            largest_beside=self._trials.largest_beside,
        )

    def _try(self, change: Change, trials: dict[tuple[str, ...], _Trial]) -> None:
        """Records a change with its powers, unless it is empty, was already tried, or is not accepted by the spec."""
        says = settings(change, self._trials.precisions, self._left_out(change))
        key = (*(f"{name}: {value}" for name, value in says.items()), change.words)
        if key in trials or not any(key) or (says and not self._spec.accepts(says)):
            return
        trials[key] = _Trial(change, says, self._trials.measure(change, nearest=True))

    def _left_out(self, change: Change) -> list[int]:
        """Positions of all samples that the spec then excludes."""
        return sorted({*self._spec.excluded, *(self._positions[index] for index in change.excluded)})

    def _text(self, change: Change) -> str:
        says = settings(change, self._trials.precisions, self._left_out(change))
        shown = ", ".join(f"{name}: {value}" for name, value in says.items())
        return "; ".join(filter(None, (shown, change.words)))

    def _is_enough(self, trial: _Trial) -> bool:
        return all(
            name in trial.powers and not trial.powers[name].is_below(least)
            for name, least in self._targets.items()
        )

    def _ranked(
        self, trials: Iterable[_Trial], before: Mapping[str, Powers]
    ) -> list[tuple[_Trial, TriedChange]]:
        """Trials with their rows, the best first: sufficient ones by cost, the others by the missing ratio."""
        rows = [(trial, self._row(trial, before)) for trial in trials]
        found = [(trial, row) for trial, row in rows if row is not None]
        return sorted(found, key=lambda pair: self._rank(*pair))

    def _rank(self, trial: _Trial, row: TriedChange) -> tuple[bool, float, bool, int, int]:
        lack = 0.0
        for name, least in self._targets.items():
            ratio = trial.powers[name].snr_db if name in trial.powers else -_LOST_DB
            lack += min(max(least - ratio, 0.0), _LOST_DB)
        if row.is_enough:
            lack = 0.0
        time = row.instructions if row.cycles is None else row.cycles
        time = int(not trial.change.is_of_integers) if time is None else time
        return not row.is_enough, lack, not row.is_of_spec, time, row.flash_bytes or 0

    def _row(self, trial: _Trial, before: Mapping[str, Powers]) -> TriedChange | None:
        """Report row of a trial; None for a change that the target does not support."""
        row = TriedChange(
            change=self._text(trial.change),
            settings=dict(trial.settings),
            is_of_spec=trial.change.is_of_spec,
            effects=tuple(self._effect(name, before, trial.powers) for name in self._targets),
        )
        if not row.helps or not row.is_of_spec:
            return row
        try:
            added = self._added(trial.change)
        except PassError:
            return None
        return row if added is None else row.model_copy(update=added)

    def _effect(self, name: str, before: Mapping[str, Powers], after: Mapping[str, Powers]) -> Effect:
        least, old = self._targets[name], before[name].snr_db
        new = after[name].snr_db if name in after else -float("inf")
        is_enough = name in after and not after[name].is_below(least)
        return Effect(
            at=self._shown[name],
            snr_db_before=finite(old),
            snr_db_after=finite(new),
            helps=new > old and (is_enough or new >= old + _GAIN_DB),
            is_enough=is_enough,
        )

    def _added(self, change: Change) -> dict[str, int] | None:
        """Flash, instructions and cycles that a change adds; None without a prediction."""
        graph, context = self._trials.graph, self._trials.context
        if self._plain is None:
            self._plain = self._spec.price(graph, self._options, context)
        after = self._spec.price(graph, change.applied_to(self._trials.precisions), context)
        if self._plain is None or after is None:
            return None
        added = {
            "flash_bytes": after.flash_bytes - self._plain.flash_bytes,
            "instructions": after.instructions - self._plain.instructions,
        }
        if after.cycles is not None and self._plain.cycles is not None:
            added["cycles"] = after.cycles - self._plain.cycles
        return added
