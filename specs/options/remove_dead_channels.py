"""Options of `remove_dead_channels`: interval propagation on the integer graph."""

from typing import ClassVar, Literal

from pydantic import Field

from ..section import LayerPatterns
from .base import PassOptions


class RemoveDeadChannelsOptions(PassOptions):
    """Removes channels that are constant for every input or not used; no output byte changes."""

    after: ClassVar[tuple[str, ...]] = ("quantize",)
    why: ClassVar[str] = "the proof that a channel is constant is made on the integer graph"

    pass_: Literal["remove_dead_channels"] = Field(
        default="remove_dead_channels", alias="pass", description="The name of the pass."
    )
    keep: LayerPatterns = Field(default=(), description="Layers that keep all channels.")
