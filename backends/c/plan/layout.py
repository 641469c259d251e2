"""Memory layout of a value: order of its dimensions, and an optional border.

Shapes in the IR are `[n, c, h, w]`; the C backend stores an image channels last, a row of features unchanged, or
planes with a border for kernels that require it. A dimension of one element does not affect memory, so it is kept at
the front of `order`: equal layouts compare equal.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Layout:
    """Dimensions from slowest to fastest; `border` is the number of extra elements before and after each dimension.

    Build one with `arranged`, `contiguous` or `channels_last`, which bring `order` into its unique form.
    """

    order: tuple[int, ...]
    border: tuple[tuple[int, int], ...] = ()

    def strides(self, shape: Shape) -> tuple[int, ...]:
        """Distance in elements between neighbours along each dimension of a value of `shape`."""
        found, step = [0] * len(shape), 1
        for dim in reversed(self.order):
            found[dim] = step
            step *= self._extent(shape, dim)
        return tuple(found)

    def offset(self, shape: Shape) -> int:
        """Index of the first element, after the border before it."""
        if not self.border:
            return 0
        return sum(before * step for (before, _), step in zip(self.border, self.strides(shape), strict=True))

    def elements(self, shape: Shape) -> int:
        """Number of elements in memory, border included."""
        return prod(self._extent(shape, dim) for dim in range(len(shape)))

    def _extent(self, shape: Shape, dim: int) -> int:
        before, after = self.border[dim] if self.border else (0, 0)
        return before + shape[dim] + after


def arranged(shape: Shape, order: tuple[int, ...], *, border: tuple[tuple[int, int], ...] = ()) -> Layout:
    """The layout with dimensions in `order`."""
    if not any(before or after for before, after in border):
        border = ()
    single = [dim for dim in range(len(shape)) if shape[dim] == 1 and (not border or border[dim] == (0, 0))]
    return Layout((*single, *(dim for dim in order if dim not in single)), border)


def contiguous(shape: Shape) -> Layout:
    """The last dimension fastest."""
    return arranged(shape, tuple(range(len(shape))))


def channels_last(shape: Shape) -> Layout:
    """Dimension 1 fastest if there are spatial dimensions after it, else contiguous."""
    if len(shape) < 3:
        return contiguous(shape)
    return arranged(shape, (0, *range(2, len(shape)), 1))


def from_strides(shape: Shape, strides: tuple[int, ...]) -> Layout | None:
    """The dense layout with these strides along dimensions of more than one element; None if there is none."""
    order = sorted(range(len(shape)), key=lambda dim: (shape[dim] > 1, -strides[dim]))
    found = arranged(shape, tuple(order))
    dense = found.strides(shape)
    same = all(n == 1 or a == b for n, a, b in zip(shape, dense, strides, strict=True))
    return found if same else None


def reshaped(shape: Shape, layout: Layout, result: Shape) -> Layout | None:
    """The layout of the reshaped value in the same memory, with shape `result`; None if there is none."""
    if layout.border:
        return None
    runs = _merged(shape, layout.strides(shape))
    strides = [1] * len(result)
    run = len(runs) - 1
    left, step = runs[run] if runs else (1, 1)
    for dim in reversed(range(len(result))):
        if result[dim] == 1:
            continue
        if left == 1 and run > 0:
            run -= 1
            left, step = runs[run]
        if left % result[dim]:
            return None
        strides[dim] = step
        step *= result[dim]
        left //= result[dim]
    return from_strides(result, tuple(strides))


def _merged(shape: Shape, strides: tuple[int, ...]) -> list[tuple[int, int]]:
    """(size, stride) of maximal runs of neighbouring dimensions that are contiguous in memory, slowest dimension
    first.
    """
    runs: list[tuple[int, int]] = []
    for n, step in zip(shape, strides, strict=True):
        if n == 1:
            continue
        if runs and runs[-1][1] == n * step:
            runs[-1] = (runs[-1][0] * n, step)
        else:
            runs.append((n, step))
    return runs
