"""Roles of values that may have 16 bits although layers read 8.

residual   sums that a norm reads, and their addends (`residual_streams`) gates      operands of nonlinear functions,
and the factors of a product of activations outputs    outputs, and operands of operators without an integer form

Layers, attention and matrix products read a rounded copy, for which 8 bits cost least: the errors of a row of
operands average out in the sum. For the values above each step is a separate error: in the tails of a function, in
small changes of a large sum, between the two largest of many logits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from ...ir import Graph, Value
from ...ir.ops.activation import Bounded, Elementwise
from ...ir.ops.base import Quantized
from ...ir.ops.binary import Mul
from ...ir.ops.softmax import Softmax
from ...specs.options import QuantizeOptions
from .residual_streams import residual_streams


def values_in_role(graph: Graph, role: str) -> frozenset[str]:
    """Names of the values of a float graph that have a role, one of `QuantizeOptions.roles`."""
    return _FINDERS[role](graph)


def wide_values(graph: Graph, options: QuantizeOptions) -> frozenset[str]:
    """Names of the values to which the options give 16 bits by their role."""
    chosen = [role for role in options.roles if getattr(options, role) == "int16"]
    return frozenset[str]().union(*(values_in_role(graph, role) for role in chosen))


def wide_ends(graph: Graph, options: QuantizeOptions) -> frozenset[str]:
    """Names of the inputs and outputs that have 16 bits as integers."""
    ends = frozenset(value.name for value in (*graph.inputs, *graph.outputs))
    return ends if options.activations == "int16" else ends & wide_values(graph, options)


def _gates(graph: Graph) -> frozenset[str]:
    return frozenset(value.name for value in _read_by_functions(graph))


def _read_by_functions(graph: Graph) -> Iterator[Value]:
    for node in graph.nodes:
        match node.op:
            case Bounded():
                continue
            case Elementwise() if not node.op.facts.homogeneous:  # others scale small values as they are
                yield node.operand("x")
            case Softmax():
                yield node.operand("x")
            case Mul() if not any(graph.is_constant(v) for v in node.operands):
                yield from node.operands


def _outputs(graph: Graph) -> frozenset[str]:
    ends = (v for node in graph.nodes if node.op.quantized is Quantized.NEVER for v in node.operands)
    return frozenset(value.name for value in (*graph.outputs, *ends))


_FINDERS: Mapping[str, Callable[[Graph], frozenset[str]]] = {
    "residual": residual_streams,
    "gates": _gates,
    "outputs": _outputs,
}
