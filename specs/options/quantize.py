"""Options of `quantize`: post-training quantization of weights and activations to integers."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self, TypeAlias

from pydantic import BeforeValidator, Discriminator, Field, GetJsonSchemaHandler, Tag, model_validator
from pydantic_core import CoreSchema

from ..section import LayerPattern, Positive, Section, Selects, fault
from ..units import Percent
from .base import PassOptions


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


class MinMax(Section):
    """The range from the smallest to the largest value seen: nothing saturates."""

    kind: Literal["minmax"] = Field(default="minmax", description="Smallest and largest value seen.")


class MovingAverage(Section):
    """The average over batches of smallest and largest value, the recent ones weighing more."""

    kind: Literal["moving_average"] = Field(default="moving_average", description="Moving average of minmax.")
    momentum: float = Field(default=0.9, gt=0, lt=1, description="Weight of the past at each batch.")


class Percentile(Section):
    """The range that covers a share of the values seen; the outliers beyond it saturate."""

    kind: Literal["percentile"] = Field(
        default="percentile", description="Range that covers a share of all values."
    )
    coverage: Percent = Field(
        default=0.9999,
        json_schema_extra={"default": "99.99 %"},
        description="Share of the values inside the range.",
    )


class MseSearch(Section):
    """The range whose rounding and saturation together make the least mean squared error."""

    kind: Literal["mse"] = Field(default="mse", description="Range of the least mean squared error.")
    candidates: Annotated[int, Field(ge=2, le=10_000)] = Field(
        default=100, description="Ranges that are tried between zero and the full one."
    )


def _named(value: Any) -> Any:  # any: whatever the user wrote, checked by the models
    return {"kind": value} if isinstance(value, str) else value


class _NameInSchema:
    """Tells the JSON schema that a name alone will do."""

    def __get_pydantic_json_schema__(
        self, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:  # any: a JSON schema
        names = [
            member.model_fields["kind"].default for member in (MinMax, MovingAverage, Percentile, MseSearch)
        ]
        return {"anyOf": [{"enum": names}, handler(core_schema)]}


Observer: TypeAlias = Annotated[
    Annotated[MinMax | MovingAverage | Percentile | MseSearch, Field(discriminator="kind")],
    BeforeValidator(_named),
    _NameInSchema(),
]
"""How a range is chosen: a name, or a mapping with `kind` and the parameters of that kind."""


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
    weight_observer: Literal["minmax", "mse"] = Field(
        default="minmax", description="How the ranges of weights are chosen."
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
        description="What becomes of a layer whose int32 accumulators could overflow: it stays float, or is an error.",
    )
    samples: Positive | None = Field(
        default=None,
        description="Calibration samples to use; all that `data.calibration` gives when left out.",
    )
