"""Options of `quantize`: post-training quantization of weights and activations to integers."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self, TypeAlias

from pydantic import Discriminator, Field, Tag, model_validator

from ..section import LayerPattern, Positive, Section, Selects, fault
from .base import PassOptions
from .least_snr import LeastSnr, MinSnr, in_full
from .observer import MinMax, Observer, WeightObserver
from .rounding import Nearest, Rounding


class LayerBits(Section):
    """Storage of a layer's weights and of the activations that it reads; what is left out is as for all layers."""

    weights: Literal["int8", "int4", "int2"] | None = Field(
        default=None, description="Storage of its weights."
    )
    activations: Literal["int8", "int16"] | None = Field(
        default=None,
        description="Storage of the activations that it reads. Values that share a grid take the widest that is "
        "asked of one of them.",
    )

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.weights is None and self.activations is None:
            raise fault("S205", "names `weights`, `activations` or both", hint="for example `weights: int4`")
        return self


def _form(value: Any) -> str:  # any: whatever the user wrote, checked by the form that this names
    return "name" if isinstance(value, str) else "bits"


LayerPrecision: TypeAlias = Annotated[
    Annotated[Literal["float32", "int8", "int4", "int2"], Tag("name")] | Annotated[LayerBits, Tag("bits")],
    Discriminator(_form),
]
"""How one layer is to be stored: its weights, or also the activations that it reads, or `float32` for neither."""


class QuantizeOptions(PassOptions):
    """Turns the graph into integers: weights symmetric, activations asymmetric per tensor, biases int32."""

    needs: ClassVar = frozenset({"calibration"})

    pass_: Literal["quantize"] = Field(default="quantize", alias="pass", description="The name of the pass.")
    weights: Literal["int8", "int4", "int2"] = Field(default="int8", description="Storage of the weights.")
    activations: Literal["int8", "int16"] = Field(default="int8", description="Storage of the activations.")
    per_channel: bool = Field(
        default=True, description="One weight scale for each output channel; off: one for the whole weight."
    )
    observer: Observer = Field(
        default=MinMax(),
        description="How the ranges of activations are chosen on the calibration data. A name alone takes the "
        "parameters at their defaults.",
    )
    weight_observer: WeightObserver = Field(
        default="minmax",
        description="How the ranges of weights are chosen. Below 8 bits, and beside activations of 16 bits, `minmax` "
        "means `mse`; `aciq` clips at the optimum for a Laplace or Gauss distribution and restores each channel's "
        "standard deviation after quantization.",
    )
    rounding: Rounding = Field(
        default=Nearest(),
        description="How weights become integers: the nearer one, or with `adaround` the one that keeps the layer's "
        "output on the calibration data. A name alone takes the parameters at their defaults.",
    )
    codebook_bits: Annotated[int, Field(ge=1, le=7)] | None = Field(
        default=None,
        description="Let the int8 weights of a layer share 2^bits values, found by k-means: an index of so many bits "
        "then tells each of them. The report has the bytes of indices and of their Huffman code.",
    )
    bias_correction: bool = Field(
        default=True,
        description="Take back in the biases what the rounding of weights adds to the mean of each output channel, as "
        "measured on the calibration data.",
    )
    layers: Annotated[Mapping[LayerPattern, LayerPrecision], Selects()] = Field(
        default={},
        description="Layers that differ: a pattern, and the storage of their weights, or `float32` for layers that "
        "stay as they are, or a mapping of `weights` and `activations`. The last pattern that matches a layer "
        "decides. What this leaves open is as `assign_bits` decided, where it stands before.",
    )
    on_overflow: Literal["float", "error"] = Field(
        default="float",
        description="What becomes of a layer whose accumulators or scales no integer form holds: it stays float, or is "
        "an error.",
    )
    min_snr: MinSnr | None = Field(
        default=LeastSnr(),
        description="Signal-to-noise ratio that integers must keep against the float graph, on up to 16 calibration "
        "samples. Below it the report says which layer adds the noise, why, and which changes of this pass helped when "
        "they were tried. A quantity alone is that of outputs; `null` switches this off.",
    )
    on_low_snr: Literal["note", "error"] = Field(
        default="note",
        description="What follows where an output, or a layer whose noise reaches one, has less than `min_snr`: a "
        "note, or an error.",
    )
    samples: Positive | None = Field(
        default=None,
        description="Calibration samples to use; all that `data.calibration` gives when left out.",
    )

    @property
    def least_snr(self) -> LeastSnr | None:
        """The ratios below which noise is examined; None where it never is."""
        return None if self.min_snr is None else in_full(self.min_snr)

    @model_validator(mode="after")
    def _measures_what_it_refuses(self) -> Self:
        if self.min_snr is None and self.on_low_snr == "error":
            raise fault(
                "S205", "has `on_low_snr: error` without `min_snr`", hint="give a ratio, or drop one of them"
            )
        return self

    @model_validator(mode="after")
    def _shares_or_learns(self) -> Self:
        if self.codebook_bits is not None and not isinstance(self.rounding, Nearest):
            raise fault(
                "S205",
                "has `codebook_bits` and learned `rounding`, which would undo it",
                hint="drop one of them",
            )
        return self
