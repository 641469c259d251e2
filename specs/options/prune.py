"""Options of `prune`: removal of whole channels."""

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal, Self, TypeAlias

from pydantic import BeforeValidator, Field, model_validator

from ..section import FilePath, LayerPatterns, Positive, Section, fault
from ..tree import Location
from ..units import BytesOrShare, CountOrShare, Percent
from .base import Need, PassOptions
from .finetune import FinetuneOptions
from .target_budget import TargetInSchema, in_full

Score: TypeAlias = Literal[
    "l1", "l2", "geometric_median", "merging", "batchnorm", "taylor", "curvature", "activation", "random"
]
Compensation: TypeAlias = Literal["least_squares", "bias", "merge", "batchnorm"]
Granularity: TypeAlias = Literal["channels", "heads", "blocks"]


class PruneBudget(Section):
    """Budgets of the pruned network; all of them apply. A percentage is relative to the pass's input graph.

    Flash, RAM, cycles and instructions are those of the target, as predicted for what the passes after this one make
    of the network.
    """

    channels: Percent | None = Field(
        default=None, description="Channels of each group of coupled channels (`uniform`), or of all."
    )
    macs: Percent | None = Field(default=None, description="Multiply-accumulates of one run.")
    params: Percent | None = Field(default=None, description="Elements of all constants.")

    weights: BytesOrShare | None = Field(
        default=None,
        description="Bytes of the packed integer weights; requires `bits`. A percentage is relative to int8.",
    )

    flash: BytesOrShare | None = Field(default=None, description="Code and constants.")
    ram: BytesOrShare | None = Field(default=None, description="Size of the arena.")
    cycles: CountOrShare | None = Field(
        default=None, description="Cycles of one run, on a target whose core has published timing."
    )
    instructions: CountOrShare | None = Field(default=None, description="Instructions of one run.")
    target: bool = Field(
        default=False,
        description="Fit the flash and RAM of the target. `budget: target` is short for this.",
    )

    @property
    def on_device(self) -> bool:
        """True if a limit depends on the target."""
        named = (self.flash, self.ram, self.cycles, self.instructions)
        return self.target or any(limit is not None for limit in named)

    @model_validator(mode="after")
    def _names_something(self) -> Self:
        named = (self.channels, self.macs, self.params, self.weights)
        if not self.on_device and all(limit is None for limit in named):
            raise fault(
                "S205",
                "a budget needs a resource: channels, macs, params, weights, flash, ram, cycles, instructions, "
                "or the target",
                hint="for example `macs: 60 %`, `flash: 48 KiB`, or `budget: target`",
            )
        return self


Budget: TypeAlias = Annotated[PruneBudget, BeforeValidator(in_full), TargetInSchema()]


def _listed(value: object) -> object:
    """A single name as a list."""
    return (value,) if isinstance(value, str) else value


