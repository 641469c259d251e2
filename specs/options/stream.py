"""Options of `stream`: a network over a window of frames is rewritten to take only the new frames at each call."""

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field, PositiveInt

from ..model import Axis
from ..section import Name
from .base import PassOptions


class StreamOptions(PassOptions):
    """Rewrites a network over a window of frames: each call takes the new frames and the states.

    States hold the elements of earlier frames that layers over time read again. They become inputs and outputs of the
    network (`model.state`) and start with zeros. From the call that the report names, outputs equal those of the
    window network, for integers byte for byte. A layer that needs the whole window at once is refused: attention over
    time, reversed direction, padding after the last frame. `stream` is the last pass; calibration and evaluation data
    stay windows.
    """

    is_last: ClassVar[bool] = True
    why: ClassVar[str] = "samples are windows, but the streamed network takes frames"

    pass_: Literal["stream"] = Field(default="stream", alias="pass", description="The name of the pass.")
    axis: Axis | Mapping[Name, Axis] = Field(
        description="Time axis of the input, counted from 0 with the batch; by name for some of several inputs. "
        "An input that is left out has no time axis.",
        examples=[2, {"mfcc": 2}],
    )
    hop: PositiveInt = Field(
        default=1,
        description="New frames of each call: a multiple of the product of the strides along time.",
    )
