"""Encodings (scale and zero point) from a range of values, or from a step of which all data are multiples."""

from __future__ import annotations

import torch

from ...ir import Encoding
from ..calibration.observers import Range, Statistics

_STEP_TOLERANCE = 1e-3  # of a step, for data that were converted to float32
FLOAT32_RANGE = (torch.finfo(torch.float32).tiny, float(torch.finfo(torch.float32).max))
"""Smallest normal and largest float32: the limits of scales."""


def to_float32(x: float) -> float:
    """The nearest float32: scales are stored and used in that type."""
    return float(torch.tensor(x, dtype=torch.float64).clamp(*FLOAT32_RANGE).to(torch.float32))


def activation_encoding(covered: Range, *, bits: int, farthest: int = 0) -> Encoding:
    """Encoding that represents a range from end to end: asymmetric at 8 bits, symmetric at 16.

    It represents zero, unless the range is far from zero; then its zero point is at most `farthest`. A range of width
        zero, from a tensor that was zero throughout, has the scale 1.
    """
    levels = (1 << bits) - 1
    if not covered.width:
        return Encoding((1.0,), bits=bits)
    if bits > 8:
        return symmetric_encoding(covered, bits=bits)
    qmin = -(1 << (bits - 1))
    distance = max(covered.low, -covered.high, 0.0)
    needed = covered.high / levels - covered.low / levels
    if distance:
        scale = to_float32(max(needed, distance / (farthest - levels)))
        return Encoding((scale,), (round(qmin - covered.low / scale),), bits=bits)
    scale = to_float32(needed)
    zero = round(qmin - covered.low / scale)
    return Encoding((scale,), (min(max(zero, qmin), qmin + levels),), bits=bits)


def symmetric_encoding(covered: Range, *, bits: int) -> Encoding:
    """Encoding with zero point 0 that represents the end of the range farther from zero."""
    largest = max(-covered.low, covered.high)
    qmax = (1 << (bits - 1)) - 1
    return Encoding((to_float32(largest / qmax) if largest else 1.0,), bits=bits)


def natural_encoding(statistics: Statistics, *, bits: int) -> Encoding | None:
    """Encoding that represents all data exactly, such as pixels and stored features; None if there is none.

    The search is for one step of which each value is a multiple, with no more multiples than the bits can represent;
        the step is then divided by the largest integer that the bits allow.
    """
    levels = (1 << bits) - 1
    low, high = min(statistics.low, 0.0), max(statistics.high, 0.0)
    values = torch.unique(statistics.sample).double()
    if bits > 8 or not 2 <= len(values) <= levels + 1:
        return None
    count = round((high - low) / float(values.diff().min()))
    if count > levels:
        return None
    step = (high - low) / count
    multiples = values / step
    if float((multiples - multiples.round()).abs().max()) > _STEP_TOLERANCE:
        return None
    parts = levels // count
    qmin = -(1 << (bits - 1))
    spare = levels - count * parts if low < 0 else 0  # data that start at zero keep the unused integers above
    zero = min(qmin - round(low / step) * parts + spare // 2, qmin + levels)
    return Encoding((to_float32(step / parts),), (zero,), bits=bits)
