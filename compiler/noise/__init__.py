"""Noise of quantization: signal-to-noise ratios, where noise is made, why, and what was found to help."""

from .advice import Advised
from .findings import Findings, examine
from .ratios import Powers

__all__ = ["Advised", "Findings", "Powers", "examine"]
