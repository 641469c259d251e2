"""Value representation of a form of the emitted module: reals, or integers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType, ModuleType
from typing import Protocol

from torch import Tensor

from ...ir import Node, Value
from .layers import LayerKind, layer_kind
from .names import Path

Strings = Sequence["str | None"]


class Style(Protocol):
    """Differences between the forms. A variable of the emitted `forward` holds a value in the form's representation."""

    @property
    def preludes(self) -> tuple[ModuleType, ...]:
        """The modules whose definitions are copied into the emitted file."""

    @property
    def buffers(self) -> Mapping[Path, Tensor]:
        """Tensors of the emitted module that are not constants of the graph."""

    @property
    def notes(self) -> tuple[str, ...]:
        """Remarks for the report of a compilation."""

    @property
    def groups(self) -> Mapping[str, tuple[Node, ...]]:
        """Nodes that one expression computes in place of the first of them, by the name of each node's result."""

    def kind(self, node: Node) -> LayerKind | None:
        """The submodule that computes `node`, if any."""

    def enter(self, value: Value, variable: str) -> str:
        """Expression of the carried value of a graph input."""

    def leave(self, value: Value, variable: str) -> str:
        """Expression of a graph output."""

    def is_raw(self, node: Node) -> bool:
        """True if a node without submodule is computed on carried values, not on reals."""

    def read(self, node: Node, operand: int, variable: str) -> str:
        """Expression of the reals of an operand."""

    def store(self, value: Value, expression: str) -> str:
        """Expression of the carried value, from that of the reals."""

    def whole(self, node: Node, operands: Strings, names: Mapping[Path, str]) -> str | None:
        """Expression of a node with a special computation; `names` are those of `buffers`.

        For the first node of a group, the expression of all results; `operands` has those of all nodes, one after the
        other.
        """


class FloatStyle:
    """Variables hold reals."""

    preludes: tuple[ModuleType, ...] = ()
    buffers: Mapping[Path, Tensor] = MappingProxyType({})
    notes: tuple[str, ...] = ()
    groups: Mapping[str, tuple[Node, ...]] = MappingProxyType({})

    def kind(self, node: Node) -> LayerKind | None:
        """The operator's own submodule."""
        return layer_kind(node)

    def enter(self, value: Value, variable: str) -> str:
        """The argument."""
        return variable

    def leave(self, value: Value, variable: str) -> str:
        """The variable."""
        return variable

    def is_raw(self, node: Node) -> bool:
        """False: every variable holds reals."""
        return False

    def read(self, node: Node, operand: int, variable: str) -> str:
        """The variable."""
        return variable

    def store(self, value: Value, expression: str) -> str:
        """The expression."""
        return expression

    def whole(self, node: Node, operands: Strings, names: Mapping[Path, str]) -> str | None:
        """None: no node is special."""
        return None
