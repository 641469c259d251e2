"""Tensors that share memory, as values that do not: a write gives a new value, which every alias reads.

Each storage has a root, its first tensor; every other tensor of it is a view of an earlier one. A write through a
view makes a new value of the view, then of its parent, up to the root. Other views are computed again from there when
they are next read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from ...ir import TensorType, Value
from ...ir.sizes import dimensions_of, evaluated, with_sizes
from ...ir.symbolic import traced_sizes
from ...specs.root_error import FxpressError
from .views import Boxed, Permuted, Region, Reshaped, joined_region, region_shown

aten = torch.ops.aten
Emit = Callable[..., Value]  # (overload, *args) -> the value of the call


class UnsupportedWriteError(FxpressError):
    """A write through a view that cannot be traced back to its parent."""


@dataclass(eq=False)
class Storage:
    """Memory that several tensors may share. `owner` is the name of the user's state or input in it.

    `is_seen` is True if its content may have been used, or if writes to it are visible elsewhere.
    """

    owner: str = ""
    version: int = 0
    is_seen: bool = False


class Numbering(Protocol):
    """Indices of the elements of a view."""

    def __call__(self, numbers: Tensor, sizes: Mapping[str, int]) -> Tensor:
        """The view of the indices of its parent, for these sizes of dynamic dimensions."""


@dataclass(eq=False)
class View:
    """View of another tensor: `replay` computes its value, `number` the indices of its elements."""

    parent: Tracked
    replay: Callable[[Value], Value]
    number: Numbering


@dataclass(eq=False)
class Tracked:
    """A tensor of the traced program and the value that represents it at `version` of its storage."""

    value: Value
    storage: Storage = field(default_factory=Storage)
    view: View | None = None
    version: int = 0

    @property
    def type(self) -> TensorType:
        """Shape and element type, which writes do not change."""
        return self.value.type

    def read(self) -> Value:
        """The present value, computed again from the parent if the parent was written to."""
        self.storage.is_seen = True
        stale: list[Tracked] = []
        tensor = self
        while tensor.version != tensor.storage.version and tensor.view is not None:
            stale.append(tensor)
            tensor = tensor.view.parent
        for tensor in reversed(stale):
            assert tensor.view is not None
            tensor._set(tensor.view.replay(tensor.view.parent.value))
        return self.value

    def write(self, value: Value, emit: Emit) -> None:
        """Writes a new value to the tensor, and so to all tensors that share its memory."""
        self.read()
        path = [(self, value)]
        while (view := path[-1][0].view) is not None:
            path.append((view.parent, _write_back(view, path[-1][1], emit)))
        self.storage.version += 1
        for tensor, written in path:
            tensor._set(written)

    def _set(self, value: Value) -> None:
        self.value, self.version = value, self.storage.version


def _write_back(view: View, value: Value, emit: Emit) -> Value:
    """The value of the parent after `value` was written to the view."""
    parent = view.parent.read()
    shape = parent.type.shape
    shown = _shown(view, parent, value)
    match shown:
        case Reshaped():
            return value if value.type.shape == shape else emit(aten.reshape.default, value, list(shape))
        case Permuted(order):
            return emit(aten.permute.default, value, [order.index(d) for d in range(len(order))])
        case Boxed(ranges):
            sizes = [-(-(stop - start) // step) for start, stop, step in ranges]
            if value.type.shape != tuple(sizes):
                value = emit(aten.reshape.default, value, sizes)
            return _write_box(parent, value, 0, ranges, emit)
    return emit(aten.put.default, parent, shown.indices, value)


def _write_box(
    parent: Value, value: Value, dim: int, ranges: Sequence[tuple[int, int, int]], emit: Emit
) -> Value:
    """`parent` with the box of `ranges` in dimensions `dim` and up replaced by `value`."""
    partial = [d for d in range(dim, len(ranges)) if ranges[d] != (0, parent.type.shape[d], 1)]
    if not partial:
        return value
    axis, (start, stop, step) = partial[0], ranges[partial[0]]
    if len(partial) > 1:
        part = emit(aten.slice.Tensor, parent, axis, start, stop, step)
        value = _write_box(part, value, axis + 1, ranges, emit)
    return emit(aten.slice_scatter.default, parent, value, axis, start, stop, step)


def _shown(view: View, parent: Value, value: Value) -> Region:
    if parent.type.dtype is not value.type.dtype:
        raise UnsupportedWriteError("the view has another element type than its base")
    shape = parent.type.shape
    dimensions = dimensions_of((shape, value.type.shape))
    if not dimensions:
        found = region_shown(partial(view.number, sizes={}), shape)
        if found is None:
            raise UnsupportedWriteError("the view contains an element more than once")
        return found
    first = traced_sizes(dimensions)
    calls = [
        dict(zip(dimensions, sizes, strict=True))
        for sizes in (first, traced_sizes(dimensions, frozenset(first)))
    ]
    shapes = [with_sizes(shape, partial(evaluated, sizes=call)) for call in calls]
    regions = [region_shown(partial(view.number, sizes=c), s) for c, s in zip(calls, shapes, strict=True)]
    joined = joined_region(shape, shapes, regions)
    if joined is None:
        raise UnsupportedWriteError("the elements of the view depend on the size of an input")
    return joined
