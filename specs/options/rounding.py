"""Rounding of weights to one of the two adjacent integers."""

from typing import Annotated, Literal, TypeAlias

from pydantic import BeforeValidator, Field

from ..section import Positive, Section
from .kinds import NamesInSchema, named


class Nearest(Section):
    """The nearer of the two integers."""

    kind: Literal["nearest"] = Field(default="nearest", description="The nearer integer.")


class AdaRound(Section):
    """The integer that keeps the layer's output: learned on calibration data, layer after layer."""

    kind: Literal["adaround"] = Field(default="adaround", description="Up or down, learned for each weight.")
    iterations: Positive = Field(default=2000, description="Steps of the optimizer for each layer.")
    samples: Positive = Field(
        default=512, description="Calibration samples to learn from, fewer where the network is large."
    )
    learning_rate: float = Field(default=0.01, gt=0, le=1, description="Step size of Adam.")
    seed: Annotated[int, Field(ge=0)] = Field(
        default=0, description="Decides which places of the samples are learned from."
    )


Rounding: TypeAlias = Annotated[
    Annotated[Nearest | AdaRound, Field(discriminator="kind")],
    BeforeValidator(named),
    NamesInSchema((Nearest, AdaRound)),
]
"""How weights are rounded: a name, or a mapping with `kind` and the parameters of that kind."""
