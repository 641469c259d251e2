"""Rows of a cache that are selected by comparison become rows that are replaced by index, so that no other row is
written.

    where(arange(n) == i, rows, cache)  ->  index_copy(cache, i, rows)

A negative index, for which the comparison never holds, is moved beyond the end, where the kernel of `index_copy` skips
it.
"""

from __future__ import annotations

import torch

from ....ir import Builder, DType, Graph, Node, TensorType, Value, rewrite
from ....ir.ops.compare import Compare, Where
from ....ir.ops.put import IndexCopy
from ....ir.ops.shape import Expand, Reshape

_INDICES = (DType.I32, DType.I64)


def replace_rows_by_index(graph: Graph) -> Graph:
    """The graph with `index_copy` in place of each selection of one row by its index."""
    indices: dict[tuple[str, int], Value] = {}

    def visit(builder: Builder, node: Node, operands: tuple[Value | None, ...]) -> Value | None:
        if not isinstance(node.op, Where):
            return None
        condition, rows, cache = operands
        assert condition is not None and rows is not None and cache is not None
        result, found = node.output.type, _chosen_row(builder, condition, node.output.type)
        if found is None or cache.type != result:
            return None
        axis, number = found
        shape = (*result.shape[:axis], 1, *result.shape[axis + 1 :])
        if rows.type.rank >= result.rank - axis and rows.type.shape[axis - result.rank] != 1:
            return None
        key = (number.name, result.shape[axis])
        if key not in indices:
            indices[key] = _index(builder, number, result.shape[axis], node)
        if rows.type.shape != shape:
            rows = builder.add(Expand(shape), rows, source=node.source)
        return builder.add(IndexCopy(axis), cache, indices[key], rows, source=node.source)

    return rewrite(graph, visit) if any(isinstance(node.op, Where) for node in graph.nodes) else graph


def _chosen_row(builder: Builder, condition: Value, result: TensorType) -> tuple[int, Value] | None:
    """The axis along which a condition is true at one index, and the index; None for another condition."""
    shape = (1,) * (result.rank - condition.type.rank) + condition.type.shape
    axes = [axis for axis, size in enumerate(shape) if size != 1]
    if len(axes) != 1 or shape[axes[0]] != result.shape[axes[0]]:
        return None
    while (made := builder.producer(condition)) is not None and isinstance(made.op, Reshape):
        condition = made.operand("x")
    if made is None or not isinstance(made.op, Compare) or made.op.relation != "eq":
        return None
    for counted, number in (made.operands, made.operands[::-1]):
        if (
            number.type.numel == 1
            and number.type.dtype in _INDICES
            and _counts(builder, counted, shape[axes[0]])
        ):
            return axes[0], number
    return None


def _counts(builder: Builder, value: Value, size: int) -> bool:
    """True if a value is the constant 0, 1, ... size - 1, in order."""
    if value.type.numel != size:
        return False
    numbers = builder.tensor(value)
    return numbers is not None and torch.equal(numbers.flatten().long(), torch.arange(size))


def _index(builder: Builder, number: Value, size: int, node: Node) -> Value:
    """The number as an index [1]; beyond the end if it is negative."""
    dtype, source = number.type.dtype.torch, node.source
    if number.type.shape != (1,):
        number = builder.add(Reshape((1,)), number, source=source)
    zero, end = (
        builder.constant(name, torch.tensor([value], dtype=dtype))
        for name, value in (("zero", 0), ("end", size))
    )
    return builder.add(
        Where(), builder.add(Compare("lt"), number, zero, source=source), end, number, source=source
    )
