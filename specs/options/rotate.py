"""Options of `rotate`: an orthogonal matrix folded into the weights around a residual stream."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from .base import PassOptions


class RotateOptions(PassOptions):
    """Rotates the residual stream of networks with RMS norms by a random Hadamard matrix (QuaRot).

    The function of the network is unchanged. Outliers of single channels are spread over all of them, so that weights
    and activations lose less when they are quantized.
    """

    before: ClassVar[tuple[str, ...]] = ("assign_bits", "quantize", "weight_only")
    why: ClassVar[str] = "rotate changes the weights of float layers"

    pass_: Literal["rotate"] = Field(default="rotate", alias="pass", description="The name of the pass.")
    seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(
        default=0,
        description="Random seed of the signs, and of the factor of a width that is not a power of two.",
    )
