"""The graph: immutable, in execution order, with constants as ordinary values.

A pass takes a `Graph` and returns another one; tensors are shared between them, never copied.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType

import torch

from .errors import VerifyError
from .ops.base import Op
from .tensor_type import Quantization, TensorType, Value


@dataclass(frozen=True, slots=True)
class Source:
    """Where a node comes from in the user's model: dotted module path, `file:line`; either may be empty."""

    module: str = ""
    location: str = ""

    def __str__(self) -> str:
        return " at ".join(part for part in (self.module, self.location) if part)


@dataclass(frozen=True, slots=True)
class Node:
    """One operator applied to values; an absent optional operand is None, never trailing."""

    op: Op
    inputs: tuple[Value | None, ...]
    outputs: tuple[Value, ...]
    source: Source = Source()

    @property
    def output(self) -> Value:
        """The result of a node that has exactly one."""
        (value,) = self.outputs
        return value

    @property
    def operands(self) -> tuple[Value, ...]:
        """The inputs that are present."""
        return tuple(value for value in self.inputs if value is not None)

    def operand(self, index: int) -> Value | None:
        """Input `index`, or None when it is absent."""
        return self.inputs[index] if index < len(self.inputs) else None

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


@dataclass(frozen=True)
class Graph:
    """Nodes in execution order. A value whose name is in `params` is a constant.

    Outputs carry a name of their own, since an output may be an input, a constant, or stand twice.
    """

    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    nodes: tuple[Node, ...]
    params: Mapping[str, torch.Tensor] = field(default_factory=dict)
    output_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "params", MappingProxyType(dict(self.params)))
        if not self.output_names:
            names = tuple(
                f"output_{i}" if len(self.outputs) > 1 else "output" for i in range(len(self.outputs))
            )
            object.__setattr__(self, "output_names", names)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Graph):
            return NotImplemented
        same_text = (self.inputs, self.outputs, self.nodes, self.output_names) == (
            other.inputs,
            other.outputs,
            other.nodes,
            other.output_names,
        )
        return same_text and _same_params(self.params, other.params)

    __hash__ = None  # type: ignore[assignment]  # params are tensors; graphs are compared, never keys

    @cached_property
    def producers(self) -> Mapping[str, Node]:
        """The node that makes each value, by the value's name."""
        return {value.name: node for node in self.nodes for value in node.outputs}

    @cached_property
    def users(self) -> Mapping[str, tuple[Node, ...]]:
        """The nodes that read each value, by the value's name; a node that reads it twice stands twice."""
        users: dict[str, list[Node]] = {}
        for node in self.nodes:
            for value in node.operands:
                users.setdefault(value.name, []).append(node)
        return {name: tuple(nodes) for name, nodes in users.items()}

    @cached_property
    def constants(self) -> tuple[Value, ...]:
        """The constants that nodes or outputs read, in order of first use."""
        read = [v for node in self.nodes for v in node.operands] + list(self.outputs)
        return tuple({v.name: v for v in read if v.name in self.params}.values())

    def is_constant(self, value: Value | None) -> bool:
        """True for a value whose tensor is in `params`."""
        return value is not None and value.name in self.params

    def use_count(self, value: Value) -> int:
        """How often nodes read the value, plus how often it is an output."""
        return len(self.users.get(value.name, ())) + sum(v.name == value.name for v in self.outputs)

    def tensor(self, value: Value) -> torch.Tensor:
        """The tensor of a constant."""
        return self.params[value.name]

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one run."""
        return sum(node.macs for node in self.nodes)

    def with_params(self, params: Mapping[str, torch.Tensor]) -> Graph:
        """This graph with some constants' tensors replaced (same shapes and dtypes)."""
        unknown = params.keys() - self.params.keys()
        if unknown:
            raise VerifyError(f"not constants of this graph: {', '.join(sorted(unknown))}")
        return replace(self, params={**self.params, **params})


