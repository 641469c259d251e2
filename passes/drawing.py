"""Elements of SVG charts: one self-contained document of plain shapes, text and colours that every viewer supports."""

from __future__ import annotations

import math
from collections.abc import Iterable
from colorsys import hls_to_rgb
from html import escape
from typing import Literal

GOLDEN_ANGLE = 137.508
"""Degrees: steps of hue that separate neighbours in a list of any length."""

LETTER = 6.65
"""Width of a letter of the font, in pixels."""

_STYLE = (  # only for these charts, also inside of a page with others
    ".drawing text{font:11px ui-monospace,'DejaVu Sans Mono',Menlo,Consolas,monospace;fill:#1f2328}"
    ".drawing .title{font-weight:bold}.drawing .quiet{fill:#6e7781}.drawing .gone{fill:#b42318}"
)
Anchor = Literal["start", "middle", "end"]


def document(width: float, height: float, body: Iterable[str]) -> str:
    """An SVG document of this size in pixels, on white."""
    size = f'width="{width:.0f}" height="{height:.0f}" viewBox="0 0 {width:.0f} {height:.0f}"'
    lines = "\n".join(body)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="drawing" {size}>\n<style>{_STYLE}</style>\n'
        f"{box(0, 0, width, height, '#ffffff')}\n{lines}\n</svg>\n"
    )


def box(x: float, y: float, width: float, height: float, fill: str, *, border: str | None = None) -> str:
    """A rectangle."""
    edge = "" if border is None else f' stroke="{border}"'
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{fill}"{edge}/>'


def line(x1: float, y1: float, x2: float, y2: float, stroke: str, *, dashes: str | None = None) -> str:
    """A straight line."""
    broken = "" if dashes is None else f' stroke-dasharray="{dashes}"'
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{stroke}"{broken}/>'


def text(x: float, y: float, content: str, *, style: str = "", anchor: Anchor = "start") -> str:
    """A line of text from (`start`), around, or up to x, on the base line y; `style` is title, quiet or gone."""
    marks = f' class="{style}"' if style else ""
    marks += f' text-anchor="{anchor}"' if anchor != "start" else ""
    return f'<text x="{x:.1f}" y="{y:.1f}"{marks}>{escape(content)}</text>'


def titled(title: str, parts: Iterable[str]) -> str:
    """Shapes with a tooltip."""
    return f"<g><title>{escape(title)}</title>{''.join(parts)}</g>"


def round_figures(low: float, high: float) -> list[float]:
    """Four to eight round figures between two ends."""
    rough = (high - low) / 5
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = min((s * magnitude for s in (1.0, 2.0, 5.0, 10.0)), key=lambda s: abs(s - rough))
    return [n * step for n in range(math.ceil(low / step), math.floor(high / step) + 1)]


def colour(index: int) -> str:
    """A distinct colour for each entry of a list."""
    red, green, blue = (round(255 * part) for part in hls_to_rgb(index * GOLDEN_ANGLE / 360 % 1, 0.5, 0.6))
    return f"#{red:02x}{green:02x}{blue:02x}"


def shortened(content: str, letters: int) -> str:
    """The end of a text that is longer than the limit, because the end of a path is the most specific."""
    return content if len(content) <= letters else f"…{content[1 - letters :]}"


def width_of(content: str) -> float:
    """Width of a text in pixels."""
    return LETTER * len(content)
