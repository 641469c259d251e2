"""The caller's side of the emitted function: inputs and outputs, how they are stored, and what they stand for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ...ir import TensorType
from .edges import StrippedEdges
from .encoding import Encoding
from .kernels.base import AnyArray
from .literal import C_TYPES, identifier
from .memory import Location, MemoryPlan, Region
from .program import Program, Stored

_LONGEST_MACRO = 31


@dataclass(frozen=True, slots=True)
class Port:
    """One input or output: the user's name for it, its names in the C, and the value that it carries.

    `encoding` says what its integers stand for; None for numbers that are the model's own.
    `offset` counts bytes from the start of the arena; None for a buffer that the caller passes.
    """

    name: str
    parameter: str
    macro: str
    stored: Stored
    is_input: bool
    encoding: Encoding | None = None
    offset: int | None = None

    @property
    def type(self) -> TensorType:
        """Type of the value."""
        return self.stored.value.type

    @property
    def c_type(self) -> str:
        """C type of the elements."""
        return C_TYPES[self.type.dtype]

    @property
    def declaration(self) -> str:
        """The parameter of the emitted function."""
        return f"{'const ' if self.is_input else ''}{self.c_type} *{self.parameter}"

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """Sizes in the order of memory."""
        order = self.stored.layout.order
        batch_first = order if order[:1] == (0,) else tuple(sorted(order[:1])) + order[1:]
        return tuple(self.type.shape[dim] for dim in batch_first)


def ports(edges: StrippedEdges, program: Program, plan: MemoryPlan) -> tuple[Port, ...]:
    """Inputs, then outputs."""
    graph, inputs, outputs = edges.graph, program.inputs, program.outputs
    input_macros = _macros([v.name for v in graph.inputs], "INPUT")
    output_macros = _macros(list(graph.output_names), "OUTPUT", taken=set(input_macros))
    found = [
        Port(
            stored.value.name,
            _parameter("input", i, len(inputs)),
            macro,
            stored,
            True,
            encoding,
            _offset(place),
        )
        for i, (stored, macro, encoding, place) in enumerate(
            zip(inputs, input_macros, edges.inputs, plan.inputs, strict=True)
        )
    ]
    found += [
        Port(name, _parameter("output", i, len(outputs)), macro, stored, False, encoding, _offset(place))
        for i, (name, stored, macro, encoding, place) in enumerate(
            zip(graph.output_names, outputs, output_macros, edges.outputs, plan.outputs, strict=True)
        )
    ]
    return tuple(found)


def arena_offsets(ports: Sequence[Port]) -> tuple[int, ...] | None:
    """Where inputs and outputs are in the arena; None where the caller passes them."""
    offsets = tuple(port.offset for port in ports if port.offset is not None)
    return offsets if offsets else None


def to_memory(tensor: torch.Tensor, stored: Stored) -> AnyArray:
    """The elements of a tensor in the order in which a dense layout stores them."""
    assert not stored.layout.border
    array = tensor.detach().cpu().to(stored.value.type.dtype.torch).numpy()
    return np.ascontiguousarray(array.transpose(stored.layout.order)).reshape(-1)


def from_memory(memory: AnyArray, stored: Stored) -> torch.Tensor:
    """The tensor that `memory`, the elements as stored, holds; a border is left out."""
    shape, layout = stored.value.type.shape, stored.layout
    strides = tuple(step * memory.itemsize for step in layout.strides(shape))
    view = np.lib.stride_tricks.as_strided(memory.reshape(-1)[layout.offset(shape) :], shape, strides)
    return torch.from_numpy(view.copy())


def _offset(place: Location) -> int | None:
    return place.offset if place.region is Region.ARENA else None


def _parameter(role: str, index: int, count: int) -> str:
    return role if count == 1 else f"{role}_{index}"


def _macros(names: list[str], role: str, *, taken: set[str] | None = None) -> list[str]:
    """A macro for each name: the name itself in capitals where it is short and no other is equal, else a number."""
    wished = [identifier(name).upper() for name in names]
    found: list[str] = []
    for index, wish in enumerate(wished):
        clear = len(wish) <= _LONGEST_MACRO and wished.count(wish) == 1 and wish not in (taken or set())
        found.append(wish if clear else f"{role}_{index}")
    if len(set(found)) == len(found):
        return found
    return [f"{role}_{index}" for index in range(len(names))]
