"""Quantization noise: signal-to-noise ratios, sources, reasons, and changes that help."""

from .advice import Advised
from .findings import Findings, examine
from .ratios import Powers
from .sequences import along_sequences
from .stored_weights import examine_stored

__all__ = ["Advised", "Findings", "Powers", "along_sequences", "examine", "examine_stored"]
