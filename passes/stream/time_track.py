"""Time in a window network: elements of a value that are the same in the next window, moved towards the start.

The input has `frames` elements along its time axis, and the next window begins `hop` frames later. Element i of a
value along its own time axis depends on the frames `step * i + oldest` to `step * i + newest` of the window. Of its
`count` elements those from `first` up to `stop` depend only on frames; the others also depend on the start or end of
the window, as next to padding.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from ...ir import Node
from ...ir.along_axis import Track
from ..errors import PassError


class StreamError(PassError):
    """A network that cannot run frame by frame; the message names each layer with the reason."""

    def __init__(self, refusals: Iterable[str]) -> None:
        super().__init__("; ".join(dict.fromkeys(refusals)))


@dataclass(frozen=True)
class TimeTrack(Track):
    """A value with a time axis; `pads_front` and `pads_end` are the layers that make elements not clean."""

    step: int
    oldest: int
    newest: int
    first: int
    stop: int
    pads_front: Node | None = None
    pads_end: Node | None = None

    @staticmethod
    def of_input(axis: int, frames: int) -> TimeTrack:
        """The track of the input itself."""
        return TimeTrack(axis, frames, 1, 0, 0, 0, frames)


@dataclass(frozen=True)
class Span:
    """The frames of the window on which a value without a time axis depends, both ends included."""

    oldest: int
    newest: int


def layer_name(node: Node) -> str:
    """Name of a node in messages: its first result, and the user's module if it has one."""
    module = f" ({node.source.module})" if node.source.module else ""
    return f"%{node.outputs[0].name}{module}"
