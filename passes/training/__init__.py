"""Training of a graph, float or quantized, for passes that train: `train` and what it needs and gives."""

from .loop import Trained, train
from .optimizer import OptimizerState

__all__ = ["OptimizerState", "Trained", "train"]
