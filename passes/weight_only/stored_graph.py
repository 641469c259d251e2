"""A float graph with integers in place of weights: a constant and a `dequantize` for all its users."""

from __future__ import annotations

from collections.abc import Mapping

from ...ir import Builder, DType, Graph, Node, Value, rewrite
from ...ir.ops.convert import Cast
from ...ir.ops.linear import Linear
from ...ir.ops.quantize import Dequantize, FakeQuantizePerToken
from .rounding_methods import Coded
from .stored_weights import StoredWeight


def store(
    graph: Graph, found: Mapping[str, StoredWeight], coded: Mapping[str, Coded], *, rounds_inputs: bool
) -> Graph:
    """The graph with these codes; with `rounds_inputs`, inputs of layers with an integer kernel are rounded to int8."""
    real: dict[str, Value] = {}
    rounded: dict[str, Value] = {}

    def visit(builder: Builder, node: Node, operands: tuple[Value | None, ...]) -> tuple[Value, ...] | None:
        for name in (v.name for v in node.operands if v.name in coded and v.name not in real):
            builder.release(name)
            constant = builder.constant(name, coded[name].integers, quantization=coded[name].encoding)
            source, dtype = found[name].source, found[name].value.type.dtype
            real[name] = builder.add(Dequantize(), constant, source=source)
            if dtype is not DType.F32:
                real[name] = builder.add(Cast(dtype.value), real[name], source=source)
        kept = [old and real.get(old.name, new) for old, new in zip(node.inputs, operands, strict=True)]
        if rounds_inputs and isinstance(node.op, Linear) and _has_kernel(coded, node.operand("weight")):
            x = node.op.operand(kept, "x")
            if x.name not in rounded:
                rounded[x.name] = builder.add(FakeQuantizePerToken(), x, source=node.source)
            kept[node.op.operand_names.index("x")] = rounded[x.name]
        return builder.keep(node, kept)

    return rewrite(graph, visit)


def _has_kernel(coded: Mapping[str, Coded], weight: Value) -> bool:
    """True if products with a weight have an integer kernel: other products gain nothing from integer inputs."""
    encoding = coded[weight.name].encoding if weight.name in coded else None
    return encoding is not None and encoding.levels is None and encoding.is_symmetric
