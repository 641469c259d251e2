"""Spatial dimensions of convolution, pooling and padding: sizes and zero padding."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional

from ..errors import ShapeError
from ..tensor_type import TensorType


def pairs(padding: Sequence[int]) -> list[tuple[int, int]]:
    """(before, after) for each spatial dimension."""
    return list(zip(padding[::2], padding[1::2], strict=True))


def symmetric_padding(x: Tensor, padding: Sequence[int], *, value: float = 0.0) -> tuple[Tensor, list[int]]:
    """Symmetric part for torch's `padding` argument, and `x` explicitly padded with `value` for the rest."""
    both = pairs(padding)
    if all(before == after for before, after in both):
        return x, [before for before, _ in both]
    flat = [n for pair in reversed(both) for n in pair]
    return functional.pad(x, flat, value=value), [0] * len(both)


def check_spatial(rank: int, x: TensorType, w: TensorType, *lengths: tuple[tuple[int, ...], int]) -> None:
    """Raises ShapeError unless x and w have `rank` spatial dimensions, and each attribute one entry per dimension."""
    if x.rank != rank + 2 or w.rank != rank + 2 or 0 in w.shape:
        raise ShapeError(f"{rank} spatial dimensions do not fit input {x.shape} and weight {w.shape}")
    if any(len(attribute) != per_dimension * rank for attribute, per_dimension in lengths):
        raise ShapeError(f"attributes do not have {rank} spatial dimensions")


def on_both_sides(numbers: int | Sequence[int], rank: int) -> tuple[int, ...]:
    """Torch's `padding`, equal on both sides of a dimension, as (before, after) pairs in one tuple."""
    return tuple(n for n in spread(numbers, rank) for _ in range(2))


def spread(numbers: int | Sequence[int], rank: int) -> tuple[int, ...]:
    """One number for each spatial dimension: torch allows a single one for all."""
    listed = [numbers] if isinstance(numbers, int) else list(numbers)
    return tuple(listed * rank if len(listed) == 1 else listed)
