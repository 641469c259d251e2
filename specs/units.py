"""Quantities with a unit: `64 KiB`, `60 %`, `6 M`, `168 MHz`, `15 dB`.

A number without a unit is refused; the message lists the units.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Annotated, Any

from pydantic import Discriminator, GetCoreSchemaHandler, GetJsonSchemaHandler, Tag
from pydantic_core import CoreSchema, core_schema

from .section import fault

_QUANTITY = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,18})?)\s*([A-Za-z%]*)")
_LARGEST = 2**53


@dataclass(frozen=True, eq=False)
class Unit:
    """Parser and formatter of a quantity with units; values are written in the first unit.

    A field is an int (a whole number of the base unit) or a float, more than zero and at most `most`.
    """

    units: Mapping[str, Fraction]
    example: str
    most: int = _LARGEST

    def read(self, value: Any) -> Fraction:  # any: a value from a spec
        """The value in the base unit."""
        hint = f"write for example `{self.example}`; the units are {', '.join(self.units)}"
        if isinstance(value, int | float) and not isinstance(value, bool):
            raise fault("S206", f"{value!r} has no unit", hint=hint)
        text = value.strip() if isinstance(value, str) else ""
        match = _QUANTITY.fullmatch(text.removeprefix("-"))
        if match is None:
            raise fault("S206", "is not a quantity", hint=hint)
        number, name = match.groups()
        if not name:
            raise fault("S206", f"{text} has no unit", hint=hint)
        if name not in self.units:
            near = next((known for known in self.units if known.lower() == name.lower()), None)
            hint = f"did you mean `{number} {near}`?" if near else hint
            raise fault("S206", f'unknown unit "{name}"', hint=hint)
        quantity = Fraction(number) * self.units[name]
        if text.startswith("-") or not quantity:
            raise fault("S205", "must be more than zero")
        if quantity > self.most:
            raise fault("S205", f"must be at most {self.write(self.most)}")
        return quantity

    def read_whole(self, value: Any) -> int:  # any: a value from a spec
        """The value in the base unit; a fault if it is not a whole number."""
        quantity = self.read(value)
        if quantity.denominator != 1:
            raise fault("S205", f"is {float(quantity):g} in the base unit, which is not a whole number")
        return quantity.numerator

    def write(self, value: float) -> str:
        """The value in the first unit, exact: it reads back as the same value."""
        size = next(iter(self.units.values()))
        number = Decimal(repr(value)) * size.denominator / size.numerator
        return f"{number.normalize():f} {next(iter(self.units))}"

    def __get_pydantic_core_schema__(
        self, source: type[int | float], handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        """Schema that accepts text and numbers, and dumps text in JSON."""
        read = self.read_whole if source is int else lambda value: float(self.read(value))
        text = core_schema.plain_serializer_function_ser_schema(
            self.write, return_schema=core_schema.str_schema(), when_used="json"
        )
        return core_schema.no_info_plain_validator_function(read, serialization=text)

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """A text with one of the units; any: JSON."""
        pattern = rf"^\s*[0-9]+(\.[0-9]+)?\s*({'|'.join(self.units)})\s*$"
        return {"type": "string", "pattern": pattern, "examples": [self.example]}


def _sizes(**units: int) -> dict[str, Fraction]:
    return {name: Fraction(size) for name, size in units.items()}


BYTES = Unit(_sizes(B=1, kB=10**3, KiB=2**10, MB=10**6, MiB=2**20, GB=10**9, GiB=2**30), "64 KiB")
COUNT = Unit(_sizes(k=10**3, M=10**6, G=10**9), "6 M")
FREQUENCY = Unit(_sizes(Hz=1, kHz=10**3, MHz=10**6, GHz=10**9), "80 MHz")
DECIBEL = Unit({"dB": Fraction(1)}, "15 dB", most=1000)
PERCENT = Unit({"%": Fraction(1, 100)}, "60 %", most=1)

Bytes = Annotated[int, BYTES]
"""Size in bytes: `64 KiB`."""

Count = Annotated[int, COUNT]
"""Large count of cycles or operations: `6 M`."""

Hertz = Annotated[int, FREQUENCY]
"""Clock frequency in Hz: `80 MHz`."""

Decibel = Annotated[float, DECIBEL]
"""Ratio of powers in decibel: `15 dB` is 15.0."""

Percent = Annotated[float, PERCENT]
"""Share, more than 0 and at most 1: `60 %` is 0.6."""


def _form(value: Any) -> str:  # any: a value from a spec, checked by the annotated type
    is_share = isinstance(value, float) or (isinstance(value, str) and "%" in value)
    return "share" if is_share else "amount"


BytesOrShare = Annotated[
    Annotated[Percent, Tag("share")] | Annotated[Bytes, Tag("amount")], Discriminator(_form)
]
"""Size in bytes (an int) or a share (a float)."""

CountOrShare = Annotated[
    Annotated[Percent, Tag("share")] | Annotated[Count, Tag("amount")], Discriminator(_form)
]
"""Large count (an int) or a share (a float)."""
