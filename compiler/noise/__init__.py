"""Noise of quantization: signal-to-noise ratios, where noise is made, why, and what was found to help."""

from .findings import Findings, Price, examine

__all__ = ["Findings", "Price", "examine"]
