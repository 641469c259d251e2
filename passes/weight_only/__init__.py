"""The pass `weight_only`: weights stored as integers, computed with as floats."""

from .weight_storage import weight_only

__all__ = ["weight_only"]
