"""Text about quantization noise and float layers, as lines for the terminal and as problems."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from .model import Effect, FloatLayer, LowLayer, Noise, NoiseSource, OutputRatio, Report, TriedChange

_SHOWN = 4  # numbers of changes, and of effects of each


def noise_lines(report: Report) -> tuple[str, ...]:
    """Layers that stay in float, then low outputs and layers with sources and changes that help; empty if nothing is
    low.
    """
    floats = (float_line(layer) for layer in report.float_layers)
    return (*floats, *(_low(report.noise) if report.noise is not None else ()))


def float_line(layer: FloatLayer) -> str:
    """A layer with a large share of the work that stays in float, with its shares."""
    shares = [f"{layer.macs_percent:.0f} % of the MACs"]
    if layer.time_percent is not None:
        shares.append(f"{layer.time_percent:.0f} % of the time")
    if layer.flash_percent is not None:
        shares.append(f"{layer.flash_percent:.0f} % of the flash")
    return f"float: {_place(layer.module, layer.name)} ({layer.op}) stays in float, {', '.join(shares)}: {layer.reason}"


def source_line(source: NoiseSource) -> str:
    """A source of noise with its reasons."""
    return (
        f"{_place(source.module, source.name)} ({source.op} %{source.name}{_at(source.location)}) adds "
        f"{source.share_percent:.0f} % of the noise of {source.at}: {'; '.join(source.reasons)}"
    )


def change_line(change: TriedChange) -> str:
    """A change that was tried, with the ratios before and after wherever it was measured, and its price."""
    effects = change.effects[:_SHOWN]
    measured = [_effect(effect, says_help=change.helps and not effect.helps) for effect in effects]
    if len(change.effects) > len(effects):
        measured.append(f"{len(change.effects) - len(effects)} more in report.json")
    if change.flash_bytes is not None and change.instructions is not None:
        time = (
            f"{change.instructions:+,} instructions"
            if change.cycles is None
            else f"{change.cycles:+,} cycles"
        )
        measured.append(f"{change.flash_bytes:+,} B flash, {time}")
    return f"{'helps' if change.helps else 'no help'}: {change.change}: {', '.join(measured)}"


def _effect(effect: Effect, *, says_help: bool) -> str:
    after = "exact" if effect.helps and effect.snr_db_after is None else ratio_text(effect.snr_db_after)
    none = " (no help there)" if says_help else ""
    return f"{effect.at} from {ratio_text(effect.snr_db_before)} to {after}{none}"


def ratio_text(ratio: float | None) -> str:
    """A ratio that is low or was."""
    return "no signal" if ratio is None else f"{ratio:.1f} dB"


def output_line(output: OutputRatio) -> str:
    """An output that is low."""
    return f"output {output.name} has {ratio_text(output.snr_db)} of the {output.least_db:g} dB required"


def sequence_line(output: OutputRatio) -> str:
    """An output that is low along sequences."""
    return f"{output_line(output)} along sequences, where states pass their error to the next call"


def layer_line(layer: LowLayer) -> str:
    """A layer that is low."""
    return f"layer {_full(layer.module, layer.name)} has {ratio_text(layer.snr_db)}; its noise reaches {layer.output}"


def noise_problems(noise: Noise) -> Iterator[tuple[str, str]]:
    """Fact and advice for each output and layer that is low."""
    low = [(output.name, output_line(output)) for output in noise.outputs if output.is_low]
    low += [(output.name, sequence_line(output)) for output in _low_along(noise)]
    low += [(layer.name, layer_line(layer)) for layer in noise.low_layers]
    for name, line in low:
        sources = [s for s in noise.sources if s.at == name] or noise.sources
        best = _best_at(noise.changes, name)
        hint = (
            "no change that was tried helps: keep layers in float, or lower `min_snr`"
            if best is None
            else change_line(best)
        )
        yield "; ".join([line, *map(source_line, sources)]), hint


def _best_at(changes: Sequence[TriedChange], name: str) -> TriedChange | None:
    """The first change that is enough at a place, else the first that helps there; if none was measured there,
    anywhere.
    """
    effects = [(c, e) for c in changes for e in c.effects if e.helps]
    there = [(c, e) for c, e in effects if e.at == name]
    is_measured = any(e.at == name for c in changes for e in c.effects)
    found = sorted(there if is_measured else effects, key=lambda pair: not pair[1].is_enough)
    return found[0][0] if found else None


def lines_about(report: Report, names: Collection[str]) -> Iterator[str]:
    """Lines on whether layers, named by value or module path, stay in float, and on the noise that they add."""
    yield from (float_line(layer) for layer in report.float_layers if {layer.name, layer.module} & {*names})
    if report.noise is None:
        return
    yield from (
        layer_line(layer) for layer in report.noise.low_layers if {layer.name, layer.module} & {*names}
    )
    for source in report.noise.sources:
        if {source.name, source.module} & {*names}:
            yield source_line(source)
            yield from (f"  {change_line(change)}" for change in _shown(report.noise.changes))


def _low(noise: Noise) -> Iterator[str]:
    yield from (f"low: {output_line(output)}" for output in noise.outputs if output.is_low)
    yield from (f"low: {sequence_line(output)}" for output in _low_along(noise))
    yield from (f"low: {layer_line(layer)}" for layer in noise.low_layers)
    yield from (f"  {source_line(source)}" for source in noise.sources)
    yield from (f"  {change_line(change)}" for change in _shown(noise.changes))


def _low_along(noise: Noise) -> list[OutputRatio]:
    """Outputs that are low only along sequences."""
    known = {output.name for output in noise.outputs if output.is_low}
    return [output for output in noise.sequences if output.is_low and output.name not in known]


def _shown(changes: Sequence[TriedChange]) -> Sequence[TriedChange]:
    """The best changes of those that help, else of all."""
    return ([change for change in changes if change.helps] or changes)[:_SHOWN]


def _place(module: str, name: str) -> str:
    return module or f"%{name}"


def _full(module: str, name: str) -> str:
    return f"{module} (%{name})" if module else f"%{name}"


def _at(location: str) -> str:
    return f" at {location}" if location else ""
