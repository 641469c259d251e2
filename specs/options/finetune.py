"""Options of `finetune`: training of the graph as it stands."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from ..section import LayerPatterns, Positive, Section
from ..units import Percent
from .base import PassOptions

_Rate = Annotated[float, Field(gt=0, le=10)]


class Distillation(Section):
    """Teaching by the model as it was captured: its outputs, softened by a temperature (Hinton et al., 2015)."""

    weight: Percent = Field(
        default=0.7,
        json_schema_extra={"default": "70 %"},
        description="Share of the loss; the rest is that of labels.",
    )
    temperature: Annotated[float, Field(ge=1, le=100)] = Field(
        default=4.0, description="By what outputs are divided before their softmax."
    )


class FinetuneOptions(PassOptions):
    """Trains weights and biases on `data.calibration`: against its labels, and against the captured model."""

    before: ClassVar[tuple[str, ...]] = ("quantize",)
    repeatable: ClassVar[bool] = True
    predicted: ClassVar[bool] = False
    needs: ClassVar = frozenset({"calibration"})
    why: ClassVar[str] = "training works on the float graph, and what it learns is quantized"

    pass_: Literal["finetune"] = Field(default="finetune", alias="pass", description="The name of the pass.")
    epochs: Positive = Field(default=5, description="How often all samples are seen.")
    batch: Positive = Field(default=64, description="Samples of one step.")
    optimizer: Literal["sgd", "adamw"] = Field(default="adamw", description="With momentum 0.9, or AdamW.")
    learning_rate: _Rate = Field(
        default=1e-3, description="At the start; it falls to zero as a quarter of a cosine wave."
    )
    weight_decay: Annotated[float, Field(ge=0, le=1)] = Field(
        default=1e-4, description="Of weights, not of biases."
    )
    distill: Distillation | None = Field(
        default=Distillation(), description="Teaching by the captured model; `null` for labels alone."
    )
    validation: Percent = Field(
        default=0.1,
        json_schema_extra={"default": "10 %"},
        description="Share of the samples that is not trained on; the epoch that does best on it is kept.",
    )
    patience: Positive | None = Field(
        default=None, description="Stop after this many epochs without a better one; never when left out."
    )
    keep: LayerPatterns = Field(default=(), description="Layers that are not trained.")
    seed: Annotated[int, Field(ge=0, lt=2**31)] = Field(default=0, description="Of the order of samples.")
    samples: Positive | None = Field(
        default=None, description="Samples to train on; all that `data.calibration` gives when left out."
    )
