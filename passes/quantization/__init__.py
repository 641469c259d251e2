"""Quantization: precisions, ranges, grids, rounding, and the lowering to integer operators."""
