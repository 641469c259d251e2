"""Options of `weight_only`: weights as integers, activations as they are."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from ..section import LayerPattern, Positive, Selects
from .base import PassOptions


class WeightOnlyOptions(PassOptions):
    """Stores the weights of matrix products and embeddings as integers, with a scale for each group.

    Activations stay in float. Language models at batch 1 are limited by memory bandwidth. For the torch module only:
    such weights have no C form.
    """

    has_c_form: ClassVar = False

    pass_: Literal["weight_only"] = Field(
        default="weight_only", alias="pass", description="The name of the pass."
    )
    weights: Literal["int8", "int4", "int2"] = Field(default="int4", description="Type of the weights.")
    group_size: Positive | None = Field(
        default=32,
        description="Number of consecutive weights along the last dimension that share a scale (in a linear layer, "
        "weights of one output); `null`: one scale for the whole dimension. If it does not divide the dimension, the "
        "nearest divisor is used.",
    )
    observer: Literal["minmax", "mse"] = Field(
        default="mse",
        description="Selection of scales: largest weight, or least squared error.",
    )
    layers: Annotated[Mapping[LayerPattern, Literal["float32", "int8", "int4", "int2"]], Selects()] = Field(
        default={},
        description="Exceptions by layer: a pattern, and the type of the weights. The last matching pattern applies; "
        "a shared weight has the widest type that one of its layers requests.",
    )
