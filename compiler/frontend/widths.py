"""Conversion of floats of other widths to float32, the only float type in C.

float64 becomes float32. A float16 or bfloat16 result is rounded after each operator by `round_to`: torch also
computes such an operator in float32, though it may round numbers that are not tensors earlier.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from ...ir import Builder, DType, Graph, Node, Op, Source, Value, rewrite
from ...ir.ops.base import Quantized
from ...ir.ops.call import TorchCall
from ...ir.ops.convert import Cast
from ...ir.ops.elementary import RoundTo

_NARROW = (DType.F16, DType.BF16)
_OTHER = (*_NARROW, DType.F64)


def in_single_precision(graph: Graph) -> Graph:
    """The graph with all computed values in float32; unchanged if it already takes floats of other types."""
    computed = any(_is_other(value) for value in (*graph.results, *graph.constants))
    if not computed or any(_is_other(value) for value in graph.inputs):
        return graph

    def visit(builder: Builder, node: Node, operands: tuple[Value | None, ...]) -> tuple[Value, ...] | None:
        if not any(_is_other(value) for value in (*node.operands, *node.outputs)):
            return None
        given = [v and _single(builder, v, source=node.source) for v in operands]
        return _computed(builder, node, given)

    return rewrite(graph, visit)


def width_notes(before: Graph, after: Graph) -> Iterator[str]:
    """Notes for each other width in which `before` computes and `after`, its form for C, does not."""
    left = {value.type.dtype for value in after.results}
    for dtype in _OTHER:
        nodes = [node for node in before.nodes if any(v.type.dtype is dtype for v in node.outputs)]
        if not nodes or dtype in left:
            continue
        first, plural = nodes[0], "s" if len(nodes) > 1 else ""
        operators = f"{len(nodes)} operator{plural}, first {first.op.name} ({first.source})"
        if dtype is DType.F64:
            yield (
                f"float64 is computed as float32: {operators}; values keep 24 bits instead of 53: scale or shift "
                "values that need more outside of the model"
            )
        else:
            yield (
                f"{dtype.torch} is computed in float32 and rounded after each operator: {operators}; `dtype: "
                "float32` under `model` avoids the rounding"
            )


def _is_other(value: Value) -> bool:
    return value.type.dtype in _OTHER and not value.type.is_quantized


def _single(builder: Builder, value: Value, *, source: Source) -> Value:
    """An operand that no node has converted to float32 yet: a constant, or the result of a call with a fixed type."""
    tensor = builder.tensor(value)
    if not _is_other(value):
        return value
    if tensor is not None:
        return builder.constant(value.name, tensor.float())
    return builder.add(Cast(DType.F32.value), value, source=source)


def _computed(builder: Builder, node: Node, operands: Sequence[Value | None]) -> tuple[Value, ...]:
    op, first = _of_single(node.op), operands[0]
    if isinstance(op, Cast) and first is not None and DType(op.dtype) is first.type.dtype:
        results: tuple[Value, ...] = (first,)
    else:
        types = op.infer(*(v and v.type for v in operands))
        results = builder.append(op, operands, types, source=node.source)
    if op.quantized is Quantized.MOVE:
        return results
    return tuple(
        builder.add(RoundTo(old.type.dtype.value), new, source=node.source)
        if old.type.dtype in _NARROW
        else new
        for old, new in zip(node.outputs, results, strict=True)
    )


def _of_single(op: Op) -> Op:
    """The operator with float32 in place of the types in its attributes."""
    if isinstance(op, Cast) and DType(op.dtype) in _OTHER:
        return Cast(DType.F32.value)
    if isinstance(op, TorchCall):
        call = op.call
        for dtype in _OTHER:
            call = call.replace(str(dtype.torch), str(DType.F32.torch))
        return replace(op, call=call)
    return op
