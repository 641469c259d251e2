"""Options of `equalize`: channels between consecutive layers brought to the same range."""

from typing import ClassVar, Literal

from pydantic import Field

from ..section import LayerPatterns
from .base import PassOptions


class EqualizeOptions(PassOptions):
    """Brings each channel between two layers to the same range in both: what one gains by, the next loses.

    The network computes the same. Grids that several channels share lose less: those of activations always, those of
    weights with `per_channel: false`.
    """

    before: ClassVar[tuple[str, ...]] = ("assign_bits", "quantize")
    why: ClassVar[str] = "equalize scales the weights of float layers"

    pass_: Literal["equalize"] = Field(default="equalize", alias="pass", description="The name of the pass.")
    keep: LayerPatterns = Field(default=(), description="Layers whose weights stay as they are.")
