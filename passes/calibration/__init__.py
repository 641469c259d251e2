"""Calibration: runs of a network on samples, and ranges of values that observers choose from them."""

from .observers import Range, Statistics

__all__ = ["Range", "Statistics"]