class Builder:
    """Collects nodes in order and hands out names; `build` drops what no output needs.

    Names are made from the operator's name and a counter, so equal steps give equal graphs.
    """

    def __init__(
        self, *, params: Mapping[str, torch.Tensor] | None = None, reserved: Iterable[str] = ()
    ) -> None:
        self._inputs: list[Value] = []
        self._nodes: list[Node] = []
        self._params: dict[str, torch.Tensor] = dict(params or {})
        self._taken: set[str] = {*reserved, *self._params}
        self._counters: dict[str, int] = {}
        self._producers: dict[str, tuple[Node, int]] = {}

    def input(self, name: str, type: TensorType) -> Value:
        """Declare the next graph input."""
        self._taken.add(name)
        self._inputs.append(Value(name, type))
        return self._inputs[-1]

    def constant(self, name: str, tensor: torch.Tensor, *, quantization: Quantization | None = None) -> Value:
        """Add a constant; `name` is a wish, made unique. A quantized one is stored in its container dtype."""
        type = TensorType.of(tensor)
        if quantization is not None:
            tensor = tensor.to(quantization.container.torch)
            type = TensorType(tuple(tensor.shape), quantization.container, quantization)
        value = Value(self.fresh_name(name), type)
        self._params[value.name] = tensor.detach()
        return value

    def add(
        self,
        op: Op,
        *operands: Value | None,
        name: str = "",
        quantization: Quantization | None = None,
        source: Source = Source(),
    ) -> Value:
        """Append a node with one result of inferred type; `quantization` is that of a computed integer."""
        inferred = op.infer(*(value and value.type for value in operands))
        (type,) = inferred if quantization is None else (inferred[0].quantized(quantization),)
        return self.append(op, operands, (type,), names=(name,), source=source)[0]

    def append(
        self,
        op: Op,
        operands: Sequence[Value | None],
        types: Sequence[TensorType],
        *,
        names: Sequence[str] = (),
        source: Source = Source(),
    ) -> tuple[Value, ...]:
        """Append a node with the given result types."""
        trimmed = list(operands)
        while trimmed and trimmed[-1] is None:
            trimmed.pop()
        wished = tuple(names) or ("",) * len(types)
        outputs = tuple(
            Value(self.fresh_name(name or op.name), type) for name, type in zip(wished, types, strict=True)
        )
        self._insert(Node(op, tuple(trimmed), outputs, source))
        return outputs

    def keep(self, node: Node, operands: Sequence[Value | None]) -> tuple[Value, ...]:
        """Append `node` again on `operands`; result types are inferred anew where operand types differ."""
        operands = tuple(operands)
        if tuple(v and v.type for v in operands) == node.operand_types:
            self._taken.update(value.name for value in node.outputs)
            self._insert(replace(node, inputs=operands))
            return node.outputs
        inferred = node.op.infer(*(v and v.type for v in operands))
        types = tuple(
            new
            if old.quantization is None or new.quantization is not None
            else new.quantized(old.quantization)
            for new, old in zip(inferred, node.output_types, strict=True)
        )
        outputs = tuple(Value(value.name, type) for value, type in zip(node.outputs, types, strict=True))
        self._taken.update(value.name for value in outputs)
        self._insert(Node(node.op, operands, outputs, node.source))
        return outputs

    def tensor(self, value: Value) -> torch.Tensor | None:
        """The tensor of a constant known so far, else None."""
        return self._params.get(value.name)

    def release(self, name: str) -> None:
        """Give a name free for the value that takes another one's place; nothing may read the old one any more."""
        self._taken.discard(name)

    def producer(self, value: Value) -> Node | None:
        """The node appended so far that makes `value`; None for an input or a constant."""
        return self._producers.get(value.name, (None, -1))[0]

    def position(self, value: Value) -> int:
        """Index of the node that makes `value`; -1 for an input or a constant."""
        return self._producers.get(value.name, (None, -1))[1]

    def _insert(self, node: Node) -> None:
        self._producers.update((value.name, (node, len(self._nodes))) for value in node.outputs)
        self._nodes.append(node)

    def fresh_name(self, wish: str) -> str:
        """`wish`, or `wish_1`, `wish_2`, ... when it is taken."""
        name = wish
        while name in self._taken:
            self._counters[wish] = self._counters.get(wish, 0) + 1
            name = f"{wish}_{self._counters[wish]}"
        self._taken.add(name)
        return name

    def build(self, outputs: Sequence[Value], *, output_names: Sequence[str] = ()) -> Graph:
        """The graph of everything that `outputs` depend on; all declared inputs stay."""
        live = {value.name for value in outputs}
        nodes: list[Node] = []
        for node in reversed(self._nodes):
            if any(value.name in live for value in node.outputs):
                nodes.append(node)
                live.update(value.name for value in node.operands)
        params = {name: tensor for name, tensor in self._params.items() if name in live}
        return Graph(tuple(self._inputs), tuple(outputs), tuple(reversed(nodes)), params, tuple(output_names))


Visit = Callable[[Builder, Node, tuple[Value | None, ...]], "Value | tuple[Value, ...] | None"]


def rewrite(graph: Graph, visit: Visit) -> Graph:
    """Rebuild `graph` node by node, in time linear in its size.

    `visit(builder, node, operands)` sees each node with its operands already rewritten, and returns the value
    or values that stand for its results, or None to keep the node. Nodes that nobody reads are dropped.
    """
    taken = [value.name for node in graph.nodes for value in node.outputs]
    builder = Builder(params=graph.params, reserved=taken)
    current: dict[str, Value] = {v.name: v for v in graph.constants}
    for value in graph.inputs:
        current[value.name] = builder.input(value.name, value.type)
    for node in graph.nodes:
        operands = tuple(value and current[value.name] for value in node.inputs)
        for value in node.outputs:
            builder.release(value.name)
        results = visit(builder, node, operands)
        if results is None:
            results = builder.keep(node, operands)
        elif isinstance(results, Value):
            results = (results,)
        for old, new in zip(node.outputs, results, strict=True):
            current[old.name] = new
    return builder.build([current[v.name] for v in graph.outputs], output_names=graph.output_names)


def _same_params(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> bool:
    if a.keys() != b.keys():
        return False
    return all(
        x is y or ((x.dtype == y.dtype and torch.equal(x, y)) or _equal_with_nan(x, y))
        for x, y in ((a[k], b[k]) for k in a)
    )


def _equal_with_nan(x: torch.Tensor, y: torch.Tensor) -> bool:
    same_type = x.dtype == y.dtype and x.shape == y.shape and x.is_floating_point()
    return same_type and bool(torch.isclose(x, y, rtol=0.0, atol=0.0, equal_nan=True).all())
