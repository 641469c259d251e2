"""The pass `quantize`: precisions, scales and zero points, rounding, and the lowering to integer operators."""

from .quantization import quantize

__all__ = ["quantize"]
