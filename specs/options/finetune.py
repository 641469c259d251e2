"""Options of `finetune`: training of the graph as it stands, in float or on integers."""

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal, Self, TypeAlias

from pydantic import BeforeValidator, Field, model_validator

from ..model import FileSource, ModuleSource, Source
from ..section import FilePath, LayerPatterns, Name, Positive, Section, fault
from ..tree import Location
from ..units import Percent
from .base import Need, PassOptions

NamedLoss: TypeAlias = Literal["cross_entropy", "mse"]
_Rate = Annotated[float, Field(gt=0, le=10)]
_Count = Annotated[int, Field(ge=0, lt=2**31)]


def _loss(value: Any) -> Any:  # any: whatever the user wrote, checked by the union
    if isinstance(value, str) and ":" not in value and value not in ("cross_entropy", "mse"):
        hint = "write `cross_entropy`, `mse`, or `file.py:function` for one of your own"
        raise fault("S204", "is no loss", hint=hint)
    return value


class Distillation(Section):
    """Teaching by the model as it was captured: its outputs (Hinton et al., 2015), and layers (FitNets, 2015)."""

    weight: Percent = Field(
        default=0.7,
        json_schema_extra={"default": "70 %"},
        description="Share of the teacher's outputs in the loss; the rest is that of labels.",
    )
    temperature: Annotated[float, Field(ge=1, le=100)] = Field(
        default=4.0, description="By what class scores are divided before their softmax."
    )
    layers: tuple[Name, ...] = Field(
        default=(),
        description="Modules whose results are taught too, by their mean squared difference; where the student has "
        "fewer channels, through a linear map that is learned and thrown away.",
        examples=[["block2", "block3"]],
    )
    layer_weight: Annotated[float, Field(gt=0, le=1000)] = Field(
        default=1.0,
        description="What the error of `layers`, relative to the teacher's power, counts beside the rest.",
    )


class Augmentation(Section):
    """Images changed at random each time they are seen: inputs of the form [n, c, h, w]."""

    flip: bool = Field(default=False, description="Mirrors every other image, left to right.")
    shift: Annotated[int, Field(ge=0, le=256)] = Field(
        default=0, description="Moves each image by up to so many pixels; its border is repeated."
    )


class FinetuneOptions(PassOptions):
    """Trains weights and biases on `data.calibration`: against its labels, and against the captured model.

    After `quantize` it trains the integer graph, with its rounding in the loop and the steps of its grids learned.
    """

    repeatable: ClassVar[bool] = True
    predicted: ClassVar[bool] = False
    needs: ClassVar = frozenset({"calibration"})
    written: ClassVar = frozenset({"checkpoint"})

    pass_: Literal["finetune"] = Field(default="finetune", alias="pass", description="The name of the pass.")
    epochs: _Count = Field(default=5, description="Number of epochs; 0 only evaluates.")
    batch: Positive = Field(default=64, description="Samples of one step.")
    loss: Annotated[NamedLoss | Source, BeforeValidator(_loss)] = Field(
        default="cross_entropy",
        description="Loss against the labels: `cross_entropy`, `mse`, or `file.py:function` that makes one number of "
        "the outputs (a tuple where there are several) and the labels.",
    )
    class_axis: Annotated[int, Field(ge=-8, le=8)] | None = Field(
        default=None,
        description="Dimension of the first output along which class scores lie, for labels and distillation. Left "
        "out: the last one of [n, c] and [n, t, c], dimension 1 of [n, c, h, w]; labels of each position that fit "
        "only the other decide. Without labels, outputs of more than two dimensions are class scores only where this "
        "is given.",
    )
    ignore_index: int = Field(
        default=-100, description="Label of positions that do not count, as in torch: padding, borders."
    )
    optimizer: Literal["sgd", "adamw"] = Field(default="adamw", description="With momentum 0.9, or AdamW.")
    learning_rate: _Rate = Field(
        default=1e-3, description="The highest; after the warm-up it falls to zero as half a cosine wave."
    )
    warmup: _Count = Field(default=0, description="Epochs in which the learning rate rises from zero.")
    weight_decay: Annotated[float, Field(ge=0, le=1)] = Field(
        default=1e-4, description="Weight decay; biases are exempt."
    )
    distill: Distillation | None = Field(
        default=Distillation(), description="Teaching by the captured model; `null` for labels alone."
    )
    augment: Augmentation | None = Field(default=None, description="Random changes of images.")
    learn_steps: bool = Field(
        default=True,
        description="Of an integer graph: learns the steps of weights and activations too (LSQ, Esser et al., 2020).",
    )
    keep_zeros: bool = Field(
        default=True,
        description="Zeros among the float weights of a layer stay zeros, as `sparsify` made them.",
    )
    validation: Percent = Field(
        default=0.1,
        json_schema_extra={"default": "10 %"},
        description="Share of the samples that is not trained on; the epoch that does best on it is kept.",
    )
    patience: Positive | None = Field(
        default=None, description="Stop after this many epochs without a better one; never when left out."
    )
    checkpoint: FilePath | None = Field(
        default=None,
        description="File that is written after each epoch; a training that finds its own there goes on from it, and "
        "ends with the same bytes.",
    )
    keep: LayerPatterns = Field(default=(), description="Layers that are not trained.")
    seed: _Count = Field(default=0, description="Random seed of the sample order and of `augment`.")
    samples: Positive | None = Field(
        default=None,
        description="Samples to train on; when left out all in the file of `data.calibration`, or as many as that "
        "says.",
    )

    @model_validator(mode="after")
    def _warms_up_before_the_end(self) -> Self:
        if self.warmup and self.warmup >= self.epochs:
            raise fault("S205", f"a `warmup` of {self.warmup} leaves nothing of {self.epochs} epochs")
        return self

    @property
    def trains(self) -> bool:
        """True: all samples, unless the spec says how many."""
        return True

    def needed(self) -> Iterator[tuple[Need, Location]]:
        """Samples, and labels for a loss of one's own or where nothing else teaches."""
        yield from super().needed()
        if self.own_loss is not None:
            yield "labels", ("loss",)
        elif self.distill is None:
            yield "labels", ("distill",)

    @property
    def own_loss(self) -> FileSource | ModuleSource | None:
        """The user's own loss; None for a named one."""
        return None if isinstance(self.loss, str) else self.loss
