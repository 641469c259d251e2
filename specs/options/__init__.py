"""The options of every pass, one module each, and their union `Pass`, told apart by the key `pass`.

To add a pass: write its options in a module here, as a subclass of `PassOptions`, and add the class to `_OWN`. The
spec, the order check, `--set`, the JSON schema and the reference page follow from that. A package of a user's own
adds its options through the entry point group `fxpress.options`; they must not import
torch, and take `PassOptions` from `fxpress.specs.options.base`.
"""

from functools import reduce
from importlib.metadata import EntryPoint, entry_points
from operator import or_
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

from pydantic import Field, TypeAdapter

from .assign_bits import AssignBitsOptions, BitBudget, SensitivityMethod
from .base import PassOptions
from .clean import CleanOptions, CleanRule
from .equalize import EqualizeOptions
from .finetune import Augmentation, Distillation, FinetuneOptions
from .fuse import FuseOptions, FuseRule
from .observer import Aciq, Entropy, MinMax, MovingAverage, MseSearch, Observer, Percentile, WeightObserver
from .prune import PruneBudget, PruneOptions
from .quantize import LayerBits, LayerPrecision, QuantizeOptions
from .remove_dead_channels import RemoveDeadChannelsOptions
from .rounding import AdaRound, Nearest, Rounding
from .sparsify import SparsifyOptions
from .weight_only import WeightOnlyOptions

ENTRY_POINT_GROUP = "fxpress.options"
_OWN = (
    AssignBitsOptions,
    CleanOptions,
    EqualizeOptions,
    FinetuneOptions,
    FuseOptions,
    PruneOptions,
    QuantizeOptions,
    RemoveDeadChannelsOptions,
    SparsifyOptions,
    WeightOnlyOptions,
)

PASSES: dict[str, type[PassOptions]] = {options.pass_name(): options for options in _OWN}
"""Options class by the name of the pass."""

BROKEN: dict[str, str] = {}
"""Passes of other packages whose options cannot be used, and why: nothing else fails for them."""


def _join(entry: EntryPoint) -> None:
    """Add the options that a package brings, or note why they cannot be used."""
    try:
        options = entry.load()
        name = options.pass_name()
        if not issubclass(options, PassOptions) or name in PASSES:
            raise TypeError(f"{entry.value} is no PassOptions with a name of its own")
        joined: Any = Annotated[
            CleanOptions | options, Field(discriminator="pass_")
        ]  # any: a type, as `Pass` is
        TypeAdapter(joined)
    except (Exception, SystemExit) as err:  # the package may raise anything
        BROKEN[entry.name] = f"{entry.value} raises {type(err).__name__}: {err}"
    else:
        PASSES[name] = options


for _entry in sorted(entry_points(group=ENTRY_POINT_GROUP), key=lambda e: e.name):
    _join(_entry)

if TYPE_CHECKING:
    Pass: TypeAlias = PassOptions
else:
    Pass = Annotated[reduce(or_, PASSES.values()), Field(discriminator="pass_")]
"""The options of any pass."""

__all__ = [
    "BROKEN",
    "ENTRY_POINT_GROUP",
    "PASSES",
    "Aciq",
    "AdaRound",
    "AssignBitsOptions",
    "Augmentation",
    "BitBudget",
    "CleanOptions",
    "CleanRule",
    "Distillation",
    "Entropy",
    "EqualizeOptions",
    "FinetuneOptions",
    "FuseOptions",
    "FuseRule",
    "LayerBits",
    "LayerPrecision",
    "MinMax",
    "MovingAverage",
    "MseSearch",
    "Nearest",
    "Observer",
    "Pass",
    "PassOptions",
    "Percentile",
    "PruneBudget",
    "PruneOptions",
    "QuantizeOptions",
    "RemoveDeadChannelsOptions",
    "Rounding",
    "SensitivityMethod",
    "SparsifyOptions",
    "WeightObserver",
    "WeightOnlyOptions",
]
