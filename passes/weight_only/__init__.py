"""The pass `weight_only`: weights stored as integers, used in float computation."""

from . import auto_round, awq, gptq, hqq, learned
from .weight_storage import weight_only

__all__ = ["auto_round", "awq", "gptq", "hqq", "learned", "weight_only"]
