"""Options of `weight_only`: stores weights as integers."""

from collections.abc import Iterator, Mapping
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from ..section import LayerPattern, Positive, Section, Selects, fault
from ..tree import Location
from ..units import BytesOrShare
from .base import Need, PassOptions
from .rounding import Nearest, WeightOnlyRounding

StoredType = Literal["int8", "int6", "int5", "int4", "int3", "int2", "nf4", "fp8_e4m3", "mxfp4"]
ScaleForm = Literal["float32", "float16", "bfloat16", "double", "e8m0"]
_TABLES = ("nf4", "fp8_e4m3", "mxfp4")
_MICROSCALING = ("fp8_e4m3", "mxfp4")


class StoredWeightsBudget(Section):
    """Limits of stored weights; with both, the loss is minimized within them."""

    weights: BytesOrShare | None = Field(
        default=None,
        description="Bytes of codes and scales. A percentage is relative to the widest of `widths` for all weights.",
    )
    loss: Annotated[float, Field(gt=0)] | None = Field(
        default=None,
        description="Maximum predicted loss: nats for classes, squared error relative to the outputs otherwise. The "
        "size is minimized within it.",
    )
    samples: Positive = Field(default=16, description="Number of calibration samples to measure losses on.")

    @model_validator(mode="after")
    def _names_something(self) -> Self:
        if self.weights is None and self.loss is None:
            raise fault(
                "S205", "a budget needs `weights`, `loss` or both", hint="for example `weights: 50 %`"
            )
        return self


class WeightOnlyOptions(PassOptions):
    """Stores the weights of matrix products and embeddings as integers, with a scale for each group.

    Language models at batch 1 are limited by memory bandwidth, so that smaller weights run faster. Inputs of linear
    layers are rounded to int8 at run time (`activations`), all other values stay in float. For the torch module, and
    for C on a computer (target `host`).
    """

    fits_microcontrollers: ClassVar = False

    pass_: Literal["weight_only"] = Field(
        default="weight_only", alias="pass", description="The name of the pass."
    )
    weights: StoredType = Field(
        default="int4",
        description="Type of the weights: integers, or the levels of NF4, FP8 (E4M3) or MXFP4, which no kernel "
        "multiplies with: they are dequantized in each call.",
    )
    budget: StoredWeightsBudget | None = Field(
        default=None,
        description="Choose the width of each weight, embeddings included, by its measured loss, within these limits; "
        "`weights` does not apply then.",
    )
    widths: Annotated[tuple[Literal[2, 3, 4, 5, 6, 8], ...], Field(min_length=1)] = Field(
        default=(2, 3, 4, 5, 6, 8), description="Bit widths that `budget` chooses from."
    )
    group_size: Positive | None = Field(
        default=32,
        description="Number of consecutive weights along the last dimension that share a scale (in a linear layer, "
        "weights of one output); `null`: one scale for the whole dimension. If it does not divide the dimension, the "
        "nearest divisor is used.",
    )
    scales: ScaleForm | None = Field(
        default=None,
        description="How scales are stored. `double`: codes of 8 bits, with a scale of float32 for each 256 of them "
        "and an offset for the weight. `e8m0`: powers of two in one byte, for `mxfp4` and `fp8_e4m3`. Default: "
        "`e8m0` for `mxfp4`, `float16` for all others. Scales of integers can be negative; the integers have no zero "
        "point.",
    )
    observer: Literal["minmax", "mse"] = Field(
        default="mse",
        description="Selection of scales: largest weight, or least squared error.",
    )
    rounding: WeightOnlyRounding = Field(
        default=Nearest(),
        description="Rounding of the weights of linear layers; all others are rounded to nearest.",
    )
    activations: Literal["int8", "float32"] = Field(
        default="int8",
        description="Type of the inputs of linear layers in the product. `int8`: rounded at run time, with a scale for "
        "each token. `float32`: not rounded, slower.",
    )
    layers: Annotated[Mapping[LayerPattern, Literal["float32"] | StoredType], Selects()] = Field(
        default={},
        description="Exceptions by layer: a pattern, and the type of the weights. The last matching pattern applies; "
        "a shared weight has the widest type that one of its layers requests.",
    )

    @model_validator(mode="after")
    def _rounds_tables_to_nearest(self) -> Self:
        tables = [kind for kind in (self.weights, *self.layers.values()) if kind in _TABLES]
        if tables and not isinstance(self.rounding, Nearest):
            raise fault(
                "S205",
                f"`{tables[0]}` has levels in a table; `rounding: {self.rounding.kind}` applies to integers",
                hint="write `rounding: nearest`, or integers",
            )
        return self

    @model_validator(mode="after")
    def _stores_scales_that_the_weights_have(self) -> Self:
        own = () if self.budget is not None else (self.weights,)
        for kind in (*own, *(kind for kind in self.layers.values() if kind != "float32")):
            if self.scales == "e8m0" and kind not in _MICROSCALING:
                raise fault(
                    "S205",
                    f"`scales: e8m0` are powers of two; those of `{kind}` are not",
                    hint="remove `scales`: the default is e8m0 for `mxfp4`, and float16 for all others",
                )
            if self.scales == "double" and kind == "mxfp4":
                raise fault(
                    "S205",
                    "scales of `mxfp4` are powers of two, which `scales: double` cannot store",
                    hint="remove `scales`, or write `scales: e8m0`",
                )
        if self.scales == "e8m0" and self.budget is not None:
            raise fault(
                "S205",
                "`budget` chooses integers, whose scales are not the powers of two that `scales: e8m0` stores",
                hint="leave `scales` out",
            )
        return self

    def scales_of(self, kind: str | None) -> ScaleForm:
        """Storage form of the scales for a weight type; None: that of integers."""
        return self.scales or ("e8m0" if kind == "mxfp4" else "float16")

    def needed(self) -> Iterator[tuple[Need, Location]]:
        """Need of calibration data if bit widths or the rounding use it."""
        if self.budget is not None:
            yield "calibration", ("budget",)
        if self.rounding.needs_samples:
            yield "calibration", ("rounding",)
