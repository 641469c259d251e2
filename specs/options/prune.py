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
        default=None, description="Channels of each group that hangs together (`uniform`), or of all."
    )
    macs: Percent | None = Field(default=None, description="Multiply-accumulates of one run.")
    params: Percent | None = Field(default=None, description="Elements of all weights and other constants.")

    weights: BytesOrShare | None = Field(
        default=None,
        description="Bytes of the weights as packed integers, with `bits`; a share is one of what 8 bits take.",
    )

    flash: BytesOrShare | None = Field(default=None, description="Code and constants.")
    ram: BytesOrShare | None = Field(
        default=None, description="The arena: the most that values and working memory take at once."
    )
    cycles: CountOrShare | None = Field(default=None, description="Cycles of one run.")
    instructions: CountOrShare | None = Field(default=None, description="Instructions of one run.")
    target: bool = Field(
        default=False,
        description="Whether it has to fit the flash and the RAM of the target. `budget: target` is short for this.",
    )

    @property
    def on_device(self) -> bool:
        """Whether some of it is only known for a target."""
        named = (self.flash, self.ram, self.cycles, self.instructions)
        return self.target or any(limit is not None for limit in named)

    @model_validator(mode="after")
    def _names_something(self) -> Self:
        named = (self.channels, self.macs, self.params, self.weights)
        if not self.on_device and all(limit is None for limit in named):
            raise fault(
                "S205",
                "a budget names a resource, of channels, macs, params, weights, flash, ram, cycles, instructions, "
                "or the target",
                hint="for example `macs: 60 %`, `flash: 48 KiB`, or `budget: target`",
            )
        return self


Budget: TypeAlias = Annotated[PruneBudget, BeforeValidator(in_full), TargetInSchema()]


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
    budget: Budget | None = Field(
        default=None,
        description="What the network may keep: of `macs`, `params` or `channels`, or of the target's `flash`, `ram`, "
        "`cycles` and `instructions`; the word `target` for its flash and RAM.",
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
    class_axis: Annotated[int, Field(ge=-8, le=8)] | None = Field(
        default=None,
        description="Dimension of the first output along which class scores lie, for the scores `taylor` and "
        "`curvature`; left out, as in `finetune`.",
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
    bits: Annotated[tuple[Literal[2, 4, 8], ...], Field(min_length=1)] | None = Field(
        default=None,
        description="Bits that the weights of each layer may have: numbers of channels and bits are then decided "
        "together, by one integer program over measured losses, and `quantize` obeys.",
    )
    steps: Annotated[int, Field(ge=1, le=100)] = Field(
        default=1,
        description="Prune, repair and train so many times, each time a part: shares of `macs`, `params` and "
        "`channels` fall geometrically to the budget.",
    )
    finetune: FinetuneOptions | None = Field(
        default=None,
        description="Training after each step, as in the pass `finetune`; the optimizer goes on with its state, cut "
        "like the weights.",
    )
    keep: LayerPatterns = Field(default=(), description="Layers whose output channels all stay.")
    seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(default=0, description="Random seed.")
    samples: Positive | None = Field(
        default=None,
        description="Calibration samples to use; all that `data.calibration` gives when left out.",
    )

    @property
    def trains(self) -> bool:
        """True with training after each step."""
        return self.finetune is not None

    def needed(self) -> Iterator[tuple[Need, Location]]:
        """Samples for scores and repairs that look at activations, and for deciding `bits`."""
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
                "S205", "`least_squares`, `bias` and `merge` make up for the same channels", hint="take one"
            )
        alone = self.allocation == "exact" and self.steps == 1 and "blocks" not in self.granularity
        if self.bits is not None and not (self.budget is not None and alone):
            raise fault(
                "S205",
                "`bits` are decided with a budget, by `allocation: exact`, in one step, and not with `blocks`",
                hint="leave out `bits`, or what does not go with them",
            )
        if self.bits is None and self.budget is not None and self.budget.weights is not None:
            raise fault(
                "S205", "a budget of `weights` needs `bits`", hint="add `bits: [4, 8]`, or take `params`"
            )
        if "blocks" in self.granularity and self.allocation != "exact":
            raise fault("S205", "`blocks` go by `allocation: exact`", hint="leave `allocation` out")
        return self
