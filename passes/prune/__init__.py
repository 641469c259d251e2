"""The pass `prune`, structured pruning: saliency scores, allocation within budgets, costs, repairs without training."""

from .allocation import allocate
from .channel_costs import costs_of
from .pruning import prune
from .ranking import rank
from .scores import score_units
from .verification import Verified, verify_cut, why_nothing_goes

__all__ = [
    "Verified",
    "allocate",
    "costs_of",
    "prune",
    "rank",
    "score_units",
    "verify_cut",
    "why_nothing_goes",
]
