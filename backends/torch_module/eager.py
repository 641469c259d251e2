"""The eager form: torch's int8 kernels, called one by one, with residual, activation and requantization in them.

Elementwise functions are tables that equal the integer semantics byte for byte. Operators without an int8 kernel run
in float between a dequantize and a quantize, as in the QDQ form.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from types import MappingProxyType, ModuleType

import torch
from torch import Tensor

from ...ir import Entry, Graph, Node, Value
from ...ir.ops.accumulate import Clamp, clamp_bounds
from ...ir.ops.activation import Elementwise
from ...ir.ops.base import IntegerCall
from ...ir.ops.conv import Conv
from ...ir.ops.embedding import Embedding
from ...ir.ops.linear import Linear
from ...ir.ops.pad import Pad
from ...ir.ops.pool import MaxPool
from ...ir.ops.quantize import Requantize
from ...ir.ops.spatial import pairs
from . import prelude_eager, prelude_embedding
from .layers import (
    LayerKind,
    channel_scales,
    integer_embedding,
    layer_kind,
    layer_parameters,
    symmetric_padding,
)
from .literal import Argument, literal
from .names import Path
from .qdq import QdqStyle, carried_zero_point, grid, is_byte
from .style import Strings


class EagerStyle(QdqStyle):
    """Variables hold the same integers as in the QDQ form."""

    preludes: tuple[ModuleType, ...] = (prelude_embedding, prelude_eager)

    def __init__(self, graph: Graph) -> None:
        super().__init__(graph)
        tables = {node.output.name: _table(node) for node in graph.nodes if _is_table(node)}
        self._digests = {name: sha256(bytes(table.tolist())).digest() for name, table in tables.items()}
        self._paths: dict[bytes, Path] = {}
        for digest in self._digests.values():  # no name of the user has a component with a dot
            self._paths.setdefault(digest, (f"table.{len(self._paths)}",))
        self.buffers: Mapping[Path, Tensor] = {
            self._paths[self._digests[name]]: table for name, table in tables.items()
        }

    def kind(self, node: Node) -> LayerKind | None:
        """An int8 kernel if torch has one, else the operator's own layer on reals."""
        if isinstance(node.op, Conv | Linear) and is_int8(node):
            return int8_layer(node)
        if isinstance(node.op, Embedding) and (embedding := integer_embedding(node)) is not None:
            return embedding
        return None if self._is_whole(node) else layer_kind(node)

    def read(self, node: Node, operand: int, variable: str) -> str:
        """The dequantized value."""
        value = node.inputs[operand]
        assert value is not None
        if not value.type.is_quantized or self._graph.is_constant(value):
            return variable
        return f"dequantize({variable}, {grid(value)})"

    def whole(self, node: Node, operands: Strings, names: Mapping[Path, str]) -> str | None:
        """Tables, pools and padding on bytes."""
        if _is_table(node):
            table = names[self._paths[self._digests[node.output.name]]]
            return f"lookup({table}, {node.op.operand(operands, 'x')})"
        if not _is_moved_byte(node):
            return None
        x = node.op.operand(operands, "x")
        if isinstance(node.op, MaxPool):
            op, (padding, _) = node.op, symmetric_padding(node.op.padding)
            sizes = ", ".join(literal(list(size)) for size in (op.kernel, op.stride, padding, op.dilation))
            return f"torch.ops.quantized.max_pool2d({x}, {sizes}, {op.ceil})"
        assert isinstance(node.op, Pad)
        flat = tuple(n for pair in reversed(pairs(node.op.padding)) for n in pair)
        return f"F.pad({x}, {literal(flat)}, value={node.op.fill(node.output.type) + 128})"

    def _is_whole(self, node: Node) -> bool:
        return _is_table(node) or _is_moved_byte(node)


def _is_moved_byte(node: Node) -> bool:
    """True for data movement with a kernel on bytes."""
    if not node.outputs or not is_byte(node.outputs[0]):
        return False
    if isinstance(node.op, MaxPool):
        return len(node.op.kernel) == 2 and not symmetric_padding(node.op.padding)[1]
    return isinstance(node.op, Pad) and node.op.mode == "constant"


def _is_table(node: Node) -> bool:
    """True for an elementwise function from bytes to bytes."""
    return (
        isinstance(node.op, Elementwise | Requantize) and is_byte(node.operand("x")) and is_byte(node.output)
    )


def _table(node: Node) -> Tensor:
    """The carried result for each carried byte."""
    assert isinstance(node.op, Elementwise | Requantize)
    quantization = node.operand("x").type.quantization
    assert quantization is not None
    integers = torch.arange(-128, 128).clamp(quantization.qmin, quantization.qmax)
    results: Tensor = node.op.integer(
        IntegerCall(node.op, (integers,), node.operand_types, node.output_types)
    )
    return (results + 128).to(torch.uint8)


def is_int8(node: Node) -> bool:
    """True if operand, residual and result are bytes and the weight has a scale for each output channel."""
    x, weight, residual = node.operand("x"), node.operand("weight"), node.optional("residual")
    bytes_only = all(value is None or is_byte(value) for value in (x, residual, node.output))
    rank = node.op.rank if isinstance(node.op, Conv) else 2
    return bytes_only and rank <= 2 and channel_scales(weight.type) is not None


def int8_layer(
    node: Node,
    prefix: str = "Int8",
    *,
    more: Mapping[str, Argument] = MappingProxyType({}),
    state: Mapping[str, Entry] = MappingProxyType({}),
    integers: tuple[str, ...] = ("weight",),
) -> LayerKind:
    """The submodule of a convolution or linear layer, such as `Int8Conv`, by its prefix; with `more` arguments."""
    x, weight, residual = node.operand("x"), node.operand("weight"), node.optional("residual")
    assert isinstance(node.op, Conv | Linear)
    arguments: dict[str, Argument] = {}
    if isinstance(node.op, Conv):
        arguments = {"stride": node.op.stride, "padding": node.op.padding, "dilation": node.op.dilation}
        arguments |= {"groups": node.op.groups} if node.op.groups > 1 else {}
    arguments |= {"x_grid": parameters(x), "y_grid": parameters(node.output)}
    arguments |= {} if residual is None else {"residual_grid": parameters(residual)}
    clamp = _clamp(node.op.clamp, node.output)
    arguments |= {} if clamp is None else {"clamp": clamp}
    arguments |= {"bias": False} if node.optional("bias") is None else {}
    name = f"{prefix}Conv" if isinstance(node.op, Conv) else f"{prefix}Linear"
    given = "".join(f", {key}={literal(value)}" for key, value in {**arguments, **more}.items())
    scales = channel_scales(weight.type)
    assert scales is not None
    return LayerKind(
        f"{name}({literal(weight.type.shape)}{given})",
        layer_parameters(node),
        state={"weight_scale": scales, **state},
        integers=integers,
        is_whole=True,
    )


def parameters(value: Value) -> tuple[float, int]:
    """Scale and zero point of the carried value."""
    quantization = value.type.quantization
    assert quantization is not None
    return quantization.scale[0], carried_zero_point(quantization)


def _clamp(bounds: Clamp, output: Value) -> tuple[int, int] | None:
    """The fused activation in carried bytes; None if saturation is sufficient."""
    quantization = output.type.quantization
    assert quantization is not None
    low, high = clamp_bounds(bounds, quantization)
    whole_range = (low, high) == (quantization.qmin, quantization.qmax) and quantization.bits == 8
    return None if whole_range else (low + 128, high + 128)
