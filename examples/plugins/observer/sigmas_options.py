"""Options of the observer `sigmas`; nothing here imports torch."""

from typing import Literal

from pydantic import Field

from fxpress.specs.extension import OwnObserver


class Sigmas(OwnObserver):
    """Range of `width` standard deviations around the mean; values outside saturate."""

    kind: Literal["sigmas"] = Field(default="sigmas", description="Standard deviations around the mean.")
    width: float = Field(default=3.0, gt=0, le=100, description="How many, to either side.")
