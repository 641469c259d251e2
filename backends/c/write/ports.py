"""The caller's side of the emitted function: inputs and outputs, their storage, and their encoding."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ....ir import TensorType
from ....specs.outputs import PLATFORM_WORDS, is_c_name
from ..kernels.base import AnyArray
from ..plan.edges import StrippedEdges
from ..plan.encoding import PortEncoding
from ..plan.memory import Location, MemoryPlan, Storage
from ..plan.program import Program, Stored
from ..plan.regions import STATE_BLOCK, Region
from .literal import C_TYPES, identifier

_LONGEST_MACRO = 31
_NUMBERED = re.compile(r"(INPUT|OUTPUT)_[0-9]+")
_AMBIGUOUS_END = "_REAL"  # an offset X_REAL_OFFSET could be that of X_REAL or the real offset of X
_TAKEN_NAMES = PLATFORM_WORDS | {"memcpy", "memset"}
"""Names of the emitted function, and lower-case names that headers of some platforms define as macros."""
_TAKEN_FORMS = re.compile(r"t[0-9]+(_[0-9]+)?|fxp_.*|.*_t")


@dataclass(frozen=True, slots=True)
class Port:
    """One input or output: the user's name, its names in the C, and its value.

    `encoding` is that of its integers; None for the model's own numbers. `offset` is the byte offset in `block`, a
    region of RAM by its name, or the block of states (`state`); None for a buffer that the caller passes.
    """

    name: str
    parameter: str
    macro: str
    stored: Stored
    is_input: bool
    encoding: PortEncoding | None = None
    offset: int | None = None
    block: str = ""

    @property
    def is_state(self) -> bool:
        """True if it is in the block of states."""
        return self.block == STATE_BLOCK

    @property
    def region(self) -> str | None:
        """The region of RAM that contains it; None for a state and for a buffer that the caller passes."""
        return None if self.offset is None or self.is_state else self.block

    @property
    def place(self) -> tuple[str, int] | None:
        """The block and the offset in it; None for a buffer that the caller passes."""
        return None if self.offset is None else (self.block, self.offset)

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


def ports(
    edges: StrippedEdges, program: Program, plan: MemoryPlan, *, prefix: str, taken: Collection[str] = ()
) -> tuple[Port, ...]:
    """Inputs, then outputs; `prefix` is that of every C name, `taken` are further names of the emitted function."""
    graph, found = edges.graph, []
    input_macros = _macros([v.name for v in graph.inputs], "INPUT")
    output_macros = _macros(list(graph.output_names), "OUTPUT", taken=input_macros)
    inputs = zip(program.inputs, input_macros, edges.inputs, plan.inputs, strict=True)
    for i, (stored, macro, encoding, place) in enumerate(inputs):
        parameter = _parameter(macro, f"input_{i}", prefix, taken)
        found.append(Port(stored.value.name, parameter, macro, stored, True, encoding, *_place(place, plan)))
    outputs = zip(
        graph.output_names, program.outputs, output_macros, edges.outputs, plan.outputs, strict=True
    )
    for i, (name, stored, macro, encoding, place) in enumerate(outputs):
        parameter = _parameter(macro, f"output_{i}", prefix, taken)
        found.append(Port(name, parameter, macro, stored, False, encoding, *_place(place, plan)))
    return tuple(found)


def start_value(port: Port) -> int:
    """The number of each element of a state at the start of a sequence: the representation of 0."""
    return 0 if port.encoding is None else int(port.encoding.integers(torch.zeros(())).item())


def start_lines(port: Port) -> tuple[str, ...]:
    """C that sets a state, in the block `states`, to the start of a sequence."""
    place, start = f"states + {port.offset}", start_value(port)
    if start == 0 or port.type.dtype.bytes == 1:
        return (f"memset({place}, {start}, {port.stored.bytes});",)
    element = f"(({port.c_type} *)(void *)({place}))[i]"
    return (f"for (int i = 0; i < {port.type.numel}; i++) {{", f"    {element} = {start};", "}")


def memory_names(regions: Sequence[Region]) -> tuple[str, ...]:
    """Variables of the emitted functions that point to the regions of RAM."""
    return ("memory",) if len(regions) == 1 else tuple(f"{region.name}_memory" for region in regions)


def to_memory(tensor: torch.Tensor, stored: Stored) -> AnyArray:
    """The elements of a tensor in the memory order of a dense layout."""
    assert not stored.layout.border
    array = tensor.detach().cpu().to(stored.value.type.dtype.torch).numpy()
    return np.ascontiguousarray(array.transpose(stored.layout.order)).reshape(-1)


def from_memory(memory: AnyArray, stored: Stored) -> torch.Tensor:
    """The tensor of `memory`, the elements as stored; a border is skipped."""
    shape, layout = stored.value.type.shape, stored.layout
    strides = tuple(step * memory.itemsize for step in layout.strides(shape))
    view = np.lib.stride_tricks.as_strided(memory.reshape(-1)[layout.offset(shape) :], shape, strides)
    return torch.from_numpy(view.copy())


def _place(place: Location, plan: MemoryPlan) -> tuple[int | None, str]:
    """Offset, and the name of the block that contains it."""
    if place.storage is Storage.STATE:
        return place.offset, STATE_BLOCK
    if place.storage is Storage.ARENA:
        return place.offset, plan.regions[place.index].name
    return None, ""


def _macros(names: Sequence[str], role: str, *, taken: Collection[str] = ()) -> list[str]:
    """The name of each port in macros: its own in capitals, or a number if that is long or taken by another port."""
    wished = [identifier(name).upper() for name in names]
    found = []
    for index, wish in enumerate(wished):
        number = f"{role}_{index}"
        is_word = wish[0].isalpha() and len(wish) <= _LONGEST_MACRO
        is_own = wished.count(wish) == 1 and wish not in taken
        is_own = is_own and (wish == number or not _NUMBERED.fullmatch(wish))
        is_own = is_own and not wish.endswith(_AMBIGUOUS_END)
        found.append(wish if is_word and is_own else number)
    return found


def _parameter(macro: str, number: str, prefix: str, taken: Collection[str]) -> str:
    """The macro's name in lower case, unless it has another meaning in the emitted function or its header."""
    name = macro.lower()
    is_taken = (
        name in _TAKEN_NAMES or name in taken or _TAKEN_FORMS.fullmatch(name) or name.startswith(f"{prefix}_")
    )
    return name if is_c_name(name) and not is_taken else number
