"""Options of `fuse`: joining neighbours into one node."""

from typing import ClassVar, Literal, TypeAlias

from pydantic import Field

from ..section import LayerPatterns
from .base import PassOptions

FuseRule: TypeAlias = Literal["batchnorm", "activation", "residual", "pad", "linear"]


class FuseOptions(PassOptions):
    """Folds batch norms, activations, residual adds and paddings into the layers next to them."""

    before: ClassVar[tuple[str, ...]] = ("quantize",)
    why: ClassVar[str] = "fusion works on the float graph, and what it joins is quantized as one"

    pass_: Literal["fuse"] = Field(default="fuse", alias="pass", description="The name of the pass.")
    disable: tuple[FuseRule, ...] = Field(
        default=(),
        description="Rules to switch off: `batchnorm` (into convolution, transposed convolution, linear), "
        "`activation` (ReLU, clamp and the like into the producer), `residual` (add into the producer), `pad` (into "
        "the convolution after it), `linear` (two linear layers without anything between them, where it shrinks).",
    )
    keep: LayerPatterns = Field(default=(), description="Layers that no rule touches.")
