"""What a report says about noise and float layers, as lines for the terminal and as problems of a refusal."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Sequence

from .model import FloatLayer, LowLayer, Noise, NoiseSource, OutputRatio, Report, TriedChange

_SHOWN = 3  # changes of a source


def noise_lines(report: Report) -> tuple[str, ...]:
    """Layers that stay in float, then what is low with its sources and what helps; empty where all is well."""
    floats = (float_line(layer) for layer in report.float_layers)
    return (*floats, *(_low(report.noise) if report.noise is not None else ()))


def float_line(layer: FloatLayer) -> str:
    """A main layer that stays in float, with its shares."""
    shares = [f"{layer.macs_percent:.0f} % of the MACs"]
    if layer.cycles_percent is not None:
        shares.append(f"{layer.cycles_percent:.0f} % of the cycles")
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
    """A change that was tried, with the ratios before and after and its price."""
    verdict = "helps" if change.helps else "no help"
    after = "exact" if change.helps and change.snr_db_after is None else ratio_text(change.snr_db_after)
    price = ""
    if change.flash_bytes is not None and change.cycles is not None:
        price = f", {change.flash_bytes:+,} B flash, {change.cycles:+,} cycles"
    return (
        f"{verdict}: {change.change}: {change.at} from {ratio_text(change.snr_db_before)} to {after}{price}"
    )


def ratio_text(ratio: float | None) -> str:
    """A ratio that is low or was."""
    return "no signal" if ratio is None else f"{ratio:.1f} dB"


def output_line(output: OutputRatio) -> str:
    """An output that is low."""
    return f"output {output.name} has {ratio_text(output.snr_db)} of the {output.least_db:g} dB asked for"


def layer_line(layer: LowLayer) -> str:
    """A layer that is low."""
    return f"layer {_full(layer.module, layer.name)} has {ratio_text(layer.snr_db)}; its noise reaches {layer.output}"


def noise_problems(noise: Noise) -> Iterator[tuple[str, str]]:
    """Fact and advice for each output and layer that is low."""
    low = [(output.name, output_line(output)) for output in noise.outputs if output.is_low]
    low += [(layer.name, layer_line(layer)) for layer in noise.low_layers]
    for name, line in low:
        sources = [s for s in noise.sources if s.at == name] or list(noise.sources)
        changes = [c for s in sources for c in s.changes] + [c for c in noise.changes if c.at == name]
        advice = [change_line(change) for change in _best(changes)[:1]]
        hint = (
            advice[0] if advice else "nothing that was tried helps: keep layers in float, or lower `min_snr`"
        )
        yield "; ".join([line, *map(source_line, sources)]), hint


def lines_about(report: Report, names: Collection[str]) -> Iterator[str]:
    """Whether layers, named by value or module path, stay in float, and what noise they add."""
    yield from (float_line(layer) for layer in report.float_layers if {layer.name, layer.module} & {*names})
    if report.noise is None:
        return
    yield from (
        layer_line(layer) for layer in report.noise.low_layers if {layer.name, layer.module} & {*names}
    )
    for source in report.noise.sources:
        if {source.name, source.module} & {*names}:
            yield source_line(source)
            yield from (f"  {change_line(change)}" for change in source.changes)


def _low(noise: Noise) -> Iterator[str]:
    yield from (f"low: {output_line(output)}" for output in noise.outputs if output.is_low)
    yield from (f"low: {layer_line(layer)}" for layer in noise.low_layers)
    for source in noise.sources:
        yield f"  {source_line(source)}"
        yield from (f"    {change_line(change)}" for change in _shown(source.changes))
    if noise.changes:
        yield "  for all layers"
        yield from (f"    {change_line(change)}" for change in _shown(noise.changes))


def _shown(changes: Sequence[TriedChange]) -> Iterable[TriedChange]:
    """Those that help, the best first; all where none does."""
    return _best(changes)[:_SHOWN] or changes


def _best(changes: Iterable[TriedChange]) -> list[TriedChange]:
    """Those that help: first what is enough, the cheapest first, then the rest by what it gives."""

    def order(change: TriedChange) -> tuple[bool, float, float]:
        gives = math.inf if change.snr_db_after is None else change.snr_db_after
        return not change.is_enough, (change.cycles or 0) if change.is_enough else 0, -gives

    return sorted((change for change in changes if change.helps), key=order)


def _place(module: str, name: str) -> str:
    return module or f"%{name}"


def _full(module: str, name: str) -> str:
    return f"{module} (%{name})" if module else f"%{name}"


def _at(location: str) -> str:
    return f" at {location}" if location else ""
