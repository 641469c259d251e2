"""Attention written as separate operators, replaced by the attention operator, which computes on integers row by row.

    matmul(softmax(a * matmul(q, permute(k)) + b), v)  =  attention(q, k, v, bias=b, scale=a)

Factors, addends and reshapes of the batch may be in any order; a mask of the softmax becomes the mask of the
attention. Scores with other readers, and batches that are broadcast and reshaped, are left unchanged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

from ...ir import Builder, Graph, Node, Value, rewrite
from ...ir.ops.attention import Attention
from ...ir.ops.binary import Add, Div, Mul
from ...ir.ops.matmul import MatMul
from ...ir.ops.shape import Copy, Expand, Permute, Reshape
from ...ir.ops.softmax import Softmax
from ..masks import is_causal_mask
from ..report import Decision

_Operands = tuple[Value | None, ...]


@dataclass(frozen=True)
class _Scores:
    """The product of queries and keys that a value is computed from: value = factor * product + sum of addends.

    Each addend has the shape of the scores that it is added to.
    """

    product: Node
    factor: float = 1.0
    addends: tuple[tuple[Value, tuple[int, ...]], ...] = ()


def fuse_written_attention(graph: Graph) -> tuple[Graph, tuple[Decision, ...]]:
    """The graph with attention operators in place of written attentions, and the decisions."""
    fuser = _Fuser(graph)
    return rewrite(graph, fuser.visit), tuple(fuser.decisions)


class _Fuser:
    def __init__(self, graph: Graph) -> None:
        outputs = {v.name for v in graph.outputs}
        self._read_once = {
            name for name, users in graph.users.items() if len(users) == 1 and name not in outputs
        }
        self.decisions: list[Decision] = []

    def visit(self, builder: Builder, node: Node, operands: _Operands) -> Value | None:
        if not isinstance(node.op, MatMul):
            return None
        p, v = operands
        assert p is not None and v is not None
        weights = self._made_by(builder, p, Softmax)
        if weights is None or not isinstance(weights.op, Softmax):
            return None
        x = weights.operand("x")
        found = self._scores(builder, x) if weights.op.axis == x.type.rank - 1 else None
        if found is None or x.type.rank < 2:
            return None
        q, transposed = found.product.operands
        ends = (q.type.shape[-1:], transposed.type.shape[-1:], v.type.shape[-1:])
        if min(q.type.rank, transposed.type.rank, v.type.rank) < 2:
            return None
        read = [q, _swapped(builder, transposed, node), v]
        batch, (length, keys) = x.type.shape[:-2], x.type.shape[-2:]
        shapes = [
            (*batch, n, *end)
            for n, end in zip((length, keys, keys), (ends[0], ends[0], ends[2]), strict=True)
        ]
        if any(value.type.shape != shape for value, shape in zip(read, shapes, strict=True)):
            if any(value.type.numel != prod(shape) for value, shape in zip(read, shapes, strict=True)):
                return None
            read = [_reshaped(builder, value, shape, node) for value, shape in zip(read, shapes, strict=True)]
        mask = weights.optional("keep")
        kept = None if mask is None else builder.tensor(mask)
        is_causal = kept is not None and is_causal_mask(kept, length, keys)
        mask = None if is_causal else mask
        bias = _sum(builder, found.addends, x.type.shape, node)
        op = Attention(is_causal, found.factor, empty="zero" if mask is None else weights.op.empty)
        name, result = node.output.name, (*batch, length, *ends[2])
        self.decisions.append(
            Decision("attention", name, node.source, True, "products and softmax are one attention")
        )
        if result == node.output.type.shape:
            return builder.add(op, *read, mask, bias, name=name, source=node.source)
        made = builder.add(op, *read, mask, bias, source=node.source)
        return builder.add(Reshape(node.output.type.shape), made, name=name, source=node.source)

    def _made_by(self, builder: Builder, value: Value, *ops: type) -> Node | None:
        """The node of such an operator that produces a value with no other reader, through reshapes of the batch."""
        while value.name in self._read_once:
            node = builder.producer(value)
            if node is None:
                return None
            if isinstance(node.op, ops):
                return node
            if not _moves_batch(node):
                return None
            value = node.operand("x")
        return None

    def _scores(self, builder: Builder, value: Value) -> _Scores | None:
        node = self._made_by(builder, value, MatMul, Mul, Div, Add)
        if node is None:
            return None
        if isinstance(node.op, MatMul):
            return _Scores(node)
        if not isinstance(node.op, Mul | Div | Add) or node.op.clamp is not None:
            return None
        a, b = node.operands
        for scores, other in ((a, b), (b, a)) if not isinstance(node.op, Div) else ((a, b),):
            found = self._scores(builder, scores)
            if found is None:
                continue
            if isinstance(node.op, Add):
                return replace(found, addends=(*found.addends, (other, node.output.type.shape)))
            factor = _number(builder, other)
            if factor is None or factor <= 0 or found.addends:
                return None
            return replace(found, factor=found.factor * (1 / factor if isinstance(node.op, Div) else factor))
        return None


def _sum(
    builder: Builder, addends: Sequence[tuple[Value, tuple[int, ...]]], shape: tuple[int, ...], node: Node
) -> Value | None:
    """The sum of addends in the form in which it is added to scores of a shape."""
    total: Value | None = None
    for addend, own in addends:
        term = addend
        if own != shape:  # reshaped in between, and the addend with it
            if addend.type.shape != own:
                term = builder.add(Expand(own), addend, source=node.source)
            term = builder.add(Reshape(shape), term, source=node.source)
        total = term if total is None else builder.add(Add(), total, term, source=node.source)
    return total


def _moves_batch(node: Node) -> bool:
    """True if a node only changes the shape of the dimensions before the last two."""
    if isinstance(node.op, Copy):
        return True
    return isinstance(node.op, Reshape) and node.output.type.shape[-2:] == node.operand("x").type.shape[-2:]


def _number(builder: Builder, value: Value) -> float | None:
    """The number that fills a constant."""
    tensor = builder.tensor(value)
    return None if tensor is None or tensor.numel() != 1 else float(tensor)


def _swapped(builder: Builder, value: Value, node: Node) -> Value:
    """A value with its last two dimensions exchanged; for a permutation that exchanges them, its operand."""
    order = list(range(value.type.rank))
    order[-2:] = order[:-3:-1]
    maker = builder.producer(value)
    if maker is None or not isinstance(maker.op, Permute):
        return builder.add(Permute(tuple(order)), value, source=node.source)
    own = tuple(maker.op.order[axis] for axis in order)
    x = maker.operand("x")
    return x if own == tuple(range(len(own))) else builder.add(Permute(own), x, source=maker.source)


def _reshaped(builder: Builder, value: Value, shape: tuple[int, ...], node: Node) -> Value:
    return value if value.type.shape == shape else builder.add(Reshape(shape), value, source=node.source)
