"""Options of `prune`: removal of whole channels."""

from typing import Annotated, ClassVar, Literal, Self, TypeAlias

from pydantic import BeforeValidator, Field, model_validator

from ..section import FilePath, LayerPatterns, Positive, Section, fault
from ..units import Percent
from .base import PassOptions

Score: TypeAlias = Literal[
    "l1", "l2", "geometric_median", "merging", "batchnorm", "taylor", "curvature", "activation", "random"
]
Compensation: TypeAlias = Literal["least_squares", "bias", "merge", "batchnorm"]
Granularity: TypeAlias = Literal["channels", "heads", "blocks"]


class PruneBudget(Section):
    """What the network may keep, as shares of what the pass is given; all of them hold."""

    channels: Percent | None = Field(
        default=None, description="Channels of each group that hangs together (`uniform`), or of all."
    )
    macs: Percent | None = Field(default=None, description="Multiply-accumulates of one run.")
    params: Percent | None = Field(default=None, description="Elements of all weights and other constants.")

    @model_validator(mode="after")
    def _names_something(self) -> Self:
        if self.channels is None and self.macs is None and self.params is None:
            raise fault(
                "S205", "a budget names `channels`, `macs` or `params`", hint="for example `macs: 60 %`"
            )
        return self


def _listed(value: object) -> object:
    """One name where a list may stand."""
    return (value,) if isinstance(value, str) else value


class PruneOptions(PassOptions):
    """Removes whole channels, and all that hangs together with them, until a budget is met."""

    before: ClassVar[tuple[str, ...]] = ("quantize",)
    repeatable: ClassVar[bool] = True
    predicted: ClassVar[bool] = False
    why: ClassVar[str] = "channels are removed from the float graph, and what is left is quantized"

    pass_: Literal["prune"] = Field(default="prune", alias="pass", description="The name of the pass.")
    budget: PruneBudget | None = Field(
        default=None, description="What the network may keep: shares of `macs`, `params` or `channels`."
    )
    plan: FilePath | None = Field(
        default=None,
        description="A plan of an earlier run, `prune.plan.json`: removes the same channels again.",
    )
    granularity: Annotated[tuple[Granularity, ...], BeforeValidator(_listed), Field(min_length=1)] = Field(
        default=("channels",),
        description="What goes: `channels` (of an attention, the same places in each head), whole attention `heads`, "
        "residual `blocks`, or a list of these.",
    )
    score: Score = Field(
        default="l2",
        description="What a channel is worth: norm of its weights (`l1`, `l2`), distance from the others "
        "(`geometric_median`), what merging it with the most similar one changes "
        "(`merging`), scale of its batch norm (`batchnorm`), change of the loss without it (`taylor`, on "
        "calibration data, with labels where there are some), second-order change of the class probabilities "
        "(`curvature`, on calibration data), mean size of its activations (`activation`), or `random`.",
    )
    aggregate: Literal["mean", "sum", "max"] = Field(
        default="mean", description="How the norms of the weights that go with one channel become one score."
    )
    normalize: Literal["mean", "max", "none"] = Field(
        default="mean",
        description="What the norms are divided by, over the channels that could go in its place.",
    )
    allocation: Literal["uniform", "global", "exact"] = Field(
        default="exact",
        description="How many channels each group gives: the same share (`uniform`), what scores lowest (`global`), "
        "or the most score within the budget, by an integer program (`exact`).",
    )
    floor: Percent = Field(
        default=0.1,
        json_schema_extra={"default": "10 %"},
        description="Share of each group that stays at least.",
    )
    multiple: Annotated[int, Field(ge=1, le=64)] = Field(
        default=1, description="Channels are kept in multiples of this, as kernels of the target like them."
    )
    compensation: tuple[Compensation, ...] = Field(
        default=(),
        description="Repairs without training. One of `least_squares` (the layers that read removed channels make them "
        "from those that stay), `bias` (they take them at their mean), `merge` (they read the most similar channel "
        "in their place, without data); and `batchnorm` (statistics measured anew).",
    )
    keep: LayerPatterns = Field(default=(), description="Layers whose output channels all stay.")
    seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(default=0, description="Of random numbers.")
    samples: Positive | None = Field(
        default=None,
        description="Calibration samples to use; all that `data.calibration` gives when left out.",
    )

    @model_validator(mode="after")
    def _says_how_much(self) -> Self:
        if (self.budget is None) == (self.plan is None):
            raise fault("S205", "takes a `budget` or a `plan`", hint="for example `budget: {macs: 60 %}`")
        if len({"least_squares", "bias", "merge"} & set(self.compensation)) > 1:
            raise fault(
                "S205", "`least_squares`, `bias` and `merge` make up for the same channels", hint="take one"
            )
        if "blocks" in self.granularity and self.allocation != "exact":
            raise fault("S205", "`blocks` go by `allocation: exact`", hint="leave `allocation` out")
        return self
