"""Training of float and integer graphs, for passes that train."""

from .loop import Trained, train
from .optimizer import OptimizerState

__all__ = ["OptimizerState", "Trained", "train"]
