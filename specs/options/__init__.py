"""The options of every pass, one module each, and their union `Pass`, told apart by the key `pass`.

To add a pass: write its options in a module here, as a subclass of `PassOptions`, and add the class to `Pass`. The
spec, the order check, `--set`, the JSON schema and the reference page follow from that.
"""

from typing import Annotated, TypeAlias

from pydantic import Field

from .base import PassOptions
from .clean import CleanOptions, CleanRule
from .fuse import FuseOptions, FuseRule
from .prune import PruneBudget, PruneOptions
from .quantize import LayerPrecision, MinMax, MovingAverage, MseSearch, Observer, Percentile, QuantizeOptions
from .remove_dead_channels import RemoveDeadChannelsOptions

Pass: TypeAlias = Annotated[
    CleanOptions | FuseOptions | PruneOptions | QuantizeOptions | RemoveDeadChannelsOptions,
    Field(discriminator="pass_"),
]
"""The options of any pass."""

PASSES: dict[str, type[PassOptions]] = {
    options.pass_name(): options
    for options in (CleanOptions, FuseOptions, PruneOptions, QuantizeOptions, RemoveDeadChannelsOptions)
}
"""Options class by the name of the pass."""

__all__ = [
    "PASSES",
    "CleanOptions",
    "CleanRule",
    "FuseOptions",
    "FuseRule",
    "LayerPrecision",
    "MinMax",
    "MovingAverage",
    "MseSearch",
    "Observer",
    "Pass",
    "PassOptions",
    "Percentile",
    "PruneBudget",
    "PruneOptions",
    "QuantizeOptions",
    "RemoveDeadChannelsOptions",
]
