"""Capture of a module on the meta device: uninitialized memory replaces its tensors during tracing.

Tracing uses shapes, element types and shared storage, not elements, and memory that nobody writes to takes no space.
So a module larger than memory can be captured, with lazy constants.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ...ir import Entry, LazyTensor
from ...ir.params import entries_of
from ..errors import Problem, UserError


def stand_in(model: nn.Module, params: Mapping[str, Entry]) -> dict[int, Entry]:
    """Entry of each storage that replaces a tensor on the meta device; UserError for other shapes.

    Tensors without an entry in `params` under any of their names are unchanged. `isolation.untouched` restores the
    others.
    """
    places = defaultdict[int, list[tuple[dict[str, Tensor | None], str, str]]](list)
    tensors: dict[int, Tensor] = {}
    for prefix, module in model.named_modules():
        for held in (module._parameters, module._buffers):
            for name, tensor in held.items():
                if tensor is not None and tensor.is_meta:
                    tensors[id(tensor)] = tensor
                    places[id(tensor)].append((held, name, f"{prefix}.{name}" if prefix else name))
    entries, found, problems = entries_of(params), dict[int, Entry](), list[Problem]()
    for key, tensor in tensors.items():
        name = next((full for _, _, full in places[key] if full in entries), None)
        if name is None:
            continue
        shape = tuple(entries[name].shape)
        if shape != tuple(tensor.shape):
            fact = f"{name} is {shape}; the model has {tuple(tensor.shape)}"
            problems.append(Problem("M114", "params", fact, "check that they belong to this model"))
            continue
        memory = torch.empty(tensor.shape, dtype=tensor.dtype)
        if isinstance(tensor, nn.Parameter):
            memory = nn.Parameter(memory, requires_grad=tensor.requires_grad)
        found[storage_of(memory)] = _as(entries[name], tensor.dtype)
        for held, own, _ in places[key]:
            held[own] = memory
    if problems:
        raise UserError(problems)
    return found


def storage_of(tensor: Tensor) -> int:
    """Identity of the storage of a tensor."""
    return int(tensor.untyped_storage()._cdata)


def _as(entry: Entry, dtype: torch.dtype) -> Entry:
    """The entry in the element type of the model."""
    if entry.dtype is dtype:
        return entry
    if isinstance(entry, Tensor):
        return entry.to(dtype)
    return LazyTensor(entry.shape, dtype, lambda: entry.read().to(dtype))
