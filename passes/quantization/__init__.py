"""Quantization: precisions, ranges, grids, rounding, and the lowering to integer operators."""

from .observers import Range, Statistics

__all__ = ["Range", "Statistics"]
