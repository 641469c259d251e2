"""The pass `remove_dead_channels`: channels of an integer graph that are constant or unread, proven by intervals."""

from .removal import remove_dead_channels

__all__ = ["remove_dead_channels"]
