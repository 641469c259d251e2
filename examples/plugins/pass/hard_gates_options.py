"""Options of the pass `hard_gates`; nothing here imports torch."""

from typing import ClassVar, Literal

from pydantic import Field

from fxpress.specs.extension import LayerPatterns, PassOptions


class HardGatesOptions(PassOptions):
    """Replaces sigmoids by hard sigmoids."""

    before: ClassVar[tuple[str, ...]] = ("quantize",)
    why: ClassVar[str] = "it changes the float function, which quantize measures"

    pass_: Literal["hard_gates"] = Field(
        default="hard_gates", alias="pass", description="The name of the pass."
    )
    keep: LayerPatterns = Field(default=(), description="Layers whose sigmoids stay.")
