"""Rounding of weights to one of the two adjacent integers."""

from typing import Annotated, ClassVar, Literal, TypeAlias

from pydantic import BeforeValidator, Field

from ..section import Positive, Section
from .kinds import NamesInSchema, named


class Nearest(Section):
    """Rounding to the nearest integer."""

    needs_samples: ClassVar[bool] = False

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

    needs_samples: ClassVar[bool] = True

    kind: Literal["gptq"] = Field(default="gptq", description="Compensated rounding.")
    samples: Positive = Field(default=128, description="Number of calibration samples.")
    damping: float = Field(
        default=0.01, gt=0, le=1, description="Added to the diagonal of the Hessian, as a share of its mean."
    )
    activation_order: bool = Field(
        default=False,
        description="Round the input channels of the largest activations first; the scales of groups are then chosen "
        "before.",
    )
    sequential: bool = Field(
        default=False,
        description="Calibrate each layer on the outputs of the layers that are already rounded: one run of the "
        "samples for each input of layers.",
    )


class Hqq(Section):
    """Scales and zero points by half-quadratic splitting of a norm below 1, without data (HQQ)."""

    needs_samples: ClassVar[bool] = False

    kind: Literal["hqq"] = Field(default="hqq", description="Zero points by half-quadratic splitting.")
    norm: float = Field(default=0.7, gt=0, lt=1, description="Exponent p of the norm of the errors.")
    iterations: Positive = Field(default=20, description="Largest number of iterations.")


SingleRounding: TypeAlias = Annotated[
    Annotated[Nearest | Gptq | Hqq, Field(discriminator="kind")],
    BeforeValidator(named),
    NamesInSchema((Nearest, Gptq, Hqq)),
]
"""Rounding of unscaled weights."""


class Awq(Section):
    """Scales of input channels from the magnitude of their activations, folded into the producer of the activations
    (AWQ).
    """

    needs_samples: ClassVar[bool] = True

    kind: Literal["awq"] = Field(default="awq", description="Activation-aware scales of input channels.")
    steps: Positive = Field(default=20, description="Number of exponents that are tried, from 0 to 1.")
    samples: Positive = Field(default=128, description="Number of calibration samples.")
    then: SingleRounding = Field(default=Nearest(), description="Rounding of the scaled weights.")


LayerRounding: TypeAlias = Annotated[
    Annotated[Nearest | Gptq | Hqq | Awq, Field(discriminator="kind")],
    BeforeValidator(named),
    NamesInSchema((Nearest, Gptq, Hqq, Awq)),
]
"""Rounding of weights layer by layer."""


class Learned(Section):
    """Rounding, scales, norms and biases trained end to end to match the outputs of the float network, without
    labels.
    """

    needs_samples: ClassVar[bool] = True

    kind: Literal["learned"] = Field(
        default="learned", description="Learned rounding and scales, by distillation from the float network."
    )
    start: LayerRounding = Field(default=Gptq(), description="Initial rounding.")
    steps: Positive = Field(default=200, description="Optimizer steps (Adam).")
    batch: Positive = Field(default=6, description="Batch size.")
    learning_rate: float = Field(
        default=2e-3, gt=0, le=1, description="Maximum learning rate; cosine decay to zero."
    )
    samples: Annotated[int, Field(ge=2)] = Field(
        default=128,
        description="Number of calibration samples; a tenth is held back, to keep the best step.",
    )
    seed: Annotated[int, Field(ge=0)] = Field(default=0, description="Random seed of the sample order.")


class AutoRound(Section):
    """Rounding and scales trained block by block to match each block's output, by sign descent (AutoRound)."""

    needs_samples: ClassVar[bool] = True

    kind: Literal["auto_round"] = Field(
        default="auto_round", description="Rounding and scales trained block by block."
    )
    start: LayerRounding = Field(default=Nearest(), description="Initial rounding.")
    steps: Positive = Field(default=200, description="Optimizer steps for each block.")
    batch: Positive = Field(default=8, description="Batch size.")
    optimizer: Literal["sign_sgd", "adamw"] = Field(
        default="sign_sgd", description="Sign descent, or AdamW (as ZeroQuant)."
    )
    learning_rate: float = Field(
        default=1e-3, gt=0, le=1, description="Maximum learning rate; cosine decay to zero."
    )
    samples: Annotated[int, Field(ge=2)] = Field(default=128, description="Number of calibration samples.")
    seed: Annotated[int, Field(ge=0)] = Field(default=0, description="Random seed of the sample order.")


WeightOnlyRounding: TypeAlias = Annotated[
    Annotated[Nearest | Gptq | Hqq | Awq | AutoRound | Learned, Field(discriminator="kind")],
    BeforeValidator(named),
    NamesInSchema((Nearest, Gptq, Hqq, Awq, AutoRound, Learned)),
]
"""Rounding of weights with float activations: a name, or a mapping with `kind` and the parameters of that kind."""

Rounding: TypeAlias = Annotated[
    Annotated[Nearest | AdaRound, Field(discriminator="kind")],
    BeforeValidator(named),
    NamesInSchema((Nearest, AdaRound)),
]
"""Rounding of weights of integer layers: a name, or a mapping with `kind` and the parameters of that kind."""
