"""Weights as symmetric integers, with a scale for each group of consecutive weights of an output channel."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from ...ir import Quantization
from .grid import to_float32
from .weights import row_scales


def nearest_group_size(inputs: int, wanted: int | None) -> int:
    """The divisor of `inputs` whose ratio to `wanted` is nearest to one; all inputs where none is wanted."""
    if wanted is None:
        return inputs
    divisors = (size for size in range(1, inputs + 1) if inputs % size == 0)
    return min(divisors, key=lambda size: (max(size / wanted, wanted / size), -size))


def quantize_groupwise(
    weight: Tensor, *, bits: int, group_size: int | None, observer: Literal["minmax", "mse"] = "mse"
) -> tuple[Tensor, Quantization]:
    """Integers of `weight` [out, ...] and their grid; `group_size` divides the weights of an output channel."""
    rows = weight.double().reshape(-1, group_size or weight[0].numel())
    scales = row_scales(rows, bits=bits, observer=observer)
    filled = tuple(to_float32(float(s)) if s > 0 else 1.0 for s in scales)
    grid = Quantization(filled, bits=bits, axis=0, group_size=group_size)
    step, _ = grid.expand(tuple(weight.shape))
    integers = (weight.double() / step).round().clamp(-grid.qmax, grid.qmax)
    return integers.to(grid.container.torch), grid
