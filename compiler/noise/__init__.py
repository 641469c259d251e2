"""Quantization noise: signal-to-noise ratios, sources, reasons, and changes that help."""

from .advice import Advised
from .findings import Findings, examine
from .ratios import Powers

__all__ = ["Advised", "Findings", "Powers", "examine"]
