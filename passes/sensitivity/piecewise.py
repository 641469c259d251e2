"""Layers whose Gauss-Newton block equals the Hessian: outputs piecewise linear in the weights."""

from __future__ import annotations

from ...ir import Graph, Node, Op
from ...ir.ops.activation import Clamp, LeakyRelu, Relu
from ...ir.ops.base import Quantized
from ...ir.ops.binary import Add, Div, Maximum, Minimum, Mul, Sub
from ...ir.ops.elementary import Abs, Neg
from ...ir.ops.matmul import MatMul
from ...ir.ops.norm import BatchNorm
from ...ir.ops.pool import AdaptiveAvgPool, AvgPool
from ...ir.ops.prelu import Prelu
from ...ir.ops.reduce import LinearReduction
from ...ir.ops.resize import ResizeLinear
from ..layers import is_layer
from .blocks import Block

_PIECEWISE_LINEAR: tuple[type[Op], ...] = (
    Abs,
    AdaptiveAvgPool,
    Add,
    AvgPool,
    BatchNorm,
    Clamp,
    LeakyRelu,
    LinearReduction,
    Maximum,
    Minimum,
    Neg,
    Relu,
    ResizeLinear,
    Sub,
)


def is_piecewise_linear(graph: Graph, block: Block) -> bool:
    """True when only piecewise linear operators lie behind the block, and none of its own weights."""
    reached: set[str] = set()
    starts = {node.outputs[0].name for node in block.nodes}
    for node in graph.nodes:
        behind = [i for i, v in enumerate(node.inputs) if v is not None and v.name in reached]
        if behind and (node.outputs[0].name in starts or not _is_linear_in(graph, node, behind)):
            return False  # a second weight of the block behind the first: the outputs have their product
        if behind or node.outputs[0].name in starts:
            reached.update(v.name for v in node.outputs)
    return True


def _is_linear_in(graph: Graph, node: Node, operands: list[int]) -> bool:
    if node.op.quantized is Quantized.MOVE:
        return True
    if is_layer(node.op):
        return all(index in (0, 3) for index in operands)
    if isinstance(node.op, Prelu):
        return operands == [0]
    if isinstance(node.op, _PIECEWISE_LINEAR):
        return True
    if isinstance(node.op, Mul | MatMul):
        return len(operands) == 1
    return isinstance(node.op, Div) and operands == [0]
