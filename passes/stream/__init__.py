"""The pass `stream`: a network over a window of frames becomes one that takes the new frames and a state."""

from .streaming import stream

__all__ = ["stream"]
