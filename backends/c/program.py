"""A graph as the C backend runs it: steps in order, each an implementation over values that lie somewhere."""

from __future__ import annotations

from dataclasses import dataclass

from ...ir import Graph, Node, Source, Value
from .kernels.base import Implementation
from .layout import Layout

# Of the run function, of a call, and of newlib's memcpy and memset, as `benchmarks/code_size.py` measures them.
_RUN_BYTES, CALL_BYTES, _MEMORY_BYTES = 60, 12, 470
# Of include/huffman.h, as linked for a Cortex-M4 with -O3.
_DECODER_BYTES = 810


@dataclass(frozen=True, slots=True)
class Stored:
    """A value in one layout: a piece of memory of its own. One value may lie in several layouts."""

    value: Value
    layout: Layout

    @property
    def elements(self) -> int:
        """Elements that the memory holds, border included."""
        return self.layout.elements(self.value.type.shape)

    @property
    def bytes(self) -> int:
        """Bytes of the memory."""
        return self.elements * self.value.type.dtype.bytes


@dataclass(frozen=True)
class Step:
    """The computation of a node, or a conversion of layout, which belongs to no node: `node` is None.

    `source` is the node's; that of a conversion is its reader's, or the producer's where an output is converted.
    """

    node: Node | None
    source: Source
    operands: tuple[Stored | None, ...]
    results: tuple[Stored, ...]
    implementation: Implementation

    @property
    def operator(self) -> str:
        """Name of the node's operator; `layout` for a conversion."""
        return "layout" if self.node is None else self.node.op.name

    @property
    def macs(self) -> int:
        """Multiply-accumulates."""
        return 0 if self.node is None else self.node.macs


@dataclass(frozen=True)
class Program:
    """Steps in order of execution; a value whose name is in the graph's `params` lies in flash."""

    graph: Graph
    steps: tuple[Step, ...]
    inputs: tuple[Stored, ...]
    outputs: tuple[Stored, ...]

    @property
    def flash_bytes(self) -> int:
        """Estimated bytes of code and constants."""
        constants = sum(step.implementation.constant_bytes for step in self.steps)
        return self.fixed_bytes + self._code_bytes + constants

    @property
    def fixed_bytes(self) -> int:
        """Estimated bytes of code outside of kernels: the function that calls them, the decoder, the C library's."""
        calls = [call for step in self.steps for call in step.implementation.calls]
        decoded = sum(len(step.implementation.coded) for step in self.steps)
        library = _MEMORY_BYTES if any(call.function.uses_memory for call in calls) else 0
        decoder = _DECODER_BYTES if decoded else 0
        return _RUN_BYTES + CALL_BYTES * (len(calls) + decoded) + library + decoder

    @property
    def saved_bytes(self) -> int:
        """Estimated bytes of flash that Huffman images save over the constants themselves, less the decoder."""
        coded = [c for step in self.steps for c in step.implementation.coded]
        return sum(c.bytes - c.flash_bytes - CALL_BYTES for c in coded) - _DECODER_BYTES

    @property
    def _code_bytes(self) -> int:
        seen: dict[object, int] = {}
        for step in self.steps:
            keys = tuple(call.function.key for call in step.implementation.calls)
            if keys:
                seen[keys] = step.implementation.cost.code_bytes
        return sum(seen.values())
