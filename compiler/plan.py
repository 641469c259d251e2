"""`fxpress plan`: decisions for each layer, reasons and predicted costs, for a terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from .report import Layer, PassSection, Report, Resource, noise_lines
from .table import text_table


def plan_text(report: Report, *, why: bool = False) -> str:
    """Resources and budgets, layers with kernels and costs, passes with the reasons for rejected rewrites."""
    return "\n\n".join(part for part in _parts(report, why=why) if part)


def _parts(report: Report, *, why: bool) -> Iterator[str]:
    yield f"{report.name} for {report.target}: {report.macs_before:,} MACs in the model, {report.macs_after:,} compiled"
    yield _resources(report)
    yield _layers(report.layers)
    yield "\n".join(noise_lines(report))
    for section in report.passes:
        yield _section(section, why=why)
    yield notes_text(report)


def notes_text(report: Report) -> str:
    """Notes for the user, one per line."""
    return "\n".join(f"note: {note}" for note in report.notes)


def _resources(report: Report) -> str:
    rows = [
        (
            r.name,
            f"{r.used:,}",
            "-" if r.available is None else f"{r.available:,}",
            r.unit,
            _verdict(r),
            r.basis,
        )
        for r in report.resources
    ]
    return text_table(("resource", "needed", "available", "unit", "", "basis"), rows) if rows else ""


def _verdict(resource: Resource) -> str:
    """Verdict on the need of a resource; empty without a budget."""
    if resource.available is None:
        return ""
    return "fits" if resource.fits else f"too large by {resource.used - resource.available:,}"


def _layers(layers: tuple[Layer, ...]) -> str:
    rows = [
        (
            str(layer.index),
            layer.module or layer.name,
            layer.op,
            "x".join(map(str, layer.shape)),
            layer.kernel or "",
            str(layer.weight_bits or ""),
            f"{layer.macs:,}",
            f"{layer.constant_bytes:,}",
            "" if layer.time is None else f"{layer.time:,}",
            "" if layer.snr_db is None else f"{layer.snr_db:.1f}",
        )
        for layer in layers
    ]
    unit = "instructions" if any(layer.cycles is None for layer in layers) else "cycles"
    header = ("#", "layer", "op", "result", "kernel", "bits", "MACs", "constants B", unit, "SNR dB")
    return text_table(header, rows)


def _section(section: PassSection, *, why: bool) -> str:
    lines = [f"{section.name}: {section.summary} ({section.nodes_before} to {section.nodes_after} nodes)"]
    if why:
        lines += [
            f"  {d.rule}, {d.subject}{f' ({d.source})' if d.source else ''}: "
            f"{'done' if d.applied else 'left'}, {d.reason}"
            for d in section.decisions
        ]
        return "\n".join(lines)
    left = Counter((d.rule, d.reason) for d in section.decisions if not d.applied)
    lines += [f"  left {count} x {rule}: {reason}" for (rule, reason), count in sorted(left.items())]
    return "\n".join(lines)
