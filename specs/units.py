"""Quantities with a unit: `64 KiB`, `60 %`, `6 M`, `168 MHz`. A bare number is refused, with the units there are."""

import re
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Annotated, Any

from pydantic import BeforeValidator, WithJsonSchema

from .section import fault

BYTE_UNITS = {"B": 1, "kB": 10**3, "KiB": 2**10, "MB": 10**6, "MiB": 2**20, "GB": 10**9, "GiB": 2**30}
COUNT_UNITS = {"k": 10**3, "M": 10**6, "G": 10**9}
FREQUENCY_UNITS = {"Hz": 1, "kHz": 10**3, "MHz": 10**6, "GHz": 10**9}
PERCENT_UNITS = {"%": Fraction(1, 100)}

_QUANTITY = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,18})?)\s*([A-Za-z%]*)")
_LARGEST = 2**53


def _quantity(
    value: Any, units: Mapping[str, int | Fraction], example: str
) -> Fraction:  # any: unchecked input
    """The value in the base unit; more than zero."""
    known = ", ".join(units)
    if isinstance(value, int | float) and not isinstance(value, bool):
        raise fault(
            "S206", f"{value!r} has no unit", hint=f"write for example `{example}`; the units are {known}"
        )
    match = _QUANTITY.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        negative = isinstance(value, str) and value.strip().startswith("-")
        message = "must be more than zero" if negative else "is not a quantity"
        raise fault(
            "S205" if negative else "S206",
            message,
            hint=f"write for example `{example}`; the units are {known}",
        )
    number, unit = match.groups()
    if not unit:
        raise fault(
            "S206", f"{number} has no unit", hint=f"write for example `{example}`; the units are {known}"
        )
    if unit not in units:
        nearest = next((name for name in units if name.lower() == unit.lower()), None)
        hint = f"did you mean `{number} {nearest}`?" if nearest else f"the units are {known}"
        raise fault("S206", f'the unit "{unit}" is unknown here', hint=hint)
    quantity = Fraction(number) * units[unit]
    if not 0 < quantity <= _LARGEST:
        raise fault("S205", "must be more than zero" if quantity == 0 else "is too large")
    return quantity


def _whole(units: Mapping[str, int], what: str, example: str) -> Callable[[Any], int]:
    def parse(value: Any) -> int:  # any: unchecked input
        quantity = _quantity(value, units, example)
        if quantity.denominator != 1:
            raise fault("S205", f"is {float(quantity):g} {what}, which is not a whole number")
        return quantity.numerator

    return parse


def _share(value: Any) -> float:  # any: unchecked input
    share = _quantity(value, PERCENT_UNITS, "60 %")
    if share > 1:
        raise fault("S205", "must be at most 100 %")
    return float(share)


def _schema(units: Mapping[str, int | Fraction], example: str) -> WithJsonSchema:
    pattern = rf"^\s*[0-9]+(\.[0-9]+)?\s*({'|'.join(units)})\s*$"
    return WithJsonSchema({"type": "string", "pattern": pattern, "examples": [example]})


Bytes = Annotated[int, BeforeValidator(_whole(BYTE_UNITS, "bytes", "64 KiB")), _schema(BYTE_UNITS, "64 KiB")]
"""A size, in bytes: `64 KiB`."""

Count = Annotated[int, BeforeValidator(_whole(COUNT_UNITS, "units", "6 M")), _schema(COUNT_UNITS, "6 M")]
"""A large count, of cycles or operations: `6 M`."""

Hertz = Annotated[
    int, BeforeValidator(_whole(FREQUENCY_UNITS, "Hz", "80 MHz")), _schema(FREQUENCY_UNITS, "80 MHz")
]
"""A clock frequency, in Hz: `80 MHz`."""

Percent = Annotated[float, BeforeValidator(_share), _schema(PERCENT_UNITS, "60 %")]
"""A share, more than 0 and at most 1: `60 %` is 0.6."""
