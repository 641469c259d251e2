"""Chart of the Pareto front of RAM and predicted time (SVG): table and picture of `outputs.c.pareto`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from ...passes.drawing import document, line, round_figures, text, titled
from .model import RamPoint

_WIDTH, _HEIGHT = 640, 320
_LEFT, _RIGHT, _TOP, _BOTTOM = 96, 24, 40, 52
_INSIDE = 12  # pixels between the axes and the outermost points
_DOT, _GRID, _AXIS = "#0b5cad", "#e6e9ed", "#6e7781"


def ram_columns(points: Sequence[RamPoint]) -> tuple[str, ...]:
    """Names of the columns of the table, units in the name."""
    regions = [f"{name} B" for name in points[0].region_bytes]
    ram = "RAM B" if regions else "arena B"
    return (ram, *regions, points[0].unit, "over fastest", "flash B", "steps that run by rows")


def ram_rows(points: Sequence[RamPoint]) -> list[tuple[str, ...]]:
    """The cells of the table, a row for each point."""
    fastest = max(points[0].time, 1)
    return [
        (
            f"{point.ram_bytes:,}",
            *(f"{size:,}" for size in point.region_bytes.values()),
            f"{point.time:,}",
            f"{point.time / fastest:.3f}",
            f"{point.flash_bytes:,}",
            ", ".join(f"{first} to {last}" for first, last in point.rows),
        )
        for point in points
    ]


def ram_picture(points: Sequence[RamPoint]) -> str:
    """RAM to the right, time upwards; between two points the smaller one is the best plan that was found."""
    right, up = _Scale.of([p.ram_bytes for p in points]), _Scale.of([p.time for p in points])

    def x(size: float) -> float:
        return _LEFT + _INSIDE + right.share(size) * (_WIDTH - _LEFT - _RIGHT - 2 * _INSIDE)

    def y(time: float) -> float:
        return _HEIGHT - _BOTTOM - _INSIDE - up.share(time) * (_HEIGHT - _TOP - _BOTTOM - 2 * _INSIDE)

    def parts() -> Iterator[str]:
        bottom = _HEIGHT - _BOTTOM
        for size in right.figures:
            yield line(x(size), _TOP, x(size), bottom, _GRID)
            yield text(x(size), bottom + 16, f"{size:,.10g}", style="quiet", anchor="middle")
        for time in up.figures:
            yield line(_LEFT, y(time), _WIDTH - _RIGHT, y(time), _GRID)
            yield text(_LEFT - 8, y(time) + 4, f"{time:,.10g}", style="quiet", anchor="end")
        yield line(_LEFT, _TOP, _LEFT, bottom, _AXIS)
        yield line(_LEFT, bottom, _WIDTH - _RIGHT, bottom, _AXIS)
        yield text(_WIDTH - _RIGHT, bottom + 36, "bytes of RAM", style="title", anchor="end")
        yield text(16, _TOP - 16, points[0].unit, style="title")
        ordered = sorted(points, key=lambda point: point.ram_bytes)
        corners = [f"{x(ordered[0].ram_bytes):.1f},{y(ordered[0].time):.1f}"]
        for before, point in pairwise(ordered):
            corners.append(f"{x(point.ram_bytes):.1f},{y(before.time):.1f}")
            corners.append(f"{x(point.ram_bytes):.1f},{y(point.time):.1f}")
        yield f'<polyline points="{" ".join(corners)}" fill="none" stroke="{_DOT}"/>'
        for point in points:
            told = f"{point.ram_bytes:,} B, {point.time:,} {point.unit}"
            dot = f'<circle cx="{x(point.ram_bytes):.1f}" cy="{y(point.time):.1f}" r="3.5" fill="{_DOT}"/>'
            yield titled(told, [dot])

    return document(_WIDTH, _HEIGHT, parts())


@dataclass(frozen=True)
class _Scale:
    """The least and the largest figure of an axis."""

    low: float
    high: float

    @staticmethod
    def of(figures: Sequence[float]) -> _Scale:
        low, high = min(figures), max(figures)
        return _Scale(low, high) if high > low else _Scale(0.5 * low - 1, 1.5 * high + 1)

    def share(self, figure: float) -> float:
        """Position of a figure between the least and the largest one, 0 to 1."""
        return (figure - self.low) / (self.high - self.low)

    @property
    def figures(self) -> list[float]:
        """Round figures between both."""
        return round_figures(self.low, self.high)
