"""Observers: selection of an activation's range from calibration statistics."""

from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

from pydantic import BeforeValidator, Field

from ..plugins import OBSERVER_OPTIONS, join
from ..section import Section
from ..units import Percent
from .kinds import NamesInSchema, named

Candidates = Annotated[int, Field(ge=2, le=10_000)]


class MinMax(Section):
    """Range from the smallest to the largest value: nothing saturates."""

    kind: Literal["minmax"] = Field(default="minmax", description="Smallest and largest value seen.")


class MovingAverage(Section):
    """Exponential moving average, over batches, of the smallest and the largest value."""

    kind: Literal["moving_average"] = Field(default="moving_average", description="Moving average of minmax.")
    momentum: float = Field(
        default=0.9, gt=0, lt=1, description="Weight of the previous average at each batch."
    )


class Percentile(Section):
    """Range that covers a share of the values; outliers beyond it saturate."""

    kind: Literal["percentile"] = Field(
        default="percentile", description="Range that covers a share of the values."
    )
    coverage: Percent = Field(
        default=0.9999,
        json_schema_extra={"default": "99.99 %"},
        description="Share of the values inside the range.",
    )


class MseSearch(Section):
    """Range with the least mean squared error of rounding and saturation."""

    kind: Literal["mse"] = Field(default="mse", description="Range with the least mean squared error.")
    candidates: Candidates = Field(default=100, description="Number of ranges that are tried.")


class Entropy(Section):
    """Range with the least KL divergence between the histograms before and after quantization."""

    kind: Literal["kl"] = Field(default="kl", description="Range with the least KL divergence.")
    candidates: Candidates = Field(default=100, description="Number of ranges that are tried.")


class Aciq(Section):
    """Range with the least mean squared error for a Laplace or Gauss distribution, whichever fits better."""

    kind: Literal["aciq"] = Field(
        default="aciq", description="Analytic clip of a Laplace or Gauss distribution."
    )


class OwnObserver(Section):
    """Base of the options of an observer that a package adds; the first field of a subclass is `kind` with its name."""

    kind: str


_OWN = (MinMax, MovingAverage, Percentile, MseSearch, Entropy, Aciq)
OBSERVERS: dict[str, type[Section]] = join(
    OBSERVER_OPTIONS,
    Section,
    {str(options.model_fields["kind"].default): options for options in _OWN},
    kind="kind",
)
"""Options classes by the name of the observer."""

if TYPE_CHECKING:
    Observer: TypeAlias = MinMax | MovingAverage | Percentile | MseSearch | Entropy | Aciq | OwnObserver
else:
    Observer = Annotated[
        Annotated[reduce(or_, OBSERVERS.values()), Field(discriminator="kind")],
        BeforeValidator(named),
        NamesInSchema(tuple(OBSERVERS.values())),
    ]
"""Choice of a range: a name, or a mapping with `kind` and the parameters of that kind."""

WeightObserver: TypeAlias = Literal["minmax", "mse", "aciq"]
"""Choice of the scale of an output channel's weights."""
