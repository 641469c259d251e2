"""Options of `fuse`: merges adjacent nodes into one node."""

from typing import Annotated, ClassVar, Literal, TypeAlias

from pydantic import Field

from ..plugins import FUSION_RULES, NamedPart
from ..section import LayerPatterns
from .base import PassOptions

FuseRule: TypeAlias = Literal["batchnorm", "activation", "residual", "pad", "linear", "magnitude", "product"]


class FuseOptions(PassOptions):
    """Folds batch norms, activations, residual additions and padding into adjacent layers."""

    before: ClassVar[tuple[str, ...]] = ("quantize", "product_quantize")
    why: ClassVar[str] = "fusion works on the float graph, and fused operators are quantized as one"

    pass_: Literal["fuse"] = Field(default="fuse", alias="pass", description="The name of the pass.")
    disable: tuple[FuseRule, ...] = Field(
        default=(),
        description="Rules to switch off: `batchnorm` (into convolution, transposed convolution, linear), "
        "`activation` (ReLU, clamp and similar into the producer), `residual` (addition into the producer), `pad` "
        "(into the convolution after it; taps that read only padding are removed), `linear` (two consecutive "
        "linear layers, if that is smaller), `magnitude` (sqrt(a^2 + b^2) as one operator), `product` (matrix products "
        "with a constant as linear layers, constants added to channels as biases).",
    )
    add: tuple[Annotated[str, NamedPart(FUSION_RULES)], ...] = Field(
        default=(), description="Rules of other packages to apply after those of fxpress, in this order."
    )
    keep: LayerPatterns = Field(default=(), description="Layers to which no rule applies.")
