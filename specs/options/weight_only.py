"""Options of `weight_only`: weights as integers."""

from collections.abc import Iterator, Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from ..section import LayerPattern, Positive, Selects
from ..tree import Location
from .base import Need, PassOptions
from .rounding import Gptq, Nearest, WeightOnlyRounding

Integers = Literal["int8", "int6", "int5", "int4", "int3", "int2"]


class WeightOnlyOptions(PassOptions):
    """Stores the weights of matrix products and embeddings as integers, with a scale for each group.

    Language models at batch 1 are limited by memory bandwidth, so that fewer bytes of weights are more speed. Inputs of
    linear layers are rounded to int8 at run time (`activations`), all other values stay in float. For the torch module
    only: such weights have no C form.
    """

    has_c_form: ClassVar = False

    pass_: Literal["weight_only"] = Field(
        default="weight_only", alias="pass", description="The name of the pass."
    )
    weights: Integers = Field(default="int4", description="Type of the weights.")
    group_size: Positive | None = Field(
        default=32,
        description="Number of consecutive weights along the last dimension that share a scale (in a linear layer, "
        "weights of one output); `null`: one scale for the whole dimension. If it does not divide the dimension, the "
        "nearest divisor is used.",
    )
    scales: Literal["float32", "float16", "bfloat16"] = Field(
        default="float16",
        description="Type of the scales. They have either sign, the integers no zero point.",
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
    layers: Annotated[Mapping[LayerPattern, Literal["float32"] | Integers], Selects()] = Field(
        default={},
        description="Exceptions by layer: a pattern, and the type of the weights. The last matching pattern applies; "
        "a shared weight has the widest type that one of its layers requests.",
    )

    def needed(self) -> Iterator[tuple[Need, Location]]:
        """Calibration data where the rounding depends on them."""
        if isinstance(self.rounding, Gptq):
            yield "calibration", ("rounding",)
