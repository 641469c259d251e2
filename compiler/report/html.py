"""Writer of report.html: one file without external scripts, fonts or network access; charts are inline SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from jinja2 import Environment, PackageLoader, StrictUndefined

from .model import Layer, MemoryBlock, Report
from .noise_text import change_line, float_line, layer_line, source_line
from .ram_picture import ram_columns, ram_picture, ram_rows

_ENVIRONMENT = Environment(
    loader=PackageLoader("fxpress.compiler.report"),
    undefined=StrictUndefined,
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
)
_MAP_WIDTH, _MAP_HEIGHT = 960.0, 300.0
_ROW, _BOX_WIDTH = 34, 420
_PALETTE = ("#3b6ea5", "#7aa6c2", "#4f9d8f", "#9bbf85", "#c9a45c", "#b9714f", "#8e6c8a", "#6b7f99")


def render_html(report: Report, *, pictures: Mapping[int, Sequence[str]] = MappingProxyType({})) -> str:
    """The report as one self-contained page; `pictures` are SVG documents of passes, by the index of the pass."""
    graph = _graph_picture(report.layers)
    return _ENVIRONMENT.get_template("report.html.j2").render(
        report=report,
        maps=_maps(report),
        map_width=_MAP_WIDTH,
        map_height=_MAP_HEIGHT,
        graph=graph,
        ram_columns=ram_columns(report.pareto) if report.pareto else (),
        ram_rows=ram_rows(report.pareto) if report.pareto else (),
        ram_picture=_inline(ram_picture(report.pareto)) if report.pareto else "",
        pictures={index: [_inline(svg) for svg in found] for index, found in pictures.items()},
        heaviest=max((layer.time or layer.macs for layer in report.layers), default=0),
        unit="instructions" if any(layer.cycles is None for layer in report.layers) else "cycles",
    )


def _inline(svg: str) -> str:
    """An SVG document as part of an HTML page, without its XML namespace."""
    return svg.replace(' xmlns="http://www.w3.org/2000/svg"', "", 1)


@dataclass(frozen=True)
class _Rectangle:
    """A block of the memory map in picture coordinates."""

    x: float
    y: float
    width: float
    height: float
    colour: str
    label: str
    title: str


@dataclass(frozen=True)
class _MemoryMap:
    """Blocks of a region of RAM, and height of the picture."""

    region: str
    bytes: int
    blocks: tuple[_Rectangle, ...]


def _maps(report: Report) -> list[_MemoryMap]:
    """A picture for each region that has blocks."""
    regions: dict[str, list[MemoryBlock]] = {}
    for block in report.arena:
        regions.setdefault(block.region, []).append(block)
    found = []
    for region, blocks in regions.items():
        total = max(block.offset_bytes + block.size_bytes for block in blocks)
        rectangles = tuple(_block(block, report, total) for block in blocks)
        found.append(_MemoryMap(region, total, rectangles))
    return found


def _block(block: MemoryBlock, report: Report, total: int) -> _Rectangle:
    steps = max(len(report.layers), 1)
    step, byte = _MAP_WIDTH / steps, _MAP_HEIGHT / max(total, 1)
    width, height = (block.last - block.first + 1) * step, block.size_bytes * byte
    fits = height >= 12 and width >= 7 * len(block.name)
    place = f"{block.offset_bytes:,}" + (f" of {block.region}" if block.region != "arena" else "")
    return _Rectangle(
        x=round(block.first * step, 2),
        y=round(_MAP_HEIGHT - (block.offset_bytes + block.size_bytes) * byte, 2),
        width=round(width, 2),
        height=round(height, 2),
        colour=_PALETTE[sum(map(ord, block.name)) % len(_PALETTE)],
        label=block.name if fits else "",
        title=f"{block.name}: {block.size_bytes:,} B at {place}, steps {block.first} to {block.last}",
    )


@dataclass(frozen=True)
class _Box:
    """A step of the graph picture."""

    y: int
    label: str
    title: str


@dataclass(frozen=True)
class _GraphPicture:
    """Boxes in one column, an SVG path for each edge, and the size of the picture."""

    boxes: tuple[_Box, ...]
    edges: tuple[str, ...]
    width: int
    height: int
    box_width: int = _BOX_WIDTH
    box_height: int = _ROW - 10


def _graph_picture(layers: tuple[Layer, ...]) -> _GraphPicture:
    """One row per step; an edge to the next row is a straight line, a longer one an arc on the right.

    A moved value is drawn from the row that moved it last.
    """
    rows: dict[str, int] = {}
    boxes, edges, widest = [], [], 0
    for row, layer in enumerate(layers):
        shape = "x".join(map(str, layer.shape))
        boxes.append(_Box(8 + row * _ROW, f"{layer.op}  {layer.module or layer.name}  {shape}", layer.type))
        for name in layer.inputs:
            if (above := rows.get(name)) is not None:
                edges.append(_edge(above, row))
                widest = max(widest, row - above)
        rows[layer.name] = row
    return _GraphPicture(
        tuple(boxes), tuple(edges), 24 + _BOX_WIDTH + _bulge(widest), 16 + len(layers) * _ROW
    )


def _edge(above: int, below: int) -> str:
    top, bottom = 8 + above * _ROW, 8 + below * _ROW
    if below == above + 1:
        middle = 12 + _BOX_WIDTH // 2
        return f"M{middle} {top + _ROW - 10}V{bottom}"
    right, half = 12 + _BOX_WIDTH, (_ROW - 10) // 2
    out = right + _bulge(below - above)
    return f"M{right} {top + half}C{out} {top + half} {out} {bottom + half} {right} {bottom + half}"


def _bulge(rows: int) -> int:
    return min(20 + 12 * rows, 300)


def snr_text(value: float | None) -> str:
    """A signal-to-noise ratio for display: at most two decimals, `exact` for an infinite one."""
    if value is None:
        return ""
    return "exact" if math.isinf(value) else f"{value:.1f}"


def figure_text(value: str | int | float | bool | None) -> str:
    """A table cell for display: floats with five significant digits, thousands separators."""
    match value:
        case None:
            return ""
        case bool():
            return "yes" if value else "no"
        case int():
            return f"{value:,}"
        case float():
            return (
                f"{value:,.5g}"
                if abs(value) < 1e5
                else f"{value:,.0f}"
                if abs(value) < 1e15
                else f"{value:.5g}"
            )
        case str():
            return value


def is_figure(value: str | int | float | bool | None) -> bool:
    """True if a cell has a number."""
    return isinstance(value, int | float) and not isinstance(value, bool)


_ENVIRONMENT.filters["snr"] = snr_text
_ENVIRONMENT.filters.update(
    {line.__name__: line for line in (change_line, float_line, layer_line, source_line)}
)
_ENVIRONMENT.filters["figure"] = figure_text
_ENVIRONMENT.tests["figure"] = is_figure
