"""Views as sets of elements: the elements of a view are found by running the view on element numbers.

The numbers define how to write back through any view, independent of its operations: as a reshape, as a permutation,
as a box of ranges, or element by element. If strides alone define the view, no numbers are computed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod

import torch
from torch import Tensor


@dataclass(frozen=True)
class Reshaped:
    """All elements in order."""


@dataclass(frozen=True)
class Permuted:
    """All elements with dimensions in another order: dimension i of the view is dimension `order[i]`."""

    order: tuple[int, ...]


@dataclass(frozen=True)
class Boxed:
    """The elements of evenly stepped ranges (start, stop, step), one for each dimension, in order."""

    ranges: tuple[tuple[int, int, int], ...]


@dataclass(frozen=True)
class Scattered:
    """Distinct elements in any other arrangement; `indices` are their numbers, shaped as the view."""

    indices: Tensor


Region = Reshaped | Permuted | Boxed | Scattered


def numbered(shape: Sequence[int]) -> Tensor:
    """A tensor whose elements are their own numbers, in order."""
    return torch.arange(prod(shape)).reshape(tuple(shape))


def region_shown(view: Callable[[Tensor], Tensor], shape: Sequence[int]) -> Region | None:
    """Indices that `view` selects from a tensor of `shape`; None if an element occurs twice."""
    whole = torch.empty(tuple(shape), dtype=torch.int64, device="meta")
    shown = view(whole)
    if shown.untyped_storage()._cdata == whole.untyped_storage()._cdata:
        told = _told_by_strides(whole, shown)
        if told is not None:
            return told
    return region(view(numbered(shape)), shape)


def joined_region(
    shape: Sequence[int], shapes: Sequence[Sequence[int]], regions: Sequence[Region | None]
) -> Region | None:
    """Region of a tensor whose sizes depend on dimensions, from `regions` of two calls, in which it has these `shapes`.

    Ends of ranges are constant, or have a constant distance from the end; None otherwise.
    """
    first, second = regions
    if isinstance(first, Reshaped | Permuted):
        return first if first == second else None
    if not isinstance(first, Boxed) or not isinstance(second, Boxed):
        return None
    ranges = []
    for dim, size in enumerate(shape):
        (start, stop, step), (other_start, other_stop, other_step) = first.ranges[dim], second.ranges[dim]
        sizes = (size, shapes[0][dim], shapes[1][dim])
        ends = [_joined_end(sizes, pair) for pair in ((start, other_start), (stop, other_stop))]
        if None in ends or step != other_step:
            return None
        ranges.append((*(end for end in ends if end is not None), step))
    return Boxed(tuple((start, stop, step) for start, stop, step in ranges))


def _joined_end(sizes: tuple[int, int, int], ends: tuple[int, int]) -> int | None:
    """An end of a range as an expression of the size: `sizes` are those in general and in two calls, `ends` those in
    the calls.
    """
    size, first, second = sizes
    if first - ends[0] == second - ends[1]:
        return size - (first - ends[0])
    return ends[0] if ends[0] == ends[1] else None


def region(numbers: Tensor, shape: Sequence[int]) -> Region | None:
    """Region that a view of a tensor of `shape` selects, from its indices; None if an element occurs twice."""
    if numbers.numel() == prod(shape) and torch.equal(numbers.flatten(), torch.arange(numbers.numel())):
        return Reshaped()
    order = _order(numbers, shape)
    if order is not None:
        return Permuted(order)
    ranges = _ranges(numbers, shape)
    if ranges is not None:
        return Boxed(ranges)
    steps = numbers.flatten().sort().values.diff()
    return Scattered(numbers) if bool((steps > 0).all()) else None


def _order(numbers: Tensor, shape: Sequence[int]) -> tuple[int, ...] | None:
    if numbers.ndim != len(shape) or sorted(numbers.shape) != sorted(shape):
        return None
    strides = numbers.stride()
    order = tuple(sorted(range(numbers.ndim), key=lambda d: (-strides[d], d)))
    inverse = tuple(order.index(d) for d in range(numbers.ndim))
    candidate = numbered(shape)
    fits = tuple(shape[d] for d in inverse) == tuple(numbers.shape)
    return inverse if fits and torch.equal(candidate.permute(inverse), numbers) else None


def _ranges(numbers: Tensor, shape: Sequence[int]) -> tuple[tuple[int, int, int], ...] | None:
    if not numbers.numel():
        return None
    ranges = []
    for indices, size in zip(torch.unravel_index(numbers.flatten(), tuple(shape)), shape, strict=True):
        found: list[int] = torch.bincount(indices, minlength=size).nonzero().flatten().tolist()
        step = found[1] - found[0] if len(found) > 1 else 1
        start, stop = found[0], found[-1] + 1
        if len(found) != len(range(start, stop, step)):
            return None
        ranges.append((start, size if stop + step > size else stop, step))
    box = numbered(shape)
    for dim, (start, stop, step) in enumerate(ranges):
        box = box.narrow(dim, start, stop - start)[(slice(None),) * dim + (slice(None, None, step),)]
    return tuple(ranges) if torch.equal(box.flatten(), numbers.flatten()) else None


def _told_by_strides(whole: Tensor, shown: Tensor) -> Region | None:
    """The region if each dimension of the view runs along one dimension of the tensor; None otherwise."""
    if not shown.numel():
        return None
    if shown.numel() == whole.numel() and shown.is_contiguous():
        return Reshaped()
    starts = torch.unravel_index(torch.tensor(int(shown.storage_offset())), whole.shape)
    ranges = [(int(start), int(start) + 1, 1) for start in starts]
    along: list[int | None] = []
    for size, stride in zip(shown.shape, shown.stride(), strict=True):
        dim = None if size == 1 else _dimension(whole, size, stride, ranges)
        along.append(dim)
        if dim is None and size > 1:
            return None
        if dim is not None:
            start, step = ranges[dim][0], stride // whole.stride(dim)
            stop = start + (size - 1) * step + 1
            ranges[dim] = (start, whole.shape[dim] if stop + step > whole.shape[dim] else stop, step)
    longer = [dim for dim in along if dim is not None]
    if all(a < b for a, b in pairwise(longer)):
        return Boxed(tuple(ranges))
    if shown.numel() == whole.numel() and shown.ndim == whole.ndim and len(set(longer)) == len(longer):
        single = (dim for dim in range(whole.ndim) if dim not in longer)
        return Permuted(tuple(next(single) if dim is None else dim for dim in along))
    return None


def _dimension(whole: Tensor, size: int, stride: int, ranges: Sequence[tuple[int, int, int]]) -> int | None:
    """The dimension of `whole` in which `size` steps of `stride` stay."""
    for dim, step in enumerate(whole.stride()):
        start = ranges[dim][0]
        if stride and stride % step == 0 and start + (size - 1) * (stride // step) < whole.shape[dim]:
            return dim
    return None
