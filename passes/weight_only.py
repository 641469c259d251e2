"""The pass `weight_only`: weights of linear layers and embeddings as integers, everything else as it is.

A weight becomes an integer constant and a `dequantize` that all its users read; a tied one stays tied. There is no
calibration: a group's scale is chosen from its weights alone.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..ir import Builder, DType, Graph, Node, Source, TensorType, Value, rewrite
from ..ir.ops.embedding import Embedding
from ..ir.ops.linear import Linear
from ..ir.ops.quantize import Dequantize
from ..specs.options import WeightOnlyOptions
from .base import Context, PassResult, register
from .errors import PassError
from .quantization.groupwise import nearest_group_size, quantize_groupwise
from .report import Cell, Decision, PassReport, Table

_BITS = {"float32": 32, "int8": 8, "int4": 4, "int2": 2}
_SCALE_BYTES = 4


@dataclass(frozen=True, slots=True)
class _Stored:
    """A weight, the bits that it is to have, and the first layer that reads it."""

    value: Value
    bits: int
    source: Source


@register(WeightOnlyOptions)
def weight_only(graph: Graph, options: WeightOnlyOptions, context: Context) -> PassResult:
    """Integer weights for a float graph; PassError where no linear layer or embedding has a constant one."""
    found = _weights(graph, options, context)
    if not found:
        raise PassError("there is no linear layer or embedding with a float32 weight of its own")
    decisions, rows, made = [], [], {}
    for name, stored in found.items():
        if stored.bits == 32:
            decisions.append(
                Decision("weight_only", name, stored.source, False, "the spec keeps it in float")
            )
            continue
        weight = graph.tensor(stored.value)
        size = nearest_group_size(weight.shape[1], options.group_size)
        group = None if size == weight.shape[1] else size
        integers, grid = quantize_groupwise(
            weight, bits=stored.bits, group_size=group, observer=options.observer
        )
        made[name] = (integers, grid)
        error = float((grid.dequantize(integers) - weight).norm() / weight.norm().clamp(min=1e-30))
        stored_bytes = TensorType(stored.value.type.shape).quantized(grid).storage_bytes
        size_after = stored_bytes + _SCALE_BYTES * len(grid.scale)
        rows.append((name, stored.bits, size, stored.value.type.storage_bytes, size_after, error))
        text = f"int{stored.bits}, a scale for {size} weights"
        decisions.append(Decision("weight_only", name, stored.source, True, text))
    real: dict[str, Value] = {}

    def visit(builder: Builder, node: Node, operands: tuple[Value | None, ...]) -> tuple[Value, ...] | None:
        for name in (v.name for v in node.operands if v.name in made and v.name not in real):
            integers, grid = made[name]
            builder.release(name)
            constant = builder.constant(name, integers, quantization=grid)
            real[name] = builder.add(Dequantize(), constant, source=found[name].source)
        kept = [old and real.get(old.name, new) for old, new in zip(node.inputs, operands, strict=True)]
        return builder.keep(node, kept)

    columns = ("weight", "bits", "group", "bytes_before", "bytes_after", "relative_error")
    tables = (Table("weights", columns, tuple(rows)), _summary(graph, rows))
    return PassResult(rewrite(graph, visit), PassReport("weight_only", tuple(decisions), tables))


def _weights(graph: Graph, options: WeightOnlyOptions, context: Context) -> dict[str, _Stored]:
    """The float weights of linear layers and embeddings, by name; the widest wish of a weight's layers holds."""
    found: dict[str, _Stored] = {}
    for node in graph.nodes:
        value = node.operand(1) if isinstance(node.op, Linear | Embedding) else None
        if value is None or not graph.is_constant(value) or value in graph.outputs:
            continue
        if value.type != TensorType(value.type.shape):
            continue
        bits = _bits(node, options, context)
        if value.name in found:
            found[value.name] = _Stored(value, max(bits, found[value.name].bits), found[value.name].source)
        else:
            found[value.name] = _Stored(value, bits, node.source)
    return found


def _bits(node: Node, options: WeightOnlyOptions, context: Context) -> int:
    module = node.source.module
    matching = [kind for pattern, kind in options.layers.items() if context.selects(pattern, module)]
    return _BITS[matching[-1] if matching else options.weights]


def _summary(graph: Graph, rows: list[tuple[str, int, int, int, int, float]]) -> Table:
    constants = sum(v.type.storage_bytes for v in graph.constants if v.type.dtype is DType.F32)
    before, after = sum(row[3] for row in rows), sum(row[4] for row in rows)
    figures: tuple[tuple[str, Cell], ...] = (
        ("weight_bytes_before", before),
        ("weight_bytes_after", after),
        ("constant_bytes_before", constants),
        ("constant_bytes_after", constants - before + after),
    )
    return Table("summary", ("figure", "value"), figures)
