"""The pass `fuse` and its rules, one module for each kind of rewrite."""

from .rules import RULES, fuse

__all__ = ["RULES", "fuse"]
