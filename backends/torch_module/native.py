"""The native form: the integers of the graph, by C kernels with the complete arithmetic of a layer.

Operators without a kernel are computed as in the eager form, within one step of the integers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from types import ModuleType

import torch

from ...ir import Encoding, Graph, Node, TensorType, Value
from ...ir.arithmetic import Requant, Rescale
from ...ir.ops.accumulate import FixedPoint, clamp_bounds, fixed_point
from ...ir.ops.base import Quantized
from ...ir.ops.binary import Add, Mul, Sub, requant_of_product, rescale_of_sum
from ...ir.ops.conv import Conv
from ...ir.ops.linear import Linear
from ...ir.ops.pool import AdaptiveAvgPool, AvgPool
from ...ir.ops.quantize import Dequantize, Quantize
from ...ir.ops.recurrent import Recurrent
from ...ir.ops.reduce import Mean
from ...ir.ops.spatial import pairs
from ...ir.sizes import Size
from . import prelude_eager, prelude_embedding, prelude_library, prelude_native
from .eager import EagerStyle, int8_layer, is_int8, parameters
from .layers import LayerKind
from .literal import literal
from .names import Path
from .qdq import carried_bounds, carried_zero_point, grid, is_byte
from .style import Strings


class NativeStyle(EagerStyle):
    """Variables hold the same integers as in the QDQ form, images with the channels last in memory."""

    preludes: tuple[ModuleType, ...] = (
        prelude_library,
        prelude_embedding,
        prelude_eager,
        prelude_native,
    )

    def __init__(self, graph: Graph) -> None:
        super().__init__(graph)
        self.notes = self._inexact_steps()

    def kind(self, node: Node) -> LayerKind | None:
        """A layer with a C kernel, else that of the eager form."""
        if isinstance(node.op, Conv | Linear) and is_int8(node):
            return _native_layer(node)
        return None if self._has_function(node) else super().kind(node)

    def store(self, value: Value, expression: str) -> str:
        """The quantized value, for images with the channels last."""
        if not is_byte(value):
            return super().store(value, expression)
        is_image = any(isinstance(user.op, Conv) for user in self._graph.users.get(value.name, ()))
        options = f"{carried_bounds(value)}{', is_image=True' if is_image else ''}"
        return f"quantize({expression}, {grid(value)}{options})"

    def whole(self, node: Node, operands: Strings, names: Mapping[Path, str]) -> str | None:
        """Sums, products and averages of bytes, and the nodes that the eager form handles."""
        if not self._has_function(node):
            return super().whole(node, operands, names)
        if isinstance(node.op, Add | Sub | Mul):
            return _binary(node, node.op, operands)
        pool = _average_pool(node)
        assert pool is not None
        text = f"average({node.op.operand(operands, 'x')}, {_average_options(node, pool)})"
        return text if node.output.type.rank == len(pool.kernel) + 2 else f"{text}.flatten(1)"

    def _inexact_steps(self) -> tuple[str, ...]:
        """A note with the number of inexact nodes, by operator."""
        inexact = Counter(node.op.name for node in self._graph.nodes if not self._is_exact(node))
        if not inexact:
            return ()
        counted = ", ".join(f"{count} {name}" for name, count in sorted(inexact.items()))
        recurs = any(node.op.name in inexact for node in self._graph.nodes if isinstance(node.op, Recurrent))
        apart = (
            ", recurrent layers within several steps: their states are float between time steps"
            if recurs
            else ""
        )
        return (
            f"steps of the torch module without an integer kernel: {counted}. They are computed as in the form "
            f"`eager`, each within one step of the integer graph{apart}",
        )

    def _is_exact(self, node: Node) -> bool:
        """True for a node whose results equal those of the integer graph, bit for bit."""
        if not any(value.type.is_quantized for value in (*node.operands, *node.outputs)):
            return True
        if isinstance(node.op, Conv | Linear):
            return is_int8(node) and self._fits(node)
        is_moved = node.op.quantized is Quantized.MOVE or isinstance(node.op, Quantize | Dequantize)
        return is_moved or self._has_function(node) or self._is_whole(node)

    def _fits(self, node: Node) -> bool:
        """True if the sums of a layer fit 32 bits."""
        constants = [node.operand("weight"), node.optional("bias")]
        if not all(value is None or self._graph.is_constant(value) for value in constants):
            return False
        weight, bias = (None if value is None else self._graph.tensor(value) for value in constants)
        assert weight is not None
        step, (_, zero_point) = _fixed_point(node), parameters(node.operand("x"))
        residual = (0, 0, 0) if step.residual is None else _residual_step(step.residual)
        return prelude_native.fits(weight, bias, torch.tensor(step.shifts), zero_point, residual)

    def _has_function(self, node: Node) -> bool:
        """True for a node of bytes that a function of the prelude computes."""
        if not all(is_byte(value) for value in (*node.operands, *node.outputs)):
            return False
        if any(map(self._graph.is_constant, node.operands)):
            return False
        return isinstance(node.op, Add | Sub | Mul) or _average_pool(node) is not None


def _native_layer(node: Node) -> LayerKind:
    """The layer with the integers of its requantization."""
    step, outputs = _fixed_point(node), node.operand("weight").type.shape[0]
    state = {
        name: torch.tensor(numbers, dtype=torch.int32).expand(outputs).clone()
        for name, numbers in (("multiplier", step.multipliers), ("shift", step.shifts))
    }
    more = {} if step.residual is None else {"residual_step": _residual_step(step.residual)}
    return int8_layer(node, "Native", more=more, state=state, integers=("weight", "bias"))


def _fixed_point(node: Node) -> FixedPoint:
    assert isinstance(node.op, Conv | Linear)
    x, weight, residual = node.operand("x"), node.operand("weight"), node.optional("residual")
    added = None if residual is None else residual.type
    return fixed_point(x.type, weight.type, node.output.type, residual=added, clamp=node.op.clamp)


def _residual_step(rescale: Rescale) -> tuple[int, int, int]:
    """Multiplier, offset and shift of a residual in bytes."""
    (multiplier,) = rescale.multipliers
    return multiplier, _offset(rescale), rescale.shift


def _binary(node: Node, op: Add | Sub | Mul, operands: Strings) -> str:
    """Call of the function for a sum, difference or product."""
    a, b, y = (*node.operand_types, node.output.type)
    low, high = clamp_bounds(op.clamp, _quantization(y))
    name, arguments = "add", [op.operand(operands, "a"), op.operand(operands, "b")]
    if isinstance(op, Mul):
        name, step = "multiply", requant_of_product(a, b, y)
        zeros = tuple(carried_zero_point(_quantization(type)) for type in (a, b, y))
        numbers = [zeros, step.multiplier, step.shift]
    else:
        rescale = rescale_of_sum(a, b, y, sign=-1 if isinstance(op, Sub) else 1)
        numbers = [rescale.multipliers, _offset(rescale), rescale.shift]
    texts = map(literal, [*numbers, low + 128, high + 128])
    return f"{name}({', '.join([*arguments, *texts])})"


def _offset(rescale: Rescale) -> int:
    """The offset for operands in bytes, which are the integers plus 128."""
    return rescale.offset - 128 * sum(rescale.multipliers)


def _average_pool(node: Node) -> AvgPool | None:
    """The plain pool equivalent to an average over windows of one size; None for any other node."""
    op, x = node.op, node.operand_types[0]
    pool: AvgPool | None = None
    if (
        isinstance(op, Mean)
        and x is not None
        and x.rank in (3, 4)
        and op.reduced(x) == tuple(range(2, x.rank))
    ):
        pool = AvgPool(x.shape[2:], x.shape[2:], (0, 0) * (x.rank - 2))
    elif isinstance(op, AdaptiveAvgPool) and x is not None:
        pool = op.as_avg_pool(x)
    elif isinstance(op, AvgPool):
        pool = op
    is_fixed = x is not None and not any(isinstance(size, Size) for size in x.shape[2:])
    if pool is None or x is None or not is_fixed or len(pool.kernel) > 2:
        return None
    if len(pool.counts(x.shape).unique()) > 1:
        return None
    is_padded = any(pool.padding) and not _quantization(x).holds_zero
    return None if is_padded or not _windows_end_within(pool, x) else pool


def _windows_end_within(pool: AvgPool, x: TensorType) -> bool:
    """True if no window extends beyond the padding, as the last windows with `ceil` may."""
    (y,) = pool.infer(x.real())
    sizes = zip(y.shape[2:], x.shape[2:], pool.kernel, pool.stride, pairs(pool.padding), strict=True)
    return all((out - 1) * stride + kernel <= size + sum(ends) for out, size, kernel, stride, ends in sizes)


def _average_options(node: Node, pool: AvgPool) -> str:
    """Arguments of the function for an average, after the operand."""
    x, y = node.operand("x"), node.output
    qx, qy = _quantization(x.type), _quantization(y.type)
    (count,) = pool.counts(x.type.shape).unique().tolist()
    step = Requant.of(qx.scale[0] / qy.scale[0] / count)
    options = {
        "stride": pool.stride,
        "padding": pool.padding,
        "x_grid": parameters(x),
        "y_grid": parameters(y),
    }
    options |= {"divisor": count, "step": (step.multiplier, step.shift)}
    options |= {} if qy.bits == 8 else {"clamp": (qy.qmin + 128, qy.qmax + 128)}
    return ", ".join([literal(pool.kernel), *(f"{key}={literal(value)}" for key, value in options.items())])


def _quantization(type: TensorType | None) -> Encoding:
    assert type is not None and type.quantization is not None
    return type.quantization
