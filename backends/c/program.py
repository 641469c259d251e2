"""A graph as the C backend runs it: steps in order, each an implementation over values that lie somewhere."""

from __future__ import annotations

from dataclasses import dataclass

from ...ir import Graph, Source, Value
from .kernels.base import Implementation
from .layout import Layout


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
    """One node, or a conversion of layout that a node needs before it; `number` is the node's place in the graph."""

    number: int
    operator: str
    source: Source
    operands: tuple[Stored | None, ...]
    results: tuple[Stored, ...]
    implementation: Implementation
    macs: int = 0


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
        return self._code_bytes + sum(step.implementation.constant_bytes for step in self.steps)

    @property
    def _code_bytes(self) -> int:
        seen: dict[object, int] = {}
        for step in self.steps:
            keys = tuple(call.function.key for call in step.implementation.calls)
            if keys:
                seen[keys] = step.implementation.cost.code_bytes
        return sum(seen.values())
