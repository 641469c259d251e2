"""The form of graphs whose weights are integers and whose activations are float.

The variable of a dequantized constant holds the submodule that keeps its integers; linear layers and embeddings ask
it for what they need, and everything else takes its reals.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from types import ModuleType

import torch
from torch import Tensor

from ...ir import Graph, LazyTensor, Node, Value
from ...ir.ops.embedding import Embedding
from ...ir.ops.linear import Linear
from ...ir.ops.quantize import Dequantize
from . import prelude_weight_only
from .forward import clamped
from .layers import LayerKind, construct, layer_kind
from .names import Path
from .style import FloatStyle, Strings


def is_weight_only(graph: Graph) -> bool:
    """Whether all quantized values of a graph are constants that only `dequantize` nodes read."""
    quantized = [v for node in graph.nodes for v in (*node.operands, *node.outputs) if v.type.is_quantized]
    readers = (user for value in quantized for user in graph.users[value.name])
    return (
        bool(quantized)
        and all(graph.is_constant(value) for value in quantized)
        and all(isinstance(user.op, Dequantize) for user in readers)
    )


class WeightOnlyStyle(FloatStyle):
    """Variables hold reals, and for integer weights the submodules that keep them."""

    prelude: ModuleType | None = prelude_weight_only

    def __init__(self, graph: Graph) -> None:
        self._held = {node.output.name for node in graph.nodes if _holds_matrix(node)}

    def kind(self, node: Node) -> LayerKind | None:
        """A submodule for an integer weight; linear layers and embeddings that read one have none of their own."""
        if node.outputs[0].name in self._held:
            return _weight_kind(node)
        return None if self._reads_held(node) else layer_kind(node)

    def read(self, node: Node, operand: int, variable: str) -> str:
        """The variable, or the reals of the weight that it holds."""
        value = node.inputs[operand]
        assert value is not None
        return f"{variable}.reals()" if value.name in self._held else variable

    def leave(self, value: Value, variable: str) -> str:
        """Like `read`, for an output of the graph."""
        return f"{variable}.reals()" if value.name in self._held else variable

    def whole(self, node: Node, operands: Strings, names: Mapping[Path, str]) -> str | None:
        """Linear layers and embeddings of integer weights."""
        if not self._reads_held(node):
            return None
        op, weight = node.op, node.op.operand(operands, "weight")
        if isinstance(op, Embedding):
            return f"{weight}.rows({op.operand(operands, 'indices')})"
        assert isinstance(op, Linear)
        read = (op.operand(operands, "x"), op.optional(operands, "bias"))
        text = f"{weight}.linear({', '.join(t for t in read if t is not None)})"
        residual = op.optional(operands, "residual")
        return clamped(text if residual is None else f"{text} + {residual}", op.clamp)

    def _reads_held(self, node: Node) -> bool:
        """True for a linear layer or embedding whose weight, and nothing else, is a held one."""
        if not isinstance(node.op, Linear | Embedding):
            return False
        held = [value for value in node.operands if value.name in self._held]
        return held == [node.operand("weight")]


def pack_bits(integers: Tensor, bits: int) -> Tensor:
    """Signed integers below 8 bits as bytes, several along the last dimension in each, the lowest bits first."""
    if bits == 8:
        return integers
    parts = 8 // bits
    grouped = integers.to(torch.int32).reshape(*integers.shape[:-1], -1, parts) & ((1 << bits) - 1)
    shifts = torch.arange(parts, dtype=torch.int32) * bits
    return (grouped << shifts).sum(-1).to(torch.uint8)


def _holds_matrix(node: Node) -> bool:
    """True for a `dequantize` of constant matrices that `IntegerWeight` can keep."""
    if not isinstance(node.op, Dequantize):
        return False
    type = node.operand("x").type
    grid = type.quantization
    assert grid is not None
    if type.rank < 2 or grid.bits > 8 or not grid.is_symmetric or grid.axis != 0 or grid.levels is not None:
        return False
    columns = type.shape[-1]
    is_by_row = columns % grid.group_size == 0 if grid.group_size is not None else type.rank == 2
    return is_by_row and columns * grid.bits % 8 == 0


def _weight_kind(node: Node) -> LayerKind:
    type = node.operand("x").type
    assert type.quantization is not None
    *rows, columns = type.shape
    scale = type.quantization.scale
    groups = len(scale) // prod(rows)
    scales = LazyTensor((*rows, groups), torch.float32, lambda: scale.tensor(torch.float32).view(*rows, -1))
    size = columns // groups
    return LayerKind(
        construct("IntegerWeight", *type.shape, bits=type.quantization.bits, group_size=size),
        {"integers": "x"},
        state={"scale": scales},
        is_held=True,
    )
