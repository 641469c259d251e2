"""Quantities with units."""

import pytest
from pydantic import TypeAdapter, ValidationError

from fxpress.specs.units import Bytes, Count, Hertz, Percent


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (Bytes, "64 KiB", 65536),
        (Bytes, "64KiB", 65536),
        (Bytes, " 1.5 KiB ", 1536),
        (Bytes, "2 MB", 2_000_000),
        (Bytes, "1 B", 1),
        (Count, "6 M", 6_000_000),
        (Count, "0.5 k", 500),
        (Count, "1.25 G", 1_250_000_000),
        (Hertz, "168 MHz", 168_000_000),
        (Hertz, "32768 Hz", 32768),
        (Percent, "60 %", 0.6),
        (Percent, "99.99%", 0.9999),
        (Percent, "100 %", 1.0),
    ],
)
def test_a_quantity_is_read_and_written_back(kind: type, text: str, value: float) -> None:
    adapter = TypeAdapter[float](kind)
    assert adapter.validate_python(text) == value
    written = adapter.dump_python(value, mode="json")
    assert adapter.validate_python(written) == value
    assert adapter.dump_python(value) == value


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        (Bytes, 64, "64 has no unit"),
        (Bytes, "64", "64 has no unit"),
        (Bytes, 1.5, "1.5 has no unit"),
        (Bytes, "64 %", 'unknown unit "%"'),
        (Bytes, "1.5 B", "is 1.5 in the base unit, which is not a whole"),
        (Bytes, "0 B", "must be more than zero"),
        (Bytes, "-1 B", "must be more than zero"),
        (Bytes, "-1", "-1 has no unit"),
        (Bytes, "99999999 GiB", "must be at most 9007199254740992 B"),
        (Bytes, "1" * 30 + " B", "is not a quantity"),
        (Bytes, "", "is not a quantity"),
        (Bytes, True, "is not a quantity"),
        (Bytes, None, "is not a quantity"),
        (Bytes, "1e3 B", "is not a quantity"),
        (Bytes, "٣ B", "is not a quantity"),
        (Percent, 60, "60 has no unit"),
        (Percent, "101 %", "must be at most 100 %"),
        (Percent, "0 %", "must be more than zero"),
        (Count, "6", "6 has no unit"),
        (Count, "6 m", 'unknown unit "m"'),
        (Hertz, "1 mhz", "unknown unit"),
    ],
)
def test_what_is_no_quantity_is_refused(kind: type, value: object, message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        TypeAdapter[float](kind).validate_python(value)
    assert message in caught.value.errors()[0]["msg"]
