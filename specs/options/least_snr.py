"""Signal-to-noise limit below which the report analyses the quantization noise and proposes changes."""

from typing import Annotated, Any, TypeAlias

from pydantic import Discriminator, Field, Tag

from ..section import Section
from ..units import Decibel


class LeastSnr(Section):
    """Minimum signal-to-noise ratios of the integer graph against the float graph."""

    output: Decibel = Field(
        default=15.0,
        json_schema_extra={"default": "15 dB"},
        description="Minimum ratio of an output. For an output of whole numbers: number of elements over number of "
        "elements that differ.",
    )
    layer: Decibel = Field(
        default=10.0,
        json_schema_extra={"default": "10 dB"},
        description="Minimum ratio of a layer whose noise reaches an output, that is, is at least a tenth of the "
        "noise that the output may have.",
    )


def _form(value: Any) -> str:  # any: a value from a spec, checked by the annotated type
    return "output" if isinstance(value, str | int | float) else "each"


MinSnr: TypeAlias = Annotated[
    Annotated[Decibel, Tag("output")] | Annotated[LeastSnr, Tag("each")], Discriminator(_form)
]
"""Ratios of outputs and of layers, or one ratio for outputs only."""


def in_full(given: float | LeastSnr) -> LeastSnr:
    """Both ratios; the ratio of layers is the default if only that of outputs is given."""
    return given if isinstance(given, LeastSnr) else LeastSnr().model_copy(update={"output": given})
