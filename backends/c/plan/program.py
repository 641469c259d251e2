"""A graph as the C backend runs it: steps in order, each a built offer over values that are stored somewhere."""

from __future__ import annotations

from dataclasses import dataclass

from ....ir import Graph, Node, Source, Value
from ..kernels.base import Call, Offer, form
from .layout import Layout

CALL_BYTES = 12  # of machine code, of a call with its arguments
# Of include/huffman.h, as linked for a Cortex-M4 with -O3.
DECODER_BYTES = 810


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
    offer: Offer
    calls: tuple[Call, ...]

    @property
    def operator(self) -> str:
        """Name of the node's operator; `layout` for a conversion."""
        return "layout" if self.node is None else self.node.op.name

    @property
    def form(self) -> str:
        """The elements on which it computes, see `kernels.base.form`."""
        return self.results[0].value.type.dtype.value if self.node is None else form(self.node)

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
    def saved_bytes(self) -> int:
        """Estimated bytes of flash that Huffman images save over the constants themselves, less the decoder."""
        coded = [c for step in self.steps for c in step.offer.coded]
        stored = {c.data.tobytes(): c for c in coded}.values()
        return sum(c.bytes - c.flash_bytes for c in stored) - CALL_BYTES * len(coded) - DECODER_BYTES
