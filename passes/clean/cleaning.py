"""The pass `clean`: constant folding, removal of no-ops, merging of data movement, common subexpressions.

    constants    a node that reads only constants becomes a constant, unless it is much larger; equal results,
                 and equal constants of integers or booleans, are one constant
    movement     reshape(reshape(x)) = reshape(x), permute(permute(x)) = permute(x), reshape(copy(x)) = reshape(x),
                 and nodes between layers called without a batch compute with one (`batch_of_one`)
    no_ops       x + 0, x * 1, reshape to the same sizes, a clamp whose bounds no value reaches, ...: x itself
    duplicates   the same operator on the same operands is computed once
    norms        a written-out norm becomes the norm operator (`written_norms`)

One walk in order, so that operands are cleaned before their readers. Nodes without readers are dropped.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import partial
from math import prod

import torch
from torch import Tensor

from ...ir import Builder, Entry, Graph, LazyTensor, Node, Op, Value, rewrite
from ...ir.builder import Content, content
from ...ir.ops.call import TorchCall
from ...ir.ops.shape import Permute, Reshape
from ...ir.sizes import dimensions_of
from ...specs.options import CleanOptions
from ..base import Context, PassResult, register
from ..report import Decision, PassReport
from .batch_of_one import before_batch_is_dropped
from .no_ops import neutral_operand
from .written_norms import NormFinder

MOVES = (Permute, Reshape)
FOLDED_BYTES = 1 << 16  # allowed size of a folded constant, even if its operands are smaller


@register(CleanOptions)
def clean(graph: Graph, options: CleanOptions, context: Context) -> PassResult:
    """An equivalent graph with fewer nodes."""
    return clean_graph(graph, disable=options.disable)


def clean_graph(graph: Graph, *, disable: Collection[str] = ()) -> PassResult:
    """`clean` for other passes whose results need cleaning."""
    cleaner = _Cleaner(graph, disable)
    cleaned = rewrite(graph, cleaner.visit)
    return PassResult(cleaned, PassReport("clean", tuple(cleaner.decisions)))


def is_unmoved(original: Graph, graph: Graph, name: str) -> bool:
    """True if a constant has the element order of the original's constant of the same name, which may have been moved.

    A weight that the model transposes keeps its name when `clean` folds the transposition.
    """
    if name not in original.params or name not in graph.params:
        return False
    shapes = {tuple(params.entry(name).shape) for params in (original.params, graph.params)}
    moves = [
        {node.op for node in one.users.get(name, ()) if isinstance(node.op, MOVES)}
        for one in (original, graph)
    ]
    return len(shapes) == 1 and moves[0] == moves[1]


class _Cleaner:
    """One walk over a graph; records the computed nodes."""

    def __init__(self, graph: Graph, disable: Collection[str]) -> None:
        self._disable = disable
        self._norms = NormFinder(graph)
        self._computed: dict[tuple[Op, tuple[Value | None, ...]], tuple[Value, ...]] = {}
        self._folded: dict[tuple[Op, tuple[Value | None, ...]], tuple[Value, ...]] = {}
        self._by_content: dict[Content, Value] = {}
        self._shared: dict[str, Value] = {}
        self.decisions: list[Decision] = []

    def visit(
        self, builder: Builder, node: Node, operands: tuple[Value | None, ...]
    ) -> tuple[Value, ...] | None:
        """Replacements of the node's results, or None to keep the node."""
        seen = replace(
            node, inputs=tuple(value and self._one_of_equals(builder, value) for value in operands)
        )
        if (folded := self._constants(builder, seen)) is not None:
            return folded
        joined = self._movement(builder, seen)
        if (same := self._neutral(builder, joined)) is not None:
            return (same,)
        if (computed := self._duplicate(joined)) is not None:
            return computed
        if (norm := self._norm(builder, joined)) is not None:
            return (norm,)
        if (moved := self._before_batch_is_dropped(builder, joined)) is not None:
            return (moved,)
        results = builder.keep(joined, joined.inputs)
        if not _is_random(node.op):
            self._computed[joined.op, joined.inputs] = results
        return results

    def _constants(self, builder: Builder, node: Node) -> tuple[Value, ...] | None:
        entries = [None if value is None else builder.entry(value) for value in node.inputs]
        known = [entry for entry in entries if entry is not None]
        is_float = not any(v.type.is_quantized for v in (*node.operands, *node.outputs))
        if (
            "constants" in self._disable
            or len(known) != len(node.operands)
            or not is_float
            or _is_random(node.op)
            or dimensions_of(node.op)
        ):
            return None
        if (again := self._folded.get((node.op, node.inputs))) is not None:
            self._decide("constants", node, True, f"computed already as {again[0]}")
            return again
        room = max(sum(prod(entry.shape) * entry.dtype.itemsize for entry in known), FOLDED_BYTES)
        needed = sum(v.type.storage_bytes for v in node.outputs)
        if needed > room:
            self._decide(
                "constants",
                node,
                False,
                f"the result has {needed:,} bytes, the limit for its operands is {room:,}",
            )
            return None
        self._decide("constants", node, True, "computed from constants")
        is_moved = isinstance(node.op, MOVES)  # the elements are those of the operand, so its name is used
        names = [node.operands[0].name if is_moved else value.name for value in node.outputs]
        if any(isinstance(entry, LazyTensor) for entry in known) and needed > FOLDED_BYTES:
            made = [
                builder.constant(
                    name,
                    LazyTensor(
                        value.type.shape, value.type.dtype.torch, partial(_computed, node.op, entries, index)
                    ),
                    is_heir=is_moved,
                )
                for index, (name, value) in enumerate(zip(names, node.outputs, strict=True))
            ]
        else:
            made = [
                self._constant(builder, name, _computed(node.op, entries, index), is_moved)
                for index, name in enumerate(names)
            ]
        self._folded[node.op, node.inputs] = tuple(made)
        return self._folded[node.op, node.inputs]

    def _constant(self, builder: Builder, name: str, tensor: Tensor, is_heir: bool) -> Value:
        """A folded constant, or an existing one with the same elements.

        Constants filled with one number are not merged: parameters of different layers often start like that.
        """
        if tensor.numel() < 2 or bool((tensor == tensor.flatten()[0]).all()):
            return builder.constant(name, tensor.clone(), is_heir=is_heir)
        key = content(tensor)
        if key not in self._by_content:
            self._by_content[key] = builder.constant(name, tensor.clone(), is_heir=is_heir)
        return self._by_content[key]

    def _one_of_equals(self, builder: Builder, value: Value) -> Value:
        """The first constant with the same integers or booleans; floats are not merged, because they may be trained."""
        is_number = value.type.dtype.is_floating or value.type.dtype.torch.is_complex
        if value.type.is_quantized or is_number or "constants" in self._disable:
            return value
        tensor = builder.tensor(value)
        if tensor is None:
            return value
        if value.name not in self._shared:
            self._shared[value.name] = self._by_content.setdefault(content(tensor), value)
        return self._shared[value.name]

    def _movement(self, builder: Builder, node: Node) -> Node:
        """The node on an earlier operand, if the movement before it can be omitted."""
        producer = builder.producer(node.operands[0]) if node.operands else None
        if "movement" in self._disable or producer is None:
            return node
        match node.op, producer.op:
            case Reshape(), Reshape():
                op: Op = node.op
            case Permute(order=second), Permute(order=first):
                op = Permute(tuple(first[i] for i in second))
            case _:
                return node
        self._decide("movement", node, True, f"joined with the {producer.op.name} before it")
        return replace(node, op=op, inputs=producer.inputs)

    def _before_batch_is_dropped(self, builder: Builder, node: Node) -> Value | None:
        moved = None if "movement" in self._disable else before_batch_is_dropped(builder, node)
        if moved is not None:
            self._decide("movement", node, True, "computed before the batch of one is dropped")
        return moved

    def _neutral(self, builder: Builder, node: Node) -> Value | None:
        same = None if "no_ops" in self._disable else neutral_operand(builder, node)
        if same is not None:
            self._decide("no_ops", node, True, f"equals {same}")
        return same

    def _duplicate(self, node: Node) -> tuple[Value, ...] | None:
        if "duplicates" in self._disable or (node.op, node.inputs) not in self._computed:
            return None
        results = self._computed[node.op, node.inputs]
        if tuple(v.type for v in results) != node.output_types:
            return None
        self._decide("duplicates", node, True, f"computed already as {results[0]}")
        return results

    def _norm(self, builder: Builder, node: Node) -> Value | None:
        norm = None if "norms" in self._disable else self._norms.replacement(builder, node)
        if norm is not None:
            made = builder.producer(norm)
            self._decide("norms", node, True, f"computed as {made.op.name if made else norm}")
        return norm

    def _decide(self, rule: str, node: Node, applied: bool, reason: str) -> None:
        self.decisions.append(Decision(rule, node.outputs[0].name, node.source, applied, reason))


def _computed(op: Op, entries: Sequence[Entry | None], index: int) -> Tensor:
    """One result of an operator on constants, which are read for this."""
    tensors = [entry.read() if isinstance(entry, LazyTensor) else entry for entry in entries]
    with torch.no_grad():
        results = op.reference(*tensors)
    result: Tensor = results[index] if isinstance(results, tuple) else results
    return result


def _is_random(op: Op) -> bool:
    return isinstance(op, TorchCall) and op.is_random
