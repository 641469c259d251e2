"""Options of `weight_only`: weights as integers, activations as they are."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from ..section import LayerPattern, Positive, Selects
from .base import PassOptions


class WeightOnlyOptions(PassOptions):
    """Stores the weights of matrix products and embeddings as integers, with a scale for each group of them.

    Activations stay float: a large language model at batch 1 waits for its weights to come from memory. For the torch
    module only: its weights have no C form.
    """

    has_c_form: ClassVar = False

    pass_: Literal["weight_only"] = Field(
        default="weight_only", alias="pass", description="The name of the pass."
    )
    weights: Literal["int8", "int4", "int2"] = Field(default="int4", description="Storage of the weights.")
    group_size: Positive | None = Field(
        default=32,
        description="Consecutive weights along the last dimension that share a scale, for a linear layer those of one "
        "output; `null` for one scale for all of them. Where it does not divide that dimension, the nearest size that "
        "does is taken.",
    )
    observer: Literal["minmax", "mse"] = Field(
        default="mse",
        description="How scales are chosen: by the largest weight, or by the least squared error.",
    )
    layers: Annotated[Mapping[LayerPattern, Literal["float32", "int8", "int4", "int2"]], Selects()] = Field(
        default={},
        description="Layers that differ: a pattern, and the storage of their weights. The last pattern that matches a "
        "layer decides; a weight that several layers share is stored as the widest of them asks.",
    )
