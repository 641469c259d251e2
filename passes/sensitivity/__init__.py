"""Sensitivity: what rounding each layer's weights and input would add to the loss, at each width."""

from .table import Curvature, Kind, Method, Objective, Score, SensitivityTable, digest_of

__all__ = ["Curvature", "Kind", "Method", "Objective", "Score", "SensitivityTable", "digest_of"]
