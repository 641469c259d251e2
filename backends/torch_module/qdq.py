"""The QDQ form: integers between operators, each operator in float between a dequantize and a quantize.

This is the pattern that torch.compile lowers to int8 kernels on x86 (with `torch._inductor.config.freezing`):
uint8 activations per tensor, int8 weights per channel, a residual added after the layer and before the activation.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType, ModuleType

from torch import Tensor

from ...ir import Encoding, Graph, Node, Value
from ...ir.ops.layer import Layer
from ...ir.ops.reorder import Flip, Roll, Tile
from ...ir.ops.shape import Copy, Expand, Permute, Reshape
from ...ir.ops.slicing import Concat, Select, Slice, Split
from . import prelude_embedding, prelude_qdq
from .layers import LayerKind, integer_layer_kind
from .literal import literal
from .names import Path
from .style import Strings

_MOVES = (Reshape, Permute, Expand, Copy, Slice, Select, Split, Concat, Flip, Roll, Tile)


class QdqStyle:
    """Variables hold integers: uint8 for values of at most 8 bits, int16 for 16 bits."""

    preludes: tuple[ModuleType, ...] = (prelude_embedding, prelude_qdq)
    buffers: Mapping[Path, Tensor] = MappingProxyType({})
    notes: tuple[str, ...] = ()
    groups: Mapping[str, tuple[Node, ...]] = MappingProxyType({})

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._shared = {
            name
            for name, users in graph.users.items()
            if len({_is_first_of_layer(u, name) for u in users}) > 1
        }

    def kind(self, node: Node) -> LayerKind | None:
        """The operator's own layer on reals, with its weight as integers."""
        return integer_layer_kind(node)

    def enter(self, value: Value, variable: str) -> str:
        """Conversion of signed integers to the carried values."""
        return f"to_unsigned({variable})" if is_byte(value) else variable

    def leave(self, value: Value, variable: str) -> str:
        """Conversion of the carried values to signed integers."""
        return f"to_signed({variable})" if is_byte(value) else variable

    def is_raw(self, node: Node) -> bool:
        """True for data movement, which is independent of the elements."""
        return isinstance(node.op, _MOVES) and not any(map(self._graph.is_constant, node.operands))

    def read(self, node: Node, operand: int, variable: str) -> str:
        """The dequantized value, with a dequantize separate from that of a layer."""
        value = node.inputs[operand]
        assert value is not None
        if not value.type.is_quantized or self._graph.is_constant(value):
            return variable
        apart = value.name in self._shared and not _is_first_of_layer(node, value.name)
        return f"dequantize({variable}, {grid(value)}{', apart=True' if apart else ''})"

    def store(self, value: Value, expression: str) -> str:
        """The value, quantized if it is quantized in the graph."""
        if not value.type.is_quantized:
            return expression
        options = carried_bounds(value) if is_byte(value) else f", {value.type.dtype.torch}"
        return f"quantize({expression}, {grid(value)}{options})"

    def whole(self, node: Node, operands: Strings, names: Mapping[Path, str]) -> str | None:
        """None: no node is special."""
        return None


def is_byte(value: Value) -> bool:
    """True for values of at most 8 bits, which are carried in uint8."""
    return value.type.quantization is not None and value.type.quantization.bits <= 8


def grid(value: Value) -> str:
    """Scale and zero point as arguments."""
    quantization = value.type.quantization
    assert quantization is not None
    return f"{literal(quantization.scale[0])}, {carried_zero_point(quantization)}"


def carried_bounds(value: Value) -> str:
    """The least and the greatest carried integer as an argument; empty if they are those of a byte."""
    quantization = value.type.quantization
    assert quantization is not None
    bounds = quantization.qmin + 128, quantization.qmax + 128
    return "" if bounds == (0, 255) else f", bounds={bounds}"


def carried_zero_point(quantization: Encoding) -> int:
    """Zero point of the carried values."""
    return quantization.zero_point[0] + (128 if quantization.bits <= 8 else 0)


def _is_first_of_layer(node: Node, name: str) -> bool:
    return isinstance(node.op, Layer) and node.operand("x").name == name
