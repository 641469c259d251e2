"""Chart of cost and loss of assignments (SVG): Pareto front, the chosen one, and the budget.

The resource is on the horizontal axis, the predicted loss on the vertical one, with a square-root scale that separates
small losses.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from ..drawing import box, document, line, round_figures, text, titled, width_of

_WIDTH, _HEIGHT = 640, 400
_LEFT, _RIGHT, _TOP, _BOTTOM = 72, 24, 84, 52
_APART = 26  # least distance in pixels between marks of the loss
_RADIUS, _RING = 3.5, 7.5
_DOT, _CHOSEN, _GRID, _AXIS = "#0b5cad", "#b42318", "#e6e9ed", "#6e7781"
_STEPS = (1.0, 2.0, 5.0)


@dataclass(frozen=True)
class Mix:
    """Assignment of bit widths: resource use, predicted loss, and name."""

    amount: float
    loss: float
    name: str


@dataclass(frozen=True)
class FrontPicture:
    """The front from the cheapest mix to the best, the chosen mix, uniform bit widths for comparison, and limits."""

    resource: str
    front: tuple[Mix, ...]
    chosen: Mix
    uniform: tuple[Mix, ...] = ()
    limit: float | None = None
    loss_limit: float | None = None

    def draw(self) -> str:
        """The SVG document."""
        parts = [*self._heading(), *self._grid(), *self._limits()]
        path = " ".join(f"{self._x(mix.amount):.1f},{self._y(mix.loss):.1f}" for mix in self.front)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{_DOT}"/>')
        parts += [titled(_told(mix), [self._circle(mix, _RADIUS, f'fill="{_DOT}"')]) for mix in self.front]
        parts += [part for mix in self.uniform for part in self._square(mix)]
        ring = f'fill="none" stroke="{_CHOSEN}" stroke-width="2"'
        parts.append(titled(_told(self.chosen), [self._circle(self.chosen, _RING, ring)]))
        return document(_WIDTH, _HEIGHT, parts)

    @cached_property
    def _mixes(self) -> tuple[Mix, ...]:
        return (*self.front, self.chosen, *self.uniform)

    @cached_property
    def _ends(self) -> tuple[float, float]:
        """The least and the largest drawn amount of the resource."""
        amounts = [mix.amount for mix in self._mixes]
        amounts += [] if self.limit is None else [min(max(self.limit, min(amounts)), 1.1 * max(amounts))]
        low, high = min(amounts), max(amounts)
        return (low, high) if high > low else (0.5 * low - 1, 1.5 * high + 1)

    @cached_property
    def _most(self) -> float:
        """The largest drawn loss."""
        return max([0.0, *(mix.loss for mix in self._mixes)]) or 1.0

    def _x(self, amount: float) -> float:
        low, high = self._ends
        return _LEFT + 12 + (amount - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT - 24)

    def _y(self, loss: float) -> float:
        share = math.sqrt(min(max(loss, 0.0), self._most) / self._most)
        return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM - 20)

    def _circle(self, mix: Mix, radius: float, look: str) -> str:
        return f'<circle cx="{self._x(mix.amount):.1f}" cy="{self._y(mix.loss):.1f}" r="{radius}" {look}/>'

    def _square(self, mix: Mix) -> Iterator[str]:
        """Uniform bit widths, with their name next to the square if there is space."""
        x, y = self._x(mix.amount), self._y(mix.loss)
        yield titled(_told(mix), [box(x - 4, y - 4, 8, 8, "none", border=_AXIS)])
        if x + 10 + width_of(mix.name) < _WIDTH - _RIGHT:
            yield text(x + 9, y - 7, mix.name, style="quiet")
        else:
            yield text(_WIDTH - _RIGHT, y - 18, mix.name, style="quiet", anchor="end")

    def _heading(self) -> Iterator[str]:
        """Heading with the chosen assignment, and the legend."""
        yield text(_LEFT - 56, 22, f"chosen: {self.chosen.name}", style="title")
        yield text(
            _LEFT - 56,
            37,
            f"{self.chosen.amount:,.0f} {self.resource}, predicted loss {self.chosen.loss:.3g}",
        )
        x: float = _LEFT - 56
        for mark, words in (
            (f'<circle cx="8" cy="-4" r="{_RADIUS}" fill="{_DOT}"/>', "no mix beats these"),
            (f'<circle cx="8" cy="-4" r="5.5" fill="none" stroke="{_CHOSEN}" stroke-width="2"/>', "chosen"),
            (box(4, -8, 8, 8, "none", border=_AXIS), "same bits everywhere"),
            (line(0, -4, 16, -4, _CHOSEN, dashes="4 3"), "budget"),
        ):
            yield f'<g transform="translate({x:.1f},56)">{mark}</g>'
            yield text(x + 22, 56, words, style="quiet")
            x += 22 + width_of(words) + 16

    def _grid(self) -> Iterator[str]:
        """Grid lines at round numbers, with their labels."""
        bottom = _HEIGHT - _BOTTOM
        for amount in round_figures(*self._ends):
            x = self._x(amount)
            yield line(x, _TOP, x, bottom, _GRID)
            yield text(x, bottom + 16, f"{amount:,.10g}", style="quiet", anchor="middle")
        last = math.inf
        for loss in _round_losses(self._most):
            y = self._y(loss)
            if last - y >= _APART:
                yield line(_LEFT, y, _WIDTH - _RIGHT, y, _GRID)
                yield text(_LEFT - 8, y + 4, f"{loss:.3g}", style="quiet", anchor="end")
                last = y
        yield line(_LEFT, _TOP, _LEFT, bottom, _AXIS)
        yield line(_LEFT, bottom, _WIDTH - _RIGHT, bottom, _AXIS)
        yield text(_WIDTH - _RIGHT, bottom + 36, self.resource, style="title", anchor="end")
        yield text(16, _TOP - 8, "predicted loss", style="title")

    def _limits(self) -> Iterator[str]:
        """The limits of the resource and of the loss, if they are within the chart."""
        low, high = self._ends
        if self.limit is not None and low <= self.limit <= high:
            x = self._x(self.limit)
            yield line(x, _TOP, x, _HEIGHT - _BOTTOM, _CHOSEN, dashes="4 3")
        if self.loss_limit is not None and self.loss_limit <= self._most:
            y = self._y(self.loss_limit)
            yield line(_LEFT, y, _WIDTH - _RIGHT, y, _CHOSEN, dashes="4 3")


def _told(mix: Mix) -> str:
    return f"{mix.name}: {mix.amount:,.0f}, predicted loss {mix.loss:.3g}"


def _round_losses(most: float) -> Sequence[float]:
    """Zero, and 1, 2, 5 of four decades up to `most`."""
    top = math.floor(math.log10(most))
    decades = [10.0**power for power in range(top - 3, top + 1)]
    return [0.0, *(step * decade for decade in decades for step in _STEPS if step * decade <= most)]
