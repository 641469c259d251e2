"""Construction of graphs: `Builder` makes a new graph, `rewrite` makes one from another, node by node."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from types import NoneType

import torch

from ..specs.root_error import ArgumentError, expect, shown
from .element_type import DType, element_bytes
from .encoding import Encoding
from .graph import NOWHERE, Graph, Node, Source, check_graph
from .ops.base import Op
from .params import Entry, LazyTensor, Params, entries_of
from .tensor_type import TensorType, Value


class Builder:
    """Collects nodes in order and generates names; `build` drops nodes that no output needs.

    Names are made from the operator's name and a counter, so equal steps give equal graphs.
    """

    def __init__(self, *, params: Mapping[str, Entry] | None = None, reserved: Iterable[str] = ()) -> None:
        self._inputs: list[Value] = []
        self._nodes: list[Node] = []
        self._params: dict[str, Entry] = dict(entries_of(params or {}))
        self._taken: set[str] = {*reserved, *self._params}
        self._counters: dict[str, int] = {}
        self._derived: dict[tuple[str, Encoding | None, Content], Value] = {}
        self._heirs: dict[str, str] = {}
        self._producers: dict[str, tuple[Node, int]] = {}

    def input(self, name: str, type: TensorType) -> Value:
        """Declares the next graph input."""
        self._taken.add(name)
        self._inputs.append(Value(name, type))
        return self._inputs[-1]

    def constant(
        self, name: str, tensor: Entry, *, quantization: Encoding | None = None, is_heir: bool = False
    ) -> Value:
        """Adds a constant; `name` is made unique. A quantized constant is stored in its container dtype.

        An heir is computed from the constant with the name `name`, and takes that name if nothing reads that constant
        any more.
        """
        expect(tensor, (torch.Tensor, LazyTensor), f"constant {name}", "a tensor")
        if isinstance(tensor, torch.Tensor):
            tensor = (
                tensor.detach() if quantization is None else tensor.detach().to(quantization.container.torch)
            )
        type = TensorType(tuple(tensor.shape), DType.of(tensor.dtype), quantization)
        value = Value(self.fresh_name(name), type)
        self._params[value.name] = tensor
        if is_heir:
            self._heirs[value.name] = name
        return value

    def derived_constant(
        self, name: str, tensor: torch.Tensor, *, quantization: Encoding | None = None
    ) -> Value:
        """A constant computed from the constant `name`; equal elements with the same name give one constant.

        So calls that share a weight also share the constants computed from it, as long as these are equal for all
        calls.
        """
        key = (name, quantization, content(tensor))
        if key not in self._derived:
            self._derived[key] = self.constant(name, tensor, quantization=quantization, is_heir=True)
        return self._derived[key]

    def add(
        self,
        op: Op,
        *operands: Value | None,
        name: str = "",
        quantization: Encoding | None = None,
        source: Source = NOWHERE,
    ) -> Value:
        """Appends a node with one result of inferred type; `quantization` is the encoding of a computed integer."""
        expect(op, Op, "add(op, ...)", "an operator", "for example ops.Relu()")
        for operand in operands:
            expect(operand, (Value, NoneType), f"add({op.name}, ...)", "values")
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
        source: Source = NOWHERE,
    ) -> tuple[Value, ...]:
        """Appends a node with the given result types."""
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
        """Appends `node` again with `operands`; result types are inferred again if operand types differ."""
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
        """The tensor of a constant added so far; None for other values."""
        entry = self._params.get(value.name)
        return entry.read() if isinstance(entry, LazyTensor) else entry

    def entry(self, value: Value) -> Entry | None:
        """The tensor of a constant as stored; a lazy one is not read. None for other values."""
        return self._params.get(value.name)

    def release(self, name: str) -> None:
        """Releases a name for the value that replaces the old one; nothing may read the old value any more."""
        self._taken.discard(name)

    def producer(self, value: Value) -> Node | None:
        """The node appended so far that computes `value`; None for an input or a constant."""
        return self._producers.get(value.name, (None, -1))[0]

    def position(self, value: Value) -> int:
        """Index of the node that computes `value`; -1 for an input or a constant."""
        return self._producers.get(value.name, (None, -1))[1]

    def _insert(self, node: Node) -> None:
        self._producers.update((value.name, (node, len(self._nodes))) for value in node.outputs)
        self._nodes.append(node)

    def fresh_name(self, wish: str) -> str:
        """`wish`, or `wish_1`, `wish_2`, ... if it is taken."""
        name = wish
        while name in self._taken:
            self._counters[wish] = self._counters.get(wish, 0) + 1
            name = f"{wish}_{self._counters[wish]}"
        self._taken.add(name)
        return name

    def build(self, outputs: Sequence[Value], *, output_names: Sequence[str] = ()) -> Graph:
        """The graph of all nodes that `outputs` depend on; all declared inputs are kept.

        A heir takes the name of its constant if no other value has that name. Every rewrite calls this, so nodes are
        swept from the end: `networkx.ancestors` with its view takes as long as a whole rewrite
        (benchmarks/graph_algorithms.py).
        """
        live = {value.name for value in outputs}
        nodes: list[Node] = []
        for node in reversed(self._nodes):
            if any(value.name in live for value in node.outputs):
                nodes.append(node)
                live.update(value.name for value in node.operands)
        graph = Graph(
            tuple(self._inputs),
            tuple(outputs),
            tuple(reversed(nodes)),
            Params(self._params).only(live),
            tuple(output_names),
        )
        return self._with_free_names(graph, live)

    def _with_free_names(self, graph: Graph, live: set[str]) -> Graph:
        taken = live.union(value.name for value in self._inputs)
        names: dict[str, str] = {}
        for name, wish in self._heirs.items():
            if name in live and wish not in taken:
                names[name] = wish
                taken.add(wish)
        if not names:
            return graph

        def named(value: Value) -> Value:
            return replace(value, name=names.get(value.name, value.name))

        return replace(
            graph,
            outputs=tuple(map(named, graph.outputs)),
            nodes=tuple(node.with_values(named) for node in graph.nodes),
            params=graph.params.renamed(lambda name: names.get(name, name)),
        )


Content = tuple[torch.dtype, torch.Size, bytes]


def content(tensor: torch.Tensor) -> Content:
    """Identity of a tensor's contents: element type, shape and a digest."""
    return tensor.dtype, tensor.shape, sha256(element_bytes(tensor)).digest()


Visit = Callable[[Builder, Node, tuple[Value | None, ...]], "Value | tuple[Value, ...] | None"]


def rewrite(graph: Graph, visit: Visit) -> Graph:
    """Rebuilds `graph` node by node, in time linear in its size.

    `visit(builder, node, operands)` is called for each node with its rewritten operands, and returns the value or
    values that replace its results, or None to keep the node. Nodes without readers are dropped.
    """
    check_graph(graph, "rewrite(graph, visit)")
    if not callable(visit):
        fact = f"expects a function of builder, node and operands, got {shown(visit)}"
        raise ArgumentError("rewrite(graph, visit)", fact)
    taken = [value.name for value in graph.results]
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
    made = builder.build([current[v.name] for v in graph.outputs], output_names=graph.output_names)
    return made.with_precisions(graph.precisions)
