"""Options of `equalize`: channels between consecutive layers brought to the same range."""

from typing import ClassVar, Literal

from pydantic import Field

from ..section import LayerPatterns
from .base import PassOptions


class EqualizeOptions(PassOptions):
    """Equalizes weight ranges: scales one layer's channels and divides the next layer's by the same factors.

    The function of the network is unchanged. It reduces the error of per-tensor quantization: of activations always,
    of weights with `per_channel: false`.
    """

    before: ClassVar[tuple[str, ...]] = ("assign_bits", "quantize")
    why: ClassVar[str] = "equalize scales the weights of float layers"

    pass_: Literal["equalize"] = Field(default="equalize", alias="pass", description="The name of the pass.")
    keep: LayerPatterns = Field(default=(), description="Layers whose weights stay as they are.")
