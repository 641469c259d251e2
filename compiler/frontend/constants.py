"""The tensors that a traced program reads from its module; each stored tensor becomes one constant."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from ...ir import Builder, Entry, Value
from .functionalize import Storage, Tracked, aten
from .views import Boxed, Permuted, Reshaped, numbered, region

Emit = Callable[..., Value]


@dataclass(frozen=True)
class Named:
    """A tensor of the user's module, or one that its code created during tracing.

    `entry` has the elements of the constant if `tensor` is uninitialized memory of its shape.
    """

    placeholder: str
    name: str
    tensor: Tensor
    entry: Entry | None = None


def bind_constants(builder: Builder, tensors: Iterable[Named], emit: Emit) -> dict[str, Tracked]:
    """A tracked tensor for each placeholder.

    Tensors with the same memory are one constant, independent of their names; a view of a constant is also a view in
    the graph. None of them may be written to.
    """
    groups: dict[int, list[Named]] = {}
    for named in tensors:
        groups.setdefault(named.tensor.untyped_storage()._cdata, []).append(named)
    bound: dict[str, Tracked] = {}
    for group in groups.values():
        storage = Storage(owner=group[0].name, is_seen=len(group) > 1)
        made: list[tuple[Tensor, Value]] = []
        for named in sorted(group, key=lambda item: -item.tensor.numel()):
            value = _known(named.tensor, made, emit)
            if value is None:
                value = builder.constant(named.name, named.tensor if named.entry is None else named.entry)
                made.append((named.tensor, value))
            bound[named.placeholder] = Tracked(value, storage)
    return bound


def _known(tensor: Tensor, made: list[tuple[Tensor, Value]], emit: Emit) -> Value | None:
    for base, value in made:
        if base.dtype is not tensor.dtype or base.is_conj() != tensor.is_conj():
            continue
        if _geometry(base) == _geometry(tensor):
            return value
        viewed = _viewed(base, value, tensor, emit)
        if viewed is not None:
            return viewed
    return None


def _viewed(base: Tensor, value: Value, tensor: Tensor, emit: Emit) -> Value | None:
    """`tensor` as a view of the constant `base`, if all its elements are in `base` and an operator expresses their
    arrangement.
    """
    extent = base.untyped_storage().nbytes() // base.element_size()
    where = torch.full((extent,), -1)
    where.as_strided(base.size(), base.stride(), base.storage_offset()).copy_(numbered(base.shape))
    numbers = where.as_strided(tensor.size(), tensor.stride(), tensor.storage_offset())
    if bool((numbers < 0).any()):
        return None
    match region(numbers, base.shape):
        case Reshaped():
            return emit(aten.reshape.default, value, list(tensor.shape))
        case Permuted(order):
            return emit(aten.permute.default, value, list(order))
        case Boxed(ranges):
            for dim, (start, stop, step) in enumerate(ranges):
                if (start, stop, step) != (0, base.shape[dim], 1):
                    value = emit(aten.slice.Tensor, value, dim, start, stop, step)
            sizes = tuple(tensor.shape)
            return value if value.type.shape == sizes else emit(aten.reshape.default, value, list(sizes))
    return None


def _geometry(tensor: Tensor) -> tuple[torch.Size, tuple[int, ...], int]:
    return tensor.size(), tensor.stride(), int(tensor.storage_offset())
