"""Costs of kernels on a core: instructions and cycles of each part of their work, as counted by
`benchmarks/kernel_costs.py`.

    instructions = products * a + loops * b + results * c + calls * d

Templates have separate prices `a`, `b`, `c`, `d` on each core and for each form of operands (`base.form`), and the
same for cycles on cores with published timing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import median

from ....specs.target import Target
from ..plan.image import Image
from ..target import Machine
from .base import Offer, Work

_TABLE = Path(__file__).parents[1] / "cost" / "measured" / "costs.json"

DECODER = "huffman.h"
"""The template name for the prices of decoding."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Predicted instructions, and cycles on a core with published timing."""

    instructions: float = 0.0
    cycles: float | None = None

    @property
    def time(self) -> float:
        """Cycles, or instructions for a core without published timing: the measure to compare kernels."""
        return self.instructions if self.cycles is None else self.cycles

    def __add__(self, other: Cost) -> Cost:
        known = self.cycles is not None and other.cycles is not None
        cycles = (self.cycles or 0.0) + (other.cycles or 0.0) if known else None
        return Cost(self.instructions + other.instructions, cycles)

    def times(self, count: int) -> Cost:
        """The cost of this many runs."""
        cycles = None if self.cycles is None else count * self.cycles
        return Cost(count * self.instructions, cycles)


@dataclass(frozen=True, slots=True)
class Price:
    """Instructions, or cycles, of a core for each unit of a template's work."""

    products: float = 1.0
    loops: float = 1.0
    results: float = 1.0
    call: float = 0.0

    def of(self, work: Work, calls: int) -> float:
        """Instructions, or cycles."""
        inside = self.products * work.products + self.loops * work.loops
        return inside + self.results * work.results + self.call * calls


@dataclass(frozen=True)
class CoreCosts:
    """The prices of a core: by template and form, in cycles if its timing is published; without any, all are 1."""

    core: str
    instructions: Mapping[str, Mapping[str, Price]]
    cycles: Mapping[str, Mapping[str, Price]]

    @staticmethod
    def of(machine: Machine) -> CoreCosts:
        """The prices of a machine's core, or of the nearest counted one."""
        return _of_cores(machine.counted, timed=machine.timed)

    @property
    def has_cycles(self) -> bool:
        """True if cycles are available."""
        return bool(self.cycles)

    def cost(self, offer: Offer, form: str) -> Cost:
        """Cost of an offer on operands of a form."""
        if not offer.templates:
            return self._priced(Work(), 0, "", "")
        calls, found = len(offer.templates), priced_form(form, offer.variant)
        cost, images = self._priced(offer.work, calls, offer.templates[0], found), offer.images
        return cost + self._priced(decoding(images), len(images), DECODER, "") if images else cost

    def _priced(self, work: Work, calls: int, template: str, form: str) -> Cost:
        instructions = _found(self.instructions, template, form).of(work, calls)
        if not self.has_cycles:
            return Cost(instructions)
        return Cost(instructions, _found(self.cycles, template, form).of(work, calls))


def priced_form(form: str, variant: str) -> str:
    """The form for the prices of an offer: elements, and the variant of its template."""
    return f"{form} {variant}".strip()


def decoding(images: Sequence[Image]) -> Work:
    """Work of decoding Huffman images."""
    codes = sum(image.code_instructions for image in images)
    return Work(products=codes, loops=sum(image.table_instructions for image in images))


def read_prices_anew() -> None:
    """Discards the cached prices, after the table has been written."""
    _table.cache_clear()
    _of_cores.cache_clear()


def _found(prices: Mapping[str, Mapping[str, Price]], template: str, form: str) -> Price:
    """The price of a template for a form; else for other counted forms, else the typical price on the core."""
    forms = prices.get(template, {})
    alike = [price for other, price in forms.items() if other.split()[:1] == form.split()[:1]]
    return forms.get(form) or next(iter([*alike, *forms.values()]), None) or _typical(prices, form)


def _typical(prices: Mapping[str, Mapping[str, Price]], form: str) -> Price:
    """The median price of the innermost work in the counted templates for elements of a form."""
    elements = form.split()[:1]
    counted = [
        price.products
        for forms in prices.values()
        for other, price in forms.items()
        if other.split()[:1] == elements
    ]
    typical = median(counted) if counted else 1.0
    return Price(typical, typical, typical)


def counted_templates() -> frozenset[str]:
    """The templates that are counted on some core."""
    return frozenset(template for templates in _table().values() for template in templates)


def counted_core(target: Target) -> str:
    """The core whose counts are used for predictions for a target."""
    return CoreCosts.of(Machine.of(target)).core


@cache
def _of_cores(names: tuple[str, ...], *, timed: bool) -> CoreCosts:
    known = _table()
    core = next((name for name in names if name in known), "")
    table = known.get(core, {})
    return CoreCosts(core, _prices(table, "instructions"), _prices(table, "cycles") if timed else {})


def _prices(
    table: Mapping[str, Mapping[str, Mapping[str, list[float]]]], unit: str
) -> Mapping[str, Mapping[str, Price]]:
    found = {
        template: {form: Price(*units[unit]) for form, units in forms.items() if unit in units}
        for template, forms in table.items()
    }
    return {template: forms for template, forms in found.items() if forms}


@cache
def _table() -> Mapping[str, Mapping[str, Mapping[str, Mapping[str, list[float]]]]]:
    table: dict[str, dict[str, dict[str, dict[str, list[float]]]]] = json.loads(
        _TABLE.read_text(encoding="utf-8")
    )
    return table
