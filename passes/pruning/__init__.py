"""Structured pruning: saliency scores, allocation within budgets, costs, and repairs without training."""

from .allocation import allocate
from .cost import costs_of
from .ranking import rank
from .scores import score_units
from .verification import Verified, verify_cut, why_nothing_goes

__all__ = [
    "Verified",
    "allocate",
    "costs_of",
    "rank",
    "score_units",
    "verify_cut",
    "why_nothing_goes",
]
