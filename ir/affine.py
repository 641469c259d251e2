"""Affine functions of graph inputs: elementwise normalization at the start of a graph.

    value = input * scale + offset

A network that takes pixels often begins with `x / 255` or `(x - mean) / deviation`. Such a chain changes only the
reals that stored integers represent, so that an integer input needs no arithmetic.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .graph import Graph, Node
from .ops.base import Op, Quantized
from .ops.binary import Add, Div, Mul, Sub
from .ops.convert import Cast
from .ops.shape import Permute, Reshape
from .tensor_type import Value


@dataclass(frozen=True)
class Affine:
    """A value of the graph as an affine function of an input; `nodes` is the chain from the input to the value."""

    input: Value
    scale: float = 1.0
    offset: float = 0.0
    nodes: tuple[Node, ...] = ()


def affine_inputs(graph: Graph) -> Mapping[str, Affine]:
    """The chain of each input that has one, by the name of its last value; no other node reads the values before it."""
    return {
        found.nodes[-1].output.name: found
        for value in graph.inputs
        if (found := _followed(graph, value)).nodes
    }


def _followed(graph: Graph, value: Value) -> Affine:
    found, at = Affine(value), value
    while graph.use_count(at) == 1 and graph.users.get(at.name):
        (node,) = graph.users[at.name]
        longer = _extended(graph, found, node, at)
        if longer is None:
            break
        found, at = longer, node.output
    while found.nodes and is_movement(
        found.nodes[-1].op
    ):  # movement computes nothing: the chain may end before it
        found = Affine(found.input, found.scale, found.offset, found.nodes[:-1])
    return found


def is_movement(op: Op) -> bool:
    """True if the operator only moves the elements of its single operand."""
    return op.quantized is Quantized.MOVE and isinstance(op, Permute | Reshape)


def _extended(graph: Graph, before: Affine, node: Node, value: Value) -> Affine | None:
    nodes = (*before.nodes, node)
    if is_movement(node.op):
        return Affine(before.input, before.scale, before.offset, nodes)
    if isinstance(node.op, Cast):
        widens = node.output.type.dtype.is_floating
        return Affine(before.input, before.scale, before.offset, nodes) if widens else None
    if not isinstance(node.op, Add | Sub | Mul | Div) or node.op.clamp is not None:
        return None
    number, is_first = _number(graph, node), node.inputs[0] == value
    if number is None or node.output.type.shape != value.type.shape or not node.output.type.dtype.is_floating:
        return None
    scale, offset = before.scale, before.offset
    if isinstance(node.op, Add):
        return Affine(before.input, scale, offset + number, nodes)
    if isinstance(node.op, Sub):
        sign = 1.0 if is_first else -1.0
        return Affine(before.input, sign * scale, sign * (offset - number), nodes)
    if isinstance(node.op, Mul) and number:
        return Affine(before.input, scale * number, offset * number, nodes)
    if isinstance(node.op, Div) and is_first and number:
        return Affine(before.input, scale / number, offset / number, nodes)
    return None


def _number(graph: Graph, node: Node) -> float | None:
    """The constant operand of a node if it is a single number."""
    constants = [v for v in node.operands if graph.is_constant(v)]
    if len(constants) != 1 or constants[0].type.numel != 1 or constants[0].type.is_quantized:
        return None
    return float(graph.tensor(constants[0]).reshape(-1)[0])
