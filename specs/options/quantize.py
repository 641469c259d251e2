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
    """Types of a layer's weights and of the activations that it reads. Default: as for all other layers."""

    weights: Literal["int16", "int8", "int4", "int2", "binary"] | None = Field(
        default=None, description="Type of the weights."
    )
    activations: Literal["int16", "int8", "int4", "int2"] | None = Field(
        default=None,
        description="Type of the activations that the layer reads. Values that share quantization parameters have "
        "the widest type that is requested for one of them.",
    )

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.weights is None and self.activations is None:
            raise fault(
                "S205", "must have `weights`, `activations` or both", hint="for example `weights: int4`"
            )
        return self


def _form(value: Any) -> str:  # any: a value from a spec, checked by the annotated type
    return "name" if isinstance(value, str) else "bits"


LayerPrecision: TypeAlias = Annotated[
    Annotated[Literal["float32", "int16", "int8", "int4", "int2", "binary"], Tag("name")]
    | Annotated[LayerBits, Tag("bits")],
    Discriminator(_form),
]
"""Storage of one layer: type of its weights, types of weights and activations, or `float32` for no quantization."""


class QuantizeOptions(PassOptions):
    """Post-training quantization: weights symmetric, activations asymmetric per tensor, biases int32."""

    before: ClassVar[tuple[str, ...]] = ("weight_only", "product_quantize")
    why: ClassVar[str] = "weights are stored for integer layers, or beside float activations, not both"
    needs: ClassVar = frozenset({"calibration"})
    roles: ClassVar[tuple[str, ...]] = ("residual", "gates", "outputs")
    """The options that give values a type by their role."""

    pass_: Literal["quantize"] = Field(default="quantize", alias="pass", description="The name of the pass.")
    weights: Literal["int16", "int8", "int4", "int2", "binary"] = Field(
        default="int8",
        description="Type of the weights. Weights of 16 bits have the resolution that 32-bit sums allow: about 10 "
        "bits for a row of 256 weights with 16-bit activations. `int2` is ternary: -1, 0 and 1 times the scale. "
        "`binary` is -1 and 1 times the mean magnitude of the channel.",
    )
    activations: Literal["int16", "int8", "int4", "int2"] = Field(
        default="int8",
        description="Type of the activations. `int4` and `int2` apply to what layers and matrix products read, except "
        "inputs of the network; all other values have 8 bits.",
    )
    residual: Literal["int8", "int16"] = Field(
        default="int8",
        description="Type of residual streams: sums that a layer norm or RMS norm reads, and what is added to them. "
        "Layers read streams of `int16` as their `activations` say, rounded once.",
    )
    gates: Literal["int8", "int16"] = Field(
        default="int8",
        description="Type of what nonlinear functions read (GELU, SiLU, sigmoid, tanh, softmax), and of both factors "
        "of a product of activations. Their results have the type that their readers ask for.",
    )
    outputs: Literal["int8", "int16"] = Field(
        default="int8",
        description="Type of outputs, such as logits, and of what operators without an integer form read, such as "
        "log-softmax and argmax.",
    )
    per_channel: bool = Field(
        default=True, description="One weight scale per output channel; off: one per weight tensor."
    )
    observer: Observer = Field(
        default=MinMax(),
        description="Selection of activation ranges from calibration data. A name alone uses the default parameters.",
    )
    weight_observer: WeightObserver = Field(
        default="minmax",
        description="Selection of weight ranges. Below 8 bits, and with 16-bit activations, `minmax` means `mse`; "
        "`aciq` clips at the optimum for a Laplace or Gauss distribution and restores each channel's standard "
        "deviation after quantization.",
    )
    rounding: Rounding = Field(
        default=Nearest(),
        description="Rounding of weights: to nearest, or with `adaround` such that the layer's output on the "
        "calibration data is preserved. A name alone uses the default parameters.",
    )
    codebook_bits: Annotated[int, Field(ge=1, le=7)] | None = Field(
        default=None,
        description="Weight sharing: the int8 weights of a layer have at most 2^bits different values (k-means). The "
        "report has the size of indices and of a Huffman code.",
    )
    bias_correction: bool = Field(
        default=True,
        description="Correct biases for the change in the mean of each output channel caused by weight rounding, "
        "measured on the calibration data.",
    )
    layers: Annotated[Mapping[LayerPattern, LayerPrecision], Selects()] = Field(
        default={},
        description="Exceptions by layer: a pattern, and the type of the weights, `float32` for layers that are not "
        "quantized, or a mapping of `weights` and `activations`. The last matching pattern applies; what it leaves "
        "open is as `assign_bits` decided, if that pass ran before.",
    )
    on_overflow: Literal["float", "error"] = Field(
        default="float",
        description="Layers whose accumulators or scales have no integer form: stay in float, or are an error.",
    )
    min_snr: MinSnr | None = Field(
        default=LeastSnr(),
        description="Minimum signal-to-noise ratio of the integer graph against the float graph, on up to 16 "
        "calibration samples. Below it the report has the layer that causes the noise, the reason, and changes of "
        "this pass that were tried and helped. A single quantity is the limit for outputs; `null` switches the "
        "analysis off.",
    )
    on_low_snr: Literal["note", "error"] = Field(
        default="note",
        description="If an output, or a layer whose noise reaches an output, is below `min_snr`: a note, or an error.",
    )
    samples: Positive | None = Field(
        default=None,
        description="Number of calibration samples. Default: all of `data.calibration`.",
    )

    @property
    def least_snr(self) -> LeastSnr | None:
        """The ratios below which noise is analysed; None if the analysis is off."""
        return None if self.min_snr is None else in_full(self.min_snr)

    @model_validator(mode="after")
    def _measures_what_it_refuses(self) -> Self:
        if self.min_snr is None and self.on_low_snr == "error":
            raise fault(
                "S205",
                "has `on_low_snr: error` without `min_snr`",
                hint="set `min_snr`, or remove the option",
            )
        return self

    @model_validator(mode="after")
    def _shares_or_learns(self) -> Self:
        if self.codebook_bits is not None and not isinstance(self.rounding, Nearest):
            raise fault(
                "S205",
                "has `codebook_bits` and learned `rounding`, which would undo it",
                hint="remove one of them",
            )
        return self
