"""The graph: immutable, in execution order, with constants as ordinary values.

A pass takes a `Graph` and returns another one. Tensors are shared between them, never copied; lazy ones are read only
where their elements are used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType

import torch
from torch import Tensor

from ..specs.root_error import expect
from .errors import VerifyError
from .ops.base import Op
from .params import Entry, LazyTensor, Params
from .precision import Precision
from .sizes import Dimension, dimensions_of, evaluated, with_sizes
from .spill import spilled
from .tensor_type import TensorType, Value


@dataclass(frozen=True, slots=True)
class Source:
    """Origin of a node in the user's model: dotted module path and `file:line`; either may be empty."""

    module: str = ""
    location: str = ""

    def __str__(self) -> str:
        return " at ".join(part for part in (self.module, self.location) if part)


NOWHERE = Source()
"""The source of a node without a counterpart in the user's model."""


@dataclass(frozen=True, slots=True)
class Node:
    """One operator applied to values; an absent optional operand is None, and None is never the last."""

    op: Op
    inputs: tuple[Value | None, ...]
    outputs: tuple[Value, ...]
    source: Source = NOWHERE

    @property
    def output(self) -> Value:
        """The result of a node that has exactly one."""
        (value,) = self.outputs
        return value

    @property
    def operands(self) -> tuple[Value, ...]:
        """The inputs that are present."""
        return tuple(value for value in self.inputs if value is not None)

    def operand(self, name: str) -> Value:
        """The operand with this name, which must be present."""
        return self.op.operand(self.inputs, name)

    def optional(self, name: str) -> Value | None:
        """The operand with this name; None if it is absent or the operator has no such operand."""
        return self.op.optional(self.inputs, name)

    def with_operands(self, **operands: Value | None) -> Node:
        """This node with other operands for these names; None omits an optional operand."""
        inputs = [*self.inputs, *[None] * (len(self.op.operand_names) - len(self.inputs))]
        for name, value in operands.items():
            inputs[self.op.position(name)] = value
        while inputs and inputs[-1] is None:
            inputs.pop()
        return replace(self, inputs=tuple(inputs))

    @property
    def operand_names(self) -> tuple[str, ...]:
        """The names of `operands`."""
        return tuple(self.op.name_of(index) for index, value in enumerate(self.inputs) if value is not None)

    @property
    def operand_types(self) -> tuple[TensorType | None, ...]:
        """Types of `inputs`, None for an absent one."""
        return tuple(None if value is None else value.type for value in self.inputs)

    @property
    def output_types(self) -> tuple[TensorType, ...]:
        """Types of `outputs`."""
        return tuple(value.type for value in self.outputs)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one execution."""
        return self.op.macs(self.operand_types, self.output_types)

    def with_values(self, change: Callable[[Value], Value]) -> Node:
        """This node with `change(value)` in place of each operand and result."""
        inputs = tuple(value and change(value) for value in self.inputs)
        return replace(self, inputs=inputs, outputs=tuple(change(value) for value in self.outputs))


@dataclass(frozen=True)
class Graph:
    """Nodes in execution order. A value whose name is in `params` is a constant.

    Outputs have separate names, since an output may be an input, a constant, or occur twice.
    """

    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    nodes: tuple[Node, ...]
    params: Params = field(default_factory=Params)
    output_names: tuple[str, ...] = ()
    precisions: Mapping[str, Precision] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "precisions", MappingProxyType(dict(sorted(self.precisions.items()))))
        if not isinstance(self.params, Params):
            object.__setattr__(self, "params", Params(self.params))
        if not self.output_names:
            names = tuple(
                f"output_{i}" if len(self.outputs) > 1 else "output" for i in range(len(self.outputs))
            )
            object.__setattr__(self, "output_names", names)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Graph):
            return NotImplemented
        same_text = (self.inputs, self.outputs, self.nodes, self.output_names, self.precisions) == (
            other.inputs,
            other.outputs,
            other.nodes,
            other.output_names,
            other.precisions,
        )
        return same_text and self.params == other.params

    def __repr__(self) -> str:
        """One line, whatever the size: `dump` gives the text."""
        inputs = ", ".join(f"%{value.name}" for value in self.inputs)
        sizes = f"{len(self.nodes)} nodes, {len(self.params)} constants"
        return f"<Graph of {sizes}: ({inputs}) -> ({', '.join(self.output_names)})>"

    __hash__ = None  # type: ignore[assignment]  # params are tensors; graphs are compared, never keys

    @cached_property
    def producers(self) -> Mapping[str, Node]:
        """The node that computes each value, by the value's name."""
        return {value.name: node for node in self.nodes for value in node.outputs}

    def source(self, value: Value) -> Source:
        """Source of the node that computes a value; NOWHERE for inputs and constants."""
        producer = self.producers.get(value.name)
        return NOWHERE if producer is None else producer.source

    @cached_property
    def users(self) -> Mapping[str, tuple[Node, ...]]:
        """The nodes that read each value, by the value's name; a node occurs twice if it reads the value twice."""
        users: dict[str, list[Node]] = {}
        for node in self.nodes:
            for value in node.operands:
                users.setdefault(value.name, []).append(node)
        return {name: tuple(nodes) for name, nodes in users.items()}

    @cached_property
    def results(self) -> tuple[Value, ...]:
        """Results of all nodes, in order."""
        return tuple(value for node in self.nodes for value in node.outputs)

    @cached_property
    def constants(self) -> tuple[Value, ...]:
        """The constants that nodes or outputs read, in order of first use."""
        read = [v for node in self.nodes for v in node.operands] + list(self.outputs)
        return tuple({v.name: v for v in read if v.name in self.params}.values())

    def is_constant(self, value: Value | None) -> bool:
        """True for a value whose tensor is in `params`."""
        return value is not None and value.name in self.params

    def use_count(self, value: Value) -> int:
        """Number of reads of a value by nodes, plus its number of occurrences as an output."""
        return len(self.users.get(value.name, ())) + sum(v.name == value.name for v in self.outputs)

    def tensor(self, value: Value) -> torch.Tensor:
        """The tensor of a constant; a lazy one is read again."""
        expect(value, Value, "tensor(value)", "a value of the graph", "by name: graph.params[name]")
        return self.params[value.name]

    @cached_property
    def dimensions(self) -> Mapping[str, Dimension]:
        """Dynamic dimensions by name, in the order of the inputs; empty if all sizes are fixed."""
        return dimensions_of([value.type.shape for value in self.inputs])

    def at_sizes(self, sizes: Mapping[str, int]) -> Graph:
        """This graph with fixed sizes of its dimensions, by name; omitted dimensions have the size of the example."""
        chosen = {name: sizes.get(name, d.example) for name, d in self.dimensions.items()}
        if not chosen:
            return self
        key = tuple(chosen.values())
        if key not in self._at_sizes:
            self._at_sizes[key] = self._with_sizes(chosen)
        return self._at_sizes[key]

    def with_examples(self, sizes: Mapping[str, int]) -> Graph:
        """This graph with other example sizes of dimensions, by name; they remain dynamic."""
        if all(sizes.get(name, d.example) == d.example for name, d in self.dimensions.items()):
            return self
        return self._with_sizes(
            {name: replace(d, example=sizes.get(name, d.example)).size for name, d in self.dimensions.items()}
        )

    @cached_property
    def _at_sizes(self) -> dict[tuple[int, ...], Graph]:
        return {}

    def _with_sizes(self, sizes: Mapping[str, int]) -> Graph:
        def fixed(value: Value) -> Value:
            shape = with_sizes(value.type.shape, lambda size: evaluated(size, sizes))
            return value if shape == value.type.shape else replace(value, type=value.type.with_shape(shape))

        nodes = tuple(
            replace(node.with_values(fixed), op=with_sizes(node.op, lambda size: evaluated(size, sizes)))
            for node in self.nodes
        )
        ends = (tuple(map(fixed, self.inputs)), tuple(map(fixed, self.outputs)))
        return replace(self, inputs=ends[0], outputs=ends[1], nodes=nodes)

    @cached_property
    def macs(self) -> int:
        """Multiply-accumulates of one run."""
        return sum(node.macs for node in self.nodes)

    def with_precisions(self, precisions: Mapping[str, Precision]) -> Graph:
        """This graph with bit widths for more layers, by module path; they replace earlier ones of the same layers."""
        for layer, precision in precisions.items():
            hint = "write Precision(weights=4)"
            expect(precision, Precision, f"with_precisions(...), {layer}", "a `Precision`", hint)
        return replace(self, precisions={**self.precisions, **precisions})

    def with_params(self, params: Mapping[str, Entry]) -> Graph:
        """This graph with other tensors for some constants (same shapes and dtypes); no tensor is read.

        The replacement of a lazy constant is lazy, too: its tensor is moved to a temporary file.
        """
        unknown = params.keys() - self.params.keys()
        if unknown:
            raise VerifyError(f"not constants of this graph: {', '.join(sorted(unknown))}")
        kept = {
            name: spilled(entry)
            if isinstance(entry, Tensor) and isinstance(self.params.entry(name), LazyTensor)
            else entry
            for name, entry in params.items()
        }
        return replace(self, params=self.params | kept)


def check_graph(graph: object, call: str) -> None:
    """Raises ArgumentError unless the argument of this public function is a graph."""
    expect(graph, Graph, call, "a graph", "for a module pass capture(module, inputs).graph")
