"""Sensitivity: loss increase by rounding of each layer's weights and input, at each width."""

from ..workers import SHARDS, Workers
from .blocks import Rounding, round_weight
from .curvature import Precision
from .measurement import measure_curvature, measure_sensitivity
from .sensitivity_table import Curvature, Kind, Method, Objective, Score, SensitivityTable, digest_of
from .study import Study

__all__ = [
    "SHARDS",
    "Curvature",
    "Kind",
    "Method",
    "Objective",
    "Precision",
    "Rounding",
    "Score",
    "SensitivityTable",
    "Study",
    "Workers",
    "digest_of",
    "measure_curvature",
    "measure_sensitivity",
    "round_weight",
]