class PruneOptions(PassOptions):
    """Removes channels, together with all channels coupled to them, until the budget is met."""

    before: ClassVar[tuple[str, ...]] = ("quantize", "product_quantize")
    repeatable: ClassVar[bool] = True
    predicted: ClassVar[bool] = False
    why: ClassVar[str] = "channels are removed from the float graph, which is quantized afterwards"

    pass_: Literal["prune"] = Field(default="prune", alias="pass", description="The name of the pass.")
    budget: Budget | None = Field(
        default=None,
        description="Limits of the network: on `macs`, `params` or `channels`, or on the target's `flash`, `ram`, "
        "`cycles` and `instructions`; or the word `target` for its flash and RAM.",
    )
    plan: FilePath | None = Field(
        default=None,
        description="Pruning plan of an earlier run, `prune.plan.json`: removes the same channels again.",
    )
    granularity: Annotated[tuple[Granularity, ...], BeforeValidator(_listed), Field(min_length=1)] = Field(
        default=("channels",),
        description="Structures that can be removed: `channels` (in an attention, the same positions of each head), "
        "whole attention `heads`, residual `blocks`, or a list of these.",
    )
    score: Score = Field(
        default="l2",
        description="Saliency of a channel: norm of its weights (`l1`, `l2`), distance from the others "
        "(`geometric_median`), change when merged with the most similar one (`merging`), scale of its batch norm "
        "(`batchnorm`), change of the loss (`taylor`, on calibration data, with labels if there are any), "
        "second-order change of the class probabilities (`curvature`, on calibration data), mean magnitude of its "
        "activations (`activation`), or `random`.",
    )
    class_axis: Annotated[int, Field(ge=-8, le=8)] | None = Field(
        default=None,
        description="Class dimension of the first output, for the scores `taylor` and `curvature`. Default: as in "
        "`finetune`.",
    )
    aggregate: Literal["mean", "sum", "max"] = Field(
        default="mean", description="Combination of the scores from several weight tensors of one channel."
    )
    normalize: Literal["mean", "max", "none"] = Field(
        default="mean",
        description="Divisor of the scores, computed over the group of the channel.",
    )
    allocation: Literal["uniform", "global", "exact"] = Field(
        default="exact",
        description="Choice of the number of channels removed from each group: the same share (`uniform`), the "
        "lowest scores (`global`), or the optimum within the budget by an integer program (`exact`).",
    )
    floor: Percent = Field(
        default=0.1,
        json_schema_extra={"default": "10 %"},
        description="Minimum share of each group that is kept.",
    )
    multiple: Annotated[int, Field(ge=1, le=64)] = Field(
        default=1,
        description="Keep a multiple of this number of channels, as kernels of the target require for full speed.",
    )
    compensation: tuple[Compensation, ...] = Field(
        default=(),
        description="Repairs without training. One of `least_squares` (reconstruct the removed channels from the "
        "kept ones), `bias` (replace them by their mean), `merge` (replace them by the most similar kept channel, "
        "without data); and `batchnorm` (re-estimate statistics).",
    )
    bits: Annotated[tuple[Literal[2, 4, 8], ...], Field(min_length=1)] | None = Field(
        default=None,
        description="Allowed bit widths of weights: channels and bit widths are then chosen together, by one integer "
        "program over measured losses, and `quantize` uses the result.",
    )
    steps: Annotated[int, Field(ge=1, le=100)] = Field(
        default=1,
        description="Number of rounds of pruning, repairs and training; limits on `macs`, `params` and `channels` "
        "decrease geometrically.",
    )
    finetune: FinetuneOptions | None = Field(
        default=None,
        description="Training after each step, with the options of the pass `finetune`; the optimizer state is "
        "pruned like the weights and continued.",
    )
    keep: LayerPatterns = Field(default=(), description="Layers that keep all output channels.")
    seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(default=0, description="Random seed.")
    samples: Positive | None = Field(
        default=None,
        description="Number of calibration samples. Default: all of `data.calibration`.",
    )

    @property
    def takes_all_samples(self) -> bool:
        """True with training after each step."""
        return self.finetune is not None

    def needed(self) -> Iterator[tuple[Need, Location]]:
        """Need of samples for scores and repairs that use activations, and for the choice of `bits`."""
        yield from super().needed()
        asked = {
            "score": self.score in ("taylor", "curvature", "activation"),
            "compensation": bool({*self.compensation} - {"merge"}),
            "bits": self.bits is not None,
        }
        yield from (("calibration", (name,)) for name, is_asked in asked.items() if is_asked)

    @model_validator(mode="after")
    def _says_how_much(self) -> Self:
        if (self.budget is None) == (self.plan is None):
            raise fault("S205", "takes a `budget` or a `plan`", hint="for example `budget: {macs: 60 %}`")
        if len({"least_squares", "bias", "merge"} & set(self.compensation)) > 1:
            raise fault(
                "S205",
                "`least_squares`, `bias` and `merge` compensate for the same channels",
                hint="choose one of them",
            )
        alone = self.allocation == "exact" and self.steps == 1 and "blocks" not in self.granularity
        if self.bits is not None and not (self.budget is not None and alone):
            raise fault(
                "S205",
                "`bits` require a budget, `allocation: exact`, one step, and no `blocks`",
                hint="remove `bits`, or the options that exclude it",
            )
        if self.bits is None and self.budget is not None and self.budget.weights is not None:
            raise fault(
                "S205", "a budget of `weights` needs `bits`", hint="add `bits: [4, 8]`, or use `params`"
            )
        if "blocks" in self.granularity and self.allocation != "exact":
            raise fault(
                "S205",
                "`blocks` require `allocation: exact`",
                hint="write `allocation: exact`, or remove `blocks`",
            )
        return self
