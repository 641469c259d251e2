"""Python source of plain values: arguments of torch calls and attributes of operators."""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite
from typing import Any

import torch

from ...ir import UnsupportedError

Argument = Any  # argument types of torch functions: numbers, strings, dtypes, tensors, and lists of them


def literal(value: Argument, nested: Callable[[Argument], str] | None = None) -> str:
    """Python source of a number, string, dtype, device, slice, or of a list or tuple of them."""
    inner = nested or literal
    if isinstance(value, tuple):
        return f"({', '.join(inner(item) for item in value)}{',' if len(value) == 1 else ''})"
    if isinstance(value, list):
        return f"[{', '.join(inner(item) for item in value)}]"
    if isinstance(value, float) and not isfinite(value):
        return f'float("{value}")'
    if isinstance(value, torch.device):
        return f'torch.device("{value}")'
    if isinstance(value, slice):
        return f"slice({inner(value.start)}, {inner(value.stop)}, {inner(value.step)})"
    known = int | float | complex | str | torch.dtype | torch.layout | torch.memory_format
    if value is None or value is Ellipsis or isinstance(value, known):
        return repr(value)
    raise UnsupportedError(f"an argument of type {type(value).__name__} cannot be written as Python")
