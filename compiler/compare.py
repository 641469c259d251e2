"""`fxpress diff A B` and `fxpress explain DIR LAYER`: contents of report.json, for a terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from difflib import get_close_matches
from pathlib import Path

from ..specs.errors import near_miss
from .errors import Problem, UserError
from .lock import check_outputs, read_by_this_version
from .report import MOVEMENTS, Decision, Layer, Measurement, Report, lines_about
from .table import text_table

REPORT_FILE = "report.json"


def read_report(directory: Path) -> Report:
    """The report in an output directory; UserError unless all files there are unchanged."""
    lock = check_outputs(directory)
    with read_by_this_version(directory / REPORT_FILE, lock):
        return Report.model_validate_json((directory / REPORT_FILE).read_bytes())


def diff_reports(a: Report, b: Report) -> str:
    """Differences between two compilations: resources, measurements, layers; empty if there are none."""
    parts = [_resources(a, b), _measurements(a, b), _layers(a, b)]
    return "\n\n".join(part for part in parts if part)


def explain_layer(report: Report, name: str) -> str:
    """All facts of the report about a layer, named by module path or by value: figures, then decisions."""
    layers = [layer for layer in report.layers if name in (layer.name, layer.module)]
    decisions = [
        (section.name, d)
        for section in report.passes
        for d in section.decisions
        if name in (d.subject, _module(d))
    ]
    about = [*lines_about(report, {name, *(layer.name for layer in layers)})]
    if not layers and not decisions and not about:
        modules = dict.fromkeys(layer.module for layer in report.layers if layer.module)
        known = [*modules, *dict.fromkeys(layer.name for layer in report.layers)]
        near = get_close_matches(name, known, n=3, cutoff=0.4)
        hint = f"near: {', '.join(near)}" if near else near_miss(name, known)
        raise UserError(Problem("R403", name, "is no layer of this report", hint))
    lines: list[str] = []
    for layer in layers if len(layers) > 1 else ():
        own = [line for line in about if line in {*lines_about(report, {layer.name})}]
        mine = [(section, d) for section, d in decisions if d.subject == layer.name]
        lines += [*_layer_lines(layer), *_told(own, mine)]
        about = [line for line in about if line not in own]
        decisions = [found for found in decisions if found not in mine]
    if len(layers) == 1:
        lines += [*_layer_lines(layers[0]), *_told(about, decisions)]
    elif about or decisions:
        head = f"{name}, before these nodes were created" if layers else f"{name}: no node of its own"
        lines += [head, *_told(about, decisions, with_subject=True)]
    names = {name, *(layer.module for layer in layers)}
    return "\n\n".join(["\n".join(lines), *_rows_about(report, names)])


def _told(
    about: Iterable[str], decisions: Iterable[tuple[str, Decision]], *, with_subject: bool = False
) -> Iterator[str]:
    """Lines about a layer: its noise, then the decisions of each pass, with their values."""
    yield from (f"  {line}" for line in about)
    for section, d in decisions:
        subject = f", %{d.subject}" if with_subject else ""
        yield f"  {section}, {d.rule}{subject}: {'done' if d.applied else 'left'}, {d.reason}"


def _rows_about(report: Report, names: Collection[str]) -> Iterable[str]:
    """Rows about a layer, from tables of passes with several rows per layer."""
    for section in report.passes:
        for table in section.tables:
            rows = [row for row in table.rows if row and row[0] in names]
            if table.columns[:1] == ("layer",) and len(rows) > 1:
                shown = [tuple(_cell(cell) for cell in row[1:]) for row in rows]
                yield f"{section.name}, {table.name}\n{text_table(table.columns[1:], shown)}"


def _cell(cell: str | int | float | bool | None) -> str:
    if cell is None or isinstance(cell, bool):
        return "yes" if cell else ""
    return f"{cell:.4g}" if isinstance(cell, float) and not cell.is_integer() else _whole(cell)


def _whole(cell: str | int | float) -> str:
    return cell if isinstance(cell, str) else f"{cell:,.0f}"


def _module(decision: Decision) -> str:
    return decision.source.split(" at ")[0]


def _layer_lines(layer: Layer) -> Iterable[str]:
    yield f"{layer.module or layer.name}: {layer.op} -> {layer.type}"
    facts = {
        "result": f"%{layer.name}",
        "source": layer.location,
        "kernel": layer.kernel,
        "by rows": _rows_text(layer),
        "MACs": f"{layer.macs:,}" if layer.macs else None,
        "weight bits": layer.weight_bits,
        "constants": f"{layer.constant_bytes:,} B" if layer.constant_bytes else None,
        "instructions, estimated": None if layer.instructions is None else f"{layer.instructions:,}",
        "cycles, estimated": None if layer.cycles is None else f"{layer.cycles:,}",
        "integer against float": None if layer.snr_db is None else f"{layer.snr_db:.1f} dB",
    }
    yield from (f"  {name}: {value}" for name, value in facts.items() if value)


def _rows_text(layer: Layer) -> str:
    """The run of layers by rows of a layer; of its last layer also why the run ends there."""
    if layer.rows is None:
        return ""
    ends = f"; ends here: {layer.rows.end}" if layer.index == layer.rows.last else ""
    return f"steps {layer.rows.first} to {layer.rows.last}{ends}"


def _resources(a: Report, b: Report) -> str:
    before = {r.name: r.used for r in a.resources} | {"MACs": a.macs_after, "constants": a.parameters}
    after = {r.name: r.used for r in b.resources} | {"MACs": b.macs_after, "constants": b.parameters}
    rows = [
        (name, _count(before.get(name)), _count(after.get(name)), _change(before.get(name), after.get(name)))
        for name in [*before, *(after.keys() - before.keys())]
        if before.get(name) != after.get(name)
    ]
    return text_table(("resource", a.name, b.name, "change"), rows) if rows else ""


def _measurements(a: Report, b: Report) -> str:
    before, after = ({_title(m): m for m in report.measurements} for report in (a, b))
    rows = [
        (title, *("-" if m is None else m.text for m in (old, new)))
        for title in dict.fromkeys([*before, *after])
        if (old := before.get(title)) != (new := after.get(title))
    ]
    return text_table(("measurement", a.name, b.name), rows) if rows else ""


def _title(measurement: Measurement) -> str:
    return f"{measurement.stage}, {measurement.metric} of {measurement.output}"


def _layers(a: Report, b: Report) -> str:
    before, after = _by_name(a), _by_name(b)
    rows = []
    for key in dict.fromkeys([*before, *after]):
        old, new = before.get(key), after.get(key)
        if (
            old is None
            or new is None
            or (old.op, old.type, old.kernel, old.constant_bytes)
            != (
                new.op,
                new.type,
                new.kernel,
                new.constant_bytes,
            )
        ):
            rows.append((key[0], _layer_text(old), _layer_text(new)))
    return text_table(("layer", a.name, b.name), rows) if rows else ""


def _by_name(report: Report) -> dict[tuple[str, str, int], Layer]:
    """Layers by name, operator and the number of earlier occurrences of both: a value can be moved several times."""
    seen: Counter[tuple[str, str]] = Counter()
    found = {}
    for layer in report.layers:
        moved = layer.op if layer.op in MOVEMENTS else ""
        found[layer.name, moved, seen[layer.name, moved]] = layer
        seen[layer.name, moved] += 1
    return found


def _layer_text(layer: Layer | None) -> str:
    if layer is None:
        return "-"
    kernel = f", {layer.kernel}" if layer.kernel else ""
    return f"{layer.op} {'x'.join(map(str, layer.shape))}{kernel}, {layer.constant_bytes:,} B"


def _count(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


def _change(before: int | None, after: int | None) -> str:
    return f"{100 * (after - before) / before:+.1f} %" if before and after is not None else ""
