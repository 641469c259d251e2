"""Functions of 16-bit integers by linear interpolation between the 513 entries of a table.

i = (x + 2^15) >> 7,   f = x & 127,   y = (t[i] * (128 - f) + t[i + 1] * f + 64) >> 7
"""

from __future__ import annotations

import torch
from torch import Tensor

ENTRIES = 513
_BITS = 7  # between two entries


def places() -> Tensor:
    """The integers (int64) at which a table has its entries; the last one is beyond the 16-bit range by one."""
    return (torch.arange(ENTRIES) << _BITS) - (1 << 15)


def interpolate(table: Tensor, x: Tensor) -> Tensor:
    """The function of a table, int64 [513], for integers of 16 bits."""
    index, part = (x + (1 << 15)) >> _BITS, x & ((1 << _BITS) - 1)
    between = table[index] * ((1 << _BITS) - part) + table[index + 1] * part
    rounded: Tensor = (between + (1 << (_BITS - 1))) >> _BITS
    return rounded
