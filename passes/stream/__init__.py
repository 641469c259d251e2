"""The pass `stream`: rewrites a network over a window of frames to one that takes the new frames and a state."""

from .streaming import stream

__all__ = ["stream"]
