"""Options of `smooth`: outliers of activations moved into the weights that read them."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from ..section import LayerPatterns, Positive
from .base import Need, PassOptions


class SmoothOptions(PassOptions):
    """Moves outliers of linear layers' inputs into the weights, channel by channel (SmoothQuant).

    The function of the network is unchanged. Inputs that are quantized with one scale, for the tensor or for a token,
    lose less; weights lose more.
    """

    before: ClassVar[tuple[str, ...]] = ("assign_bits", "quantize", "weight_only")
    why: ClassVar[str] = "smooth scales the weights of float layers"
    needs: ClassVar[frozenset[Need]] = frozenset({"calibration"})

    pass_: Literal["smooth"] = Field(default="smooth", alias="pass", description="The name of the pass.")
    strength: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.5,
        description="Exponent: 1 brings all channels of the inputs to the same range, 0 all channels of the weights.",
    )
    samples: Positive = Field(default=128, description="Number of calibration samples.")
    keep: LayerPatterns = Field(default=(), description="Layers whose weights stay as they are.")
