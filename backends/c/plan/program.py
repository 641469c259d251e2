"""A graph as executed by the C backend: steps in order, each a built offer over values with storage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ....ir import Graph, Node, Source, Value
from ..kernels.base import Call, Offer, form
from .layout import Layout

CALL_BYTES = 12  # bytes of machine code of a call with its arguments
# Figures of include/huffman.h, as linked for a Cortex-M4 with -O3.
DECODER_BYTES = 810


@dataclass(frozen=True, slots=True)
class Stored:
    """A value in one layout, with its own piece of memory. One value may be stored in several layouts."""

    value: Value
    layout: Layout

    @property
    def elements(self) -> int:
        """Number of elements in memory, including the border."""
        return self.layout.elements(self.value.type.shape)

    @property
    def bytes(self) -> int:
        """Bytes of the memory."""
        return self.elements * self.value.type.dtype.bytes


@dataclass(frozen=True, slots=True)
class RowForm:
    """Consecutive equal calls by rows: `count` of them, each with the next `kernels` of the step's calls.

    They read the operands in `at_first`, which have padding before their first row, from that row on.
    """

    count: int
    kernels: int
    at_first: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class RowCalls:
    """The calls of a step that computes some rows of its result at a time, in the order of their forms.

    By operand, the windows of the first call begin at element `starts`, which is negative if they begin with padding,
    and those of each further call `advances` elements after the previous ones; None if all calls read the same
    elements. Each call writes `written` elements.
    """

    forms: tuple[RowForm, ...]
    starts: tuple[int | None, ...]
    advances: tuple[int | None, ...]
    written: int

    @property
    def count(self) -> int:
        """Number of calls."""
        return sum(form.count for form in self.forms)


@dataclass(frozen=True)
class Step:
    """The computation of a node, or a conversion of layout without a node: `node` is then None.

    `source` is that of the node; for a conversion that of its reader, or of the producer if an output is converted.
    If a step has `rows`, the offer is that of an average call, and `calls` are those of all forms.
    """

    node: Node | None
    source: Source
    operands: tuple[Stored | None, ...]
    results: tuple[Stored, ...]
    offer: Offer
    calls: tuple[Call, ...]
    rows: RowCalls | None = None

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


@dataclass(frozen=True, slots=True)
class LineBuffer:
    """Memory for the rows of a value that are still needed: the oldest are dropped if there is no room for new ones.

    It has `rows` rows of `row` elements. The value itself is between `before` and `after` rows of padding, whose
    bytes are all `fill`. `moved` is the number of elements that are moved to its front in one run, in `moves` pieces.
    """

    stored: Stored
    rows: int
    row: int
    before: int = 0
    after: int = 0
    fill: int = 0
    moved: int = 0
    moves: int = 0

    @property
    def elements(self) -> int:
        """Number of elements in memory."""
        return self.rows * self.row

    @property
    def bytes(self) -> int:
        """Bytes of the memory."""
        return self.elements * self.stored.value.type.dtype.bytes


@dataclass(frozen=True)
class Stage:
    """Steps from `first` up to `stop` that run together, some rows at a time, and the buffers between them.

    `order` is the calls by number: the forms of all steps are numbered consecutively, followed by the rows of padding
    after each value, in the order of `buffers`. `distances` are, by (result, operand that dies in the stage), the
    bytes after the start of the result at which the operand begins if the result overwrites it. `results` are the
    values that are read after the stage. `end` is the reason why the next step is not part of it.
    """

    first: int
    stop: int
    order: tuple[int, ...]
    buffers: Mapping[Stored, LineBuffer]
    distances: Mapping[tuple[Stored, Stored], int]
    results: frozenset[Stored]
    end: str = ""


@dataclass(frozen=True)
class Program:
    """Steps in order of execution; a value whose name is in the graph's `params` is in flash.

    The steps of a stage run together; of its values, only those that are read outside are stored whole.
    """

    graph: Graph
    steps: tuple[Step, ...]
    inputs: tuple[Stored, ...]
    outputs: tuple[Stored, ...]
    stages: tuple[Stage, ...] = ()

    def span(self, number: int) -> tuple[int, int]:
        """The first and the last of the steps that run together with a step."""
        for stage in self.stages:
            if stage.first <= number < stage.stop:
                return stage.first, stage.stop - 1
        return number, number

    @property
    def buffers(self) -> Mapping[Stored, LineBuffer]:
        """The line buffers of all stages, by their values."""
        return {stored: buffer for stage in self.stages for stored, buffer in stage.buffers.items()}

    @property
    def saved_bytes(self) -> int:
        """Estimated bytes of flash that codes save compared with the constants, minus the decoder."""
        coded = [c for step in self.steps for c in step.offer.coded]
        stored = {c.data.tobytes(): c for c in coded}.values()
        offers = [step.offer for step in self.steps if step.offer.replaced_bytes]
        in_kernels = sum(offer.replaced_bytes - offer.weight_bytes for offer in offers)
        decoded = sum(c.bytes - c.flash_bytes for c in stored) - CALL_BYTES * len(coded)
        return decoded + in_kernels - DECODER_BYTES
