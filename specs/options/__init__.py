"""Options of every pass, one module each, and their union `Pass`, distinguished by the key `pass`.

To add a pass: write its options in a module here, as a subclass of `PassOptions`, and add the class to `_OWN`. The
spec, the order check, `--set`, the JSON schema and the reference page follow from that. A user's package adds its
options through the entry point group `fxpress.options`; they must not import torch, and import `PassOptions` from
`fxpress.specs.extension`.
"""

from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Annotated, TypeAlias

from pydantic import Field

from ..plugins import PASS_OPTIONS, join
from .assign_bits import AssignBitsOptions, BitBudget, SensitivityMethod
from .base import PassOptions
from .clean import CleanOptions, CleanRule
from .distillation import Distillation, FeatureKind, FeaturePair, Teacher
from .equalize import EqualizeOptions
from .finetune import (
    Adapter,
    Augmentation,
    FinetuneOptions,
    GatedPrompts,
    Lora,
    LowRank,
    Prompts,
    PromptTuning,
)
from .fuse import FuseOptions, FuseRule
from .observer import (
    Aciq,
    Entropy,
    MinMax,
    MovingAverage,
    MseSearch,
    Observer,
    OwnObserver,
    Percentile,
    WeightObserver,
)
from .product_quantize import ProductQuantizeOptions
from .prune import PruneBudget, PruneOptions
from .quantize import LayerBits, LayerPrecision, QuantizeOptions
from .remove_dead_channels import RemoveDeadChannelsOptions
from .rotate import RotateOptions
from .rounding import AdaRound, AutoRound, Awq, Gptq, Hqq, Learned, Nearest, Rounding
from .smooth import SmoothOptions
from .sparsify import SparsifyOptions
from .stream import StreamOptions
from .weight_only import StoredWeightsBudget, WeightOnlyOptions

_OWN = (
    AssignBitsOptions,
    CleanOptions,
    EqualizeOptions,
    FinetuneOptions,
    FuseOptions,
    ProductQuantizeOptions,
    PruneOptions,
    QuantizeOptions,
    RemoveDeadChannelsOptions,
    RotateOptions,
    SmoothOptions,
    SparsifyOptions,
    StreamOptions,
    WeightOnlyOptions,
)

PASSES: dict[str, type[PassOptions]] = join(
    PASS_OPTIONS, PassOptions, {options.pass_name(): options for options in _OWN}, kind="pass_"
)
"""Options class by the name of the pass."""

if TYPE_CHECKING:
    Pass: TypeAlias = PassOptions
else:
    Pass = Annotated[reduce(or_, PASSES.values()), Field(discriminator="pass_")]
"""The options of any pass."""

__all__ = [
    "PASSES",
    "Aciq",
    "AdaRound",
    "Adapter",
    "AssignBitsOptions",
    "Augmentation",
    "AutoRound",
    "Awq",
    "BitBudget",
    "CleanOptions",
    "CleanRule",
    "Distillation",
    "Entropy",
    "EqualizeOptions",
    "FeatureKind",
    "FeaturePair",
    "FinetuneOptions",
    "FuseOptions",
    "FuseRule",
    "GatedPrompts",
    "Gptq",
    "Hqq",
    "LayerBits",
    "LayerPrecision",
    "Learned",
    "Lora",
    "LowRank",
    "MinMax",
    "MovingAverage",
    "MseSearch",
    "Nearest",
    "Observer",
    "OwnObserver",
    "Pass",
    "PassOptions",
    "Percentile",
    "ProductQuantizeOptions",
    "PromptTuning",
    "Prompts",
    "PruneBudget",
    "PruneOptions",
    "QuantizeOptions",
    "RemoveDeadChannelsOptions",
    "RotateOptions",
    "Rounding",
    "SensitivityMethod",
    "SmoothOptions",
    "SparsifyOptions",
    "StoredWeightsBudget",
    "StreamOptions",
    "Teacher",
    "WeightObserver",
    "WeightOnlyOptions",
]
