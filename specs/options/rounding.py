"""Rounding of weights to one of the two adjacent integers."""

from typing import Annotated, Literal, TypeAlias

from pydantic import BeforeValidator, Field

from ..section import Positive, Section
from .kinds import NamesInSchema, named


class Nearest(Section):
    """Rounding to the nearest integer."""

    kind: Literal["nearest"] = Field(default="nearest", description="Rounding to nearest.")


class AdaRound(Section):
    """Learned rounding that preserves the layer's output on the calibration data (AdaRound), layer by layer."""

    kind: Literal["adaround"] = Field(
        default="adaround", description="Learned rounding, up or down for each weight."
    )
    iterations: Positive = Field(default=2000, description="Optimizer steps per layer.")
    samples: Positive = Field(
        default=512, description="Number of calibration samples, fewer for large networks."
    )
    learning_rate: float = Field(default=0.01, gt=0, le=1, description="Learning rate of Adam.")
    seed: Annotated[int, Field(ge=0)] = Field(
        default=0, description="Random seed of the selected output positions."
    )


class Gptq(Section):
    """Rounding column by column, each error compensated in the columns that follow, for the layer's output (GPTQ)."""

    kind: Literal["gptq"] = Field(default="gptq", description="Compensated rounding.")
    samples: Positive = Field(default=128, description="Number of calibration samples.")
    damping: float = Field(
        default=0.01, gt=0, le=1, description="Added to the diagonal of the Hessian, as a share of its mean."
    )


WeightOnlyRounding: TypeAlias = Annotated[
    Annotated[Nearest | Gptq, Field(discriminator="kind")],
    BeforeValidator(named),
    NamesInSchema((Nearest, Gptq)),
]
"""Rounding of weights beside float activations: a name, or a mapping with `kind` and the parameters of that kind."""

Rounding: TypeAlias = Annotated[
    Annotated[Nearest | AdaRound, Field(discriminator="kind")],
    BeforeValidator(named),
    NamesInSchema((Nearest, AdaRound)),
]
"""How weights are rounded: a name, or a mapping with `kind` and the parameters of that kind."""
