"""Time in a window network: which elements of a value are the same in the next window, only further to the front.

The input has `frames` elements along its time axis, and the next window begins `hop` frames later. Element i of a value
along its own time axis belongs to the frames `step * i + oldest` to `step * i + newest` of the window. Of its `count`
elements those from `first` up to `stop` depend on frames alone; the others also depend on where the window begins or
ends, as next to padding.
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
    """A value that has a time axis; `pads_front` and `pads_end` are the layers behind elements that are not clean."""

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
    """The frames of the window that a value without a time axis depends on, both ends included."""

    oldest: int
    newest: int


def layer_name(node: Node) -> str:
    """A node as messages name it: its first result, and the user's module if it has one."""
    module = f" ({node.source.module})" if node.source.module else ""
    return f"%{node.outputs[0].name}{module}"
