"""Prompt tuning: trained vectors before the embeddings of a sequence (Lester et al., EMNLP 2021).

    x' = [P; x],  P [count, features];  of results of all positions, those of the sequence

All positions of the sequence move by `count`: the dynamic dimension n of its length becomes n + count in every node
that does not depend on the inputs beside the embeddings: position tables, masks, reshapes. Since sizes are expressions,
type inference proves that each of these nodes takes the longer sequence. A node that depends on the inputs otherwise,
such as a mask of padding, keeps n; where both meet, inference fails, and the network is refused with that node.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ...ir import Builder, Graph, Node, Value
from ...ir.errors import IRError
from ...ir.ops.binary import Add
from ...ir.ops.call import TorchCall
from ...ir.ops.embedding import Embedding, Take
from ...ir.ops.pad import Pad
from ...ir.ops.put import IndexCopy, Put
from ...ir.ops.slicing import Select, Slice, Split
from ...ir.sizes import Dimension, dimensions_of, evaluated, with_sizes
from ...ir.text import node_text
from ...specs.options import FinetuneOptions, PromptTuning
from ..errors import PassError
from ..report import Decision
from .added_trainable import AddedTrainable, free_name
from .trainable import constant_behind

_POSITIONS = -2  # dimension of [n, positions, features]
_RANK = 3
_INDEXING = ("index", "gather", "scatter", "select", "take", "narrow", "slice", "as_strided")


def with_prompts(graph: Graph, options: FinetuneOptions, prompts: PromptTuning) -> AddedTrainable:
    """Trainable form with prompts before the embeddings; PassError if the network cannot take a longer sequence."""
    if options.distill is not None and options.distill.layers:
        raise PassError(
            "trains: prompts: features of `distill.layers` have the positions of the prompts too, which the teacher's "
            "lack; remove `layers`"
        )
    embedding = _embedding(graph)
    dimension = _dimension(embedding, prompts.count)
    name = free_name(graph, f"{embedding.output.name}_prompts")
    start = _initial(graph, embedding, options, prompts)
    longer = _Longer(graph, embedding, dimension, prompts.count).graph(name, start)
    reason = f"{prompts.count} prompts before its results, {start.numel():,} numbers"
    decision = Decision("finetune", embedding.output.name, embedding.source, True, reason)
    return AddedTrainable(longer, (name,), (decision,))


def _embedding(graph: Graph) -> Node:
    """The one embedding of indices that are computed from the inputs."""
    reached = _reached(graph, {value.name for value in graph.inputs})
    found = [
        node
        for node in graph.nodes
        if isinstance(node.op, Embedding) and node.operand("indices").name in reached
    ]
    if len(found) != 1:
        names = ", ".join(node.source.module or node.output.name for node in found) or "none"
        raise PassError(
            f"trains: prompts: prompts precede the results of the one embedding of the inputs; there are {names}"
        )
    return found[0]


def _dimension(embedding: Node, count: int) -> Dimension:
    """The dimension of positions; PassError if the length is fixed, or too near its limit."""
    shape = embedding.output.type.shape
    found = list(dimensions_of(shape[_POSITIONS : _POSITIONS + 1]).values()) if len(shape) == _RANK else []
    if len(found) != 1 or shape[_POSITIONS] != found[0].size:
        raise PassError(
            f"trains: prompts: the embeddings have the shape {_text(shape)}; prompts make a sequence longer: capture "
            "the model with a dynamic length, `dynamic: {1: tokens}` at its input"
        )
    (dimension,) = found
    if dimension.example + count > dimension.largest:
        raise PassError(
            f"trains: prompts: {dimension.example} positions and {count} prompts are more than the {dimension.high} "
            "positions of the model; lower `count`, or give the input a shorter example"
        )
    return dimension


def _initial(graph: Graph, embedding: Node, options: FinetuneOptions, prompts: PromptTuning) -> Tensor:
    """[1, count, features]: random rows of the table, or normal numbers with its standard deviation."""
    generator = torch.Generator().manual_seed(options.seed)
    weight = constant_behind(graph, embedding.operand("weight"))
    features = embedding.output.type.shape[-1]
    if not graph.is_constant(weight):
        return torch.randn(1, prompts.count, features, generator=generator)
    encoding, stored = weight.type.quantization, graph.tensor(weight)
    table = stored.float() if encoding is None else encoding.dequantize(stored).float()
    if prompts.start == "random":
        return table.std() * torch.randn(1, prompts.count, features, generator=generator)
    rows = torch.randint(len(table), (prompts.count,), generator=generator)
    return table[rows][None]


class _Longer:
    """Rebuilds a graph with prompts: `sizes` are those of nodes that keep the length, and of the others."""

    def __init__(self, graph: Graph, at: Node, dimension: Dimension, count: int) -> None:
        high = None if dimension.high is None else dimension.high - count
        size = replace(dimension, high=high).size
        others = {name: d.size for name, d in graph.dimensions.items()}
        self.before, self.dimension, self.at, self.count = graph, dimension, at, count
        self.keeping = {**others, dimension.name: size}
        self.growing = {**others, dimension.name: size + count}
        inputs = _reached(graph, {value.name for value in graph.inputs})
        self.kept = inputs - _reached(graph, {at.output.name}) | {at.output.name}

    def graph(self, name: str, prompts: Tensor) -> Graph:
        """The graph with the constant `name`."""
        graph, at = self.before, self.at
        taken = [value.name for value in graph.results]
        builder = Builder(params=graph.params, reserved=taken)
        current = {value.name: value for value in graph.constants}
        for value in graph.inputs:
            current[value.name] = builder.input(value.name, _at(value, self.keeping).type)
        for node in graph.nodes:
            current.update(self._node(builder, node, current))
            if node is at:
                value = builder.constant(name, prompts.to(at.output.type.dtype.torch))
                current[at.output.name] = self._joined(builder, current[at.output.name], value)
        outputs = [self._output(builder, current[value.name], value) for value in graph.outputs]
        return builder.build(outputs, output_names=graph.output_names).with_precisions(graph.precisions)

    def _node(self, builder: Builder, node: Node, current: dict[str, Value]) -> dict[str, Value]:
        is_kept = node.outputs[0].name in self.kept
        sizes = self.keeping if is_kept else self.growing
        if not is_kept and (reason := self._counts_from_the_front(node)):
            raise PassError(f"trains: prompts: {node_text(node)}: {reason}, which would be a prompt's")
        op = with_sizes(node.op, lambda size: evaluated(size, sizes))
        operands = tuple(value and current[value.name] for value in node.inputs)
        for value in node.outputs:
            builder.release(value.name)
        try:
            types = op.infer(*(value and value.type for value in operands))
        except IRError as err:
            raise PassError(
                f"trains: prompts: {node_text(node)} does not take {self.count} more positions: {err.message}"
            ) from err
        names = [value.name for value in node.outputs]
        return dict(
            zip(names, builder.append(op, operands, types, names=names, source=node.source), strict=True)
        )

    def _joined(self, builder: Builder, x: Value, prompts: Value) -> Value:
        """[P; x] as a sum of both, padded: the batch of `x` can change, and P has a batch of one."""
        length = x.type.shape[_POSITIONS]
        name, source = x.name, self.at.source
        padded = builder.add(Pad((self.count, 0, 0, 0)), x, name=f"{name}_moved", source=source)
        before = builder.add(Pad((0, length, 0, 0)), prompts, name=f"{name}_before", source=source)
        return builder.add(Add(), padded, before, name=f"{name}_prompted", source=source)

    def _counts_from_the_front(self, node: Node) -> str:
        """A description of elements that a node takes at fixed positions of the sequence; empty if it takes none."""
        op = node.op
        if isinstance(op, TorchCall):
            reads = any(map(self._grows, node.operands))
            return f"{op.call} may take elements by position" if reads and _is_indexing(op) else ""
        if isinstance(op, Put) and self._grows(node.output):
            return "it puts elements by position"
        if not isinstance(op, Slice | Select | Split | Take | IndexCopy):
            return ""
        size = node.operands[0].type.shape[op.axis]
        if self.dimension.name not in dimensions_of(size):
            return ""
        if isinstance(op, Select):
            return "" if self._moves(op.index) else f"it takes position {int(op.index)}"
        if isinstance(op, Slice):
            begins = op.start == 0 and op.step == 1
            ends = op.stop is None or op.stop == size or self._moves(op.stop)
            return "" if ends and (begins or self._moves(op.start)) else "it takes a range of positions"
        return "it takes elements by position"

    def _moves(self, index: int | None) -> bool:
        """True if an index is relative to the end of the sequence."""
        return self.dimension.name in dimensions_of(index)

    def _grows(self, value: Value) -> bool:
        return self.dimension.name in dimensions_of(value.type.shape)

    def _output(self, builder: Builder, value: Value, before: Value) -> Value:
        """The results of the sequence's own positions."""
        shape = _at(before, self.keeping).type.shape
        for axis, (size, wanted) in enumerate(zip(value.type.shape, shape, strict=True)):
            if size == wanted:
                continue
            if size != wanted + self.count:
                raise PassError(
                    f"trains: prompts: an output of shape {_text(value.type.shape)} has no position for each of the "
                    "sequence"
                )
            value = builder.add(Slice(axis, self.count), value, source=self.before.source(before))
        return value


def _at(value: Value, sizes: Mapping[str, int]) -> Value:
    shape = with_sizes(value.type.shape, lambda size: evaluated(size, sizes))
    return replace(value, type=value.type.with_shape(shape))


def _reached(graph: Graph, names: set[str]) -> set[str]:
    """The values of these names, and those that are computed from them."""
    reached = set(names)
    for node in graph.nodes:
        if any(value.name in reached for value in node.operands):
            reached.update(value.name for value in node.outputs)
    return reached


def _is_indexing(op: TorchCall) -> bool:
    """True for a call of torch that takes elements by position."""
    name = op.call.removeprefix("aten.").partition(".")[0]
    return any(word in name for word in _INDEXING)


def _text(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))
