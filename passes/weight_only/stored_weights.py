"""Weights that `weight_only` stores as integers: operands of products and embeddings, and reasons why others stay
float.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from ...ir import DType, Graph, Node, Source, Value
from ...ir.element_type import all_finite
from ...ir.ops.call import TorchCall
from ...ir.ops.embedding import Embedding
from ...ir.ops.linear import Linear
from ...ir.ops.matmul import GroupedMatMul, MatMul
from ...ir.ops.shape import Copy, Expand, Permute, Reshape
from ...ir.ops.slicing import Select, Slice, Split
from ...specs.options import WeightOnlyOptions
from ..base import Context
from ..report import Decision
from .number_formats import FORMATS

FLOAT_BITS, OPEN_BITS = 32, 0
_BITS = {"float32": FLOAT_BITS, "int8": 8, "int6": 6, "int5": 5, "int4": 4, "int3": 3, "int2": 2}
_BITS |= {name: format.bits for name, format in FORMATS.items()}
_MOVES = (Copy, Expand, Permute, Reshape, Select, Slice, Split)
_PRODUCTS = {"einsum", "bmm", "baddbmm", "addmm", "addbmm", "mm", "matmul", "_grouped_mm"}  # aten calls
_ELEMENTS = (DType.F32, DType.F16, DType.BF16)


@dataclass(frozen=True, slots=True)
class StoredWeight:
    """A weight, its bits (OPEN_BITS: chosen by the budget), and the first layer that reads it.

    `format` is the number format of levels in a table; None for integers.
    """

    value: Value
    bits: int
    source: Source
    format: str | None = None


def find_weights(graph: Graph, options: WeightOnlyOptions, context: Context) -> dict[str, StoredWeight]:
    """The float weights of products and embeddings, by name; a shared weight has the widest type requested by its
    layers.
    """
    moved = _moved_constants(graph)
    found: dict[str, StoredWeight] = {}
    for node in graph.nodes:
        for value in (moved[v.name] for v in _factors(node) if v.name in moved):
            if value.name not in found and _reason(graph, value) is not None:
                continue
            wanted = _type(node, options, context)
            bits = OPEN_BITS if wanted is None else _BITS[wanted]
            known = found.get(value.name)
            if known is None or bits > known.bits:
                source = node.source if known is None else known.source
                found[value.name] = StoredWeight(value, bits, source, wanted if wanted in FORMATS else None)
    return found


def _factors(node: Node) -> tuple[Value, ...]:
    """The operands of a node that can be weights of a product, or the table of an embedding."""
    if isinstance(node.op, Linear | Embedding):
        return node.operands[1:2]
    if isinstance(node.op, MatMul | GroupedMatMul):
        return node.operands[:2]
    is_product = isinstance(node.op, TorchCall) and node.op.target.split(".")[1] in _PRODUCTS
    return node.operands if is_product else ()


def _moved_constants(graph: Graph) -> dict[str, Value]:
    """The constant whose elements each value has, by the value's name: the value is that constant, or moved from it."""
    moved = {value.name: value for value in graph.constants}
    for node in graph.nodes:
        if isinstance(node.op, _MOVES) and node.operands[0].name in moved:
            moved |= {value.name: moved[node.operands[0].name] for value in node.outputs}
    return moved


def _reason(graph: Graph, value: Value) -> str | None:
    """Reason why a constant cannot be stored as integers; None if it can."""
    if value.type.is_quantized or value.type.dtype not in _ELEMENTS:
        return f"its elements are {value.type.dtype.value}"
    if value.type.rank < 2 or not prod(value.type.shape):
        return "it is not a matrix"
    if value in graph.outputs:
        return "it is a result of the model"
    return None if all_finite(graph.tensor(value)) else "some of its elements are not finite"


def kept_decisions(graph: Graph, found: Mapping[str, StoredWeight]) -> list[Decision]:
    """A decision for each float matrix that stays float, with its bytes and the reason."""
    decisions = []
    for value in graph.constants:
        if value.name in found or value.type.rank < 2 or not value.type.dtype.is_floating:
            continue
        readers = graph.users.get(value.name, ())
        ops = ", ".join(dict.fromkeys(node.op.name for node in readers)) or "nothing"
        reason = _reason(graph, value) or f"{ops} reads it, which is not a matrix product or embedding"
        text = f"stays float, {value.type.storage_bytes:,} bytes: {reason}"
        source = readers[0].source if readers else Source()
        decisions.append(Decision("weight_only", value.name, source, False, text))
    return decisions


def _type(node: Node, options: WeightOnlyOptions, context: Context) -> str | None:
    """The type of the weights of a layer; None if the budget decides."""
    module = node.source.module
    matching = [kind for pattern, kind in options.layers.items() if context.selects(pattern, module)]
    if matching:
        return matching[-1]
    return options.weights if options.budget is None else None
