"""Written-out norms become the norm operators, whose statistics do not lose precision in eight bits.

    x * rsqrt(mean(x^2) + eps) * w                      rms_norm(x, w), language models
    (x - mean(x)) / sqrt(mean((x - mean(x))^2) + eps)   layer_norm(x), over any dimensions, with var or std as well
    x / max(sqrt(sum(x^2)), eps)                        rms_norm(x, 1 / sqrt(n)), normalization to length 1

The function is the same; results differ in the order of the arithmetic, by a few units in the last place. An eps that
bounds the divisor, instead of being added to it, must be at most 1e-6: the norm adds its square. A factor of the
variance, such as n / (n - 1) of the unbiased one, is folded into eps and the weight. Constants that broadcast along
the other dimensions become weight and bias. A norm with a statistic that other nodes read is not rewritten.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from math import inf, prod, sqrt

import torch

from ...ir import Builder, Graph, Node, TensorType, Value
from ...ir.ops.activation import Clamp
from ...ir.ops.binary import Add, Div, Maximum, Mul, Sub
from ...ir.ops.elementary import Pow, Reciprocal, Rsqrt, Sqrt
from ...ir.ops.norm import LayerNorm, RmsNorm, RowNorm
from ...ir.ops.reduce import Mean, Sum
from ...ir.ops.shape import Expand, Reshape

LARGEST_BOUND = 1e-6


class NormFinder:
    """Recognizes a norm at its last node; `builder` has the nodes before it."""

    def __init__(self, graph: Graph) -> None:
        self._reads = Counter(v.name for node in graph.nodes for v in node.operands)
        self._reads.update(v.name for v in graph.outputs)

    def replacement(self, builder: Builder, node: Node) -> Value | None:
        """The result of a norm operator that replaces the node's, or None."""
        if len(node.outputs) != 1 or not node.output.type.dtype.is_floating or node.output.type.is_quantized:
            return None
        search = _Search(builder, node, self._reads)
        match node.op:
            case Mul(clamp=None):
                return search.product()
            case Div(clamp=None):
                return search.quotient()
            case Add(clamp=None):
                return search.sum()
            case _:
                return None


@dataclass(frozen=True)
class _Root:
    """sqrt(variance * factor + eps) + root_eps; the variance is the mean square of `x` over `axes`."""

    x: Value
    axes: tuple[int, ...]
    factor: float
    eps: float = 0.0
    root_eps: float = 0.0
    is_centred: bool = False  # True: the mean is subtracted from `x` before squaring


@dataclass(frozen=True)
class _Search:
    builder: Builder
    node: Node
    reads: Counter[str]

    def product(self) -> Value | None:
        """x * (1 / root), in either order and with a constant factor next to it; or a norm times its weight."""
        for x, factor in (self.node.operands, self.node.operands[::-1]):
            found = self._norm(x, factor, self._inverse(factor)) or self._weighted(x, factor)
            if found is not None:
                return found
            for inverse, weight in self._constant_product(factor):
                found = self._norm(x, inverse, self._inverse(inverse), weight)
                if found is not None:
                    return found
        return None

    def quotient(self) -> Value | None:
        """x / root."""
        x, divisor = self.node.operands
        return self._norm(x, divisor, self._rooted(divisor))

    def sum(self) -> Value | None:
        """A layer norm plus its bias."""
        for x, addend in (self.node.operands, self.node.operands[::-1]):
            norm = self._unread_norm(x)
            if norm is None or not isinstance(norm.op, LayerNorm) or norm.optional("bias") is not None:
                continue
            bias = self._parameter(norm.op, x.type, addend)
            if bias is not None:
                return self._emit(norm.op, norm.operand("x"), norm.optional("weight"), bias)
        return None

    def _norm(self, x: Value, used: Value, root: _Root | None, weight: Value | None = None) -> Value | None:
        """The norm of `x`, or of a value that is `x` times a constant; `used` is the dividend or factor."""
        if root is None or self.node.output.type != x.type or not self._is_spread(used, x.type, root.axes):
            return None
        centre = self._centre(x, root.axes)
        matches = (centre is not None and centre == root.x) if root.is_centred else x == root.x
        if not matches:
            inner = self._constant_product(x) if weight is None else []
            return next((y for z, w in inner if (y := self._norm(z, used, root, w)) is not None), None)
        sizes = tuple(x.type.shape[axis] for axis in root.axes)
        is_last = root.axes == tuple(range(x.type.rank - len(sizes), x.type.rank))
        scale = 1 / sqrt(root.factor)
        kind = RmsNorm if centre is None else LayerNorm
        op = kind(
            sizes, _short(root.eps / root.factor), () if is_last else root.axes, _short(root.root_eps * scale)
        )
        parameter = None if weight is None else self._parameter(op, x.type, weight)
        if weight is not None and parameter is None:
            return None
        return self._emit(op, centre or x, self._scaled(op, x.type, parameter, scale))

    def _scaled(self, op: RowNorm, type: TensorType, weight: Value | None, scale: float) -> Value | None:
        """The weight times `scale`."""
        if scale == 1.0:
            return weight
        if weight is None:
            ones = torch.ones(op.shape, dtype=type.dtype.torch)
            return self.builder.constant(f"{self.node.output.name}_weight", ones * scale)
        own = self.builder.tensor(weight)
        assert own is not None
        return self.builder.derived_constant(weight.name, own * scale)

    def _weighted(self, x: Value, factor: Value) -> Value | None:
        """A norm with this factor in its weight."""
        norm = self._unread_norm(x)
        if norm is None or norm.optional("bias") is not None:
            return None
        assert isinstance(norm.op, RowNorm)
        own, before = self._parameter(norm.op, x.type, factor), norm.optional("weight")
        if own is None or before is None:
            return own and self._emit(norm.op, norm.operand("x"), own)
        known, added = self.builder.tensor(before), self.builder.tensor(own)
        if known is None or added is None:
            return None
        weight = self.builder.derived_constant(own.name, known * added)
        return self._emit(norm.op, norm.operand("x"), weight)

    def _emit(self, op: RowNorm, *operands: Value | None) -> Value:
        return self.builder.add(op, *operands, name=self.node.output.name, source=self.node.source)

    def _parameter(self, op: RowNorm, type: TensorType, value: Value) -> Value | None:
        """A constant operand of the norm's result as weight or bias: it varies only along the norm's dimensions."""
        tensor, axes = self.builder.tensor(value), op.dimensions(type.rank)
        if tensor is None or tensor.ndim > type.rank or value.type.dtype is not type.dtype:
            return None
        full = tensor.reshape((1,) * (type.rank - tensor.ndim) + tuple(tensor.shape))
        if any(n != 1 for axis, n in enumerate(full.shape) if axis not in axes):
            return None
        if tuple(tensor.shape) == op.shape:
            return value
        spread = full.reshape([full.shape[axis] for axis in axes]).expand(op.shape).contiguous()
        return self.builder.derived_constant(value.name, spread)

    def _constant_product(self, value: Value) -> list[tuple[Value, Value]]:
        """Operands of a product with a constant that only this node reads: the other operand and the constant."""
        node = self._producer(value, Mul)
        if node is None or node.op != Mul() or not self._is_read_once(value):
            return []
        a, b = node.operands
        return [(x, w) for x, w in ((a, b), (b, a)) if self.builder.tensor(w) is not None]

    def _is_spread(self, used: Value, type: TensorType, axes: tuple[int, ...]) -> bool:
        """True if a statistic has size 1 along the dimensions that it was computed over, or was expanded from that."""
        made = self._producer(used, Expand)
        shape = used.type.shape if made is None else made.operand("x").type.shape
        kept = tuple(1 if axis in axes else n for axis, n in enumerate(type.shape))
        return (1,) * (len(kept) - len(shape)) + shape == kept

    def _unread_norm(self, value: Value) -> Node | None:
        """The norm that computes `value` only for this node."""
        made = self.builder.producer(value)
        is_norm = made is not None and isinstance(made.op, RowNorm)
        return made if is_norm and self._is_read_once(value) else None

    def _inverse(self, value: Value) -> _Root | None:
        """1 / root."""
        value = self._unspread(value)
        node = self.builder.producer(value)
        if node is None or not self._is_read_once(value):
            return None
        match node.op:
            case Rsqrt() | Pow(exponent=-0.5):
                return self._variance(node.operand("x"))
            case Reciprocal() | Pow(exponent=-1.0):
                return self._rooted(node.operand("x"))
            case Div(clamp=None) if self._number(node.operand("a")) == 1.0:
                return self._rooted(node.operand("b"))
            case _:
                return None

    def _rooted(self, value: Value) -> _Root | None:
        """sqrt(variance + eps), followed by a bound or a further eps."""
        value = self._unspread(value)
        node = self.builder.producer(value)
        if node is None or not self._is_read_once(value):
            return None
        match node.op:
            case Sqrt() | Pow(exponent=0.5):
                return self._variance(node.operand("x"))
            case Add(clamp=None):
                for inner, number in self._with_number(node):
                    root = self._rooted(inner)
                    if root is not None and not root.root_eps and number >= 0:
                        return replace(root, root_eps=number)
            case Clamp() | Maximum():
                for inner, number in self._bounded(node):
                    root = self._rooted(inner)
                    if root is not None and not root.eps and not root.root_eps:
                        return replace(root, eps=number * number)
        return None

    def _variance(self, value: Value) -> _Root | None:
        """mean(x^2) * factor + eps."""
        value = self._unspread(value)
        node = self.builder.producer(value)
        if node is None or not self._is_read_once(value):
            return None
        match node.op:
            case Mean() | Sum():
                return self._mean_square(node)
            case Add(clamp=None):
                for inner, number in self._with_number(node):
                    found = self._variance(inner)
                    if found is not None and number >= 0:
                        return replace(found, eps=found.eps + number)
            case Clamp() | Maximum():
                for inner, number in self._bounded(node):
                    found = self._variance(inner)
                    if found is not None and not found.eps:
                        return replace(found, eps=number)
            case Mul(clamp=None) | Div(clamp=None):
                for inner, number in self._with_number(node):
                    found = self._variance(inner)
                    if found is not None and number > 0:
                        if isinstance(node.op, Mul):
                            return replace(found, factor=found.factor * number, eps=found.eps * number)
                        return replace(found, factor=found.factor / number, eps=found.eps / number)
            case Sub(clamp=None):
                return self._difference_of_squares(node)
        return None

    def _mean_square(self, node: Node) -> _Root | None:
        assert isinstance(node.op, Mean | Sum)
        axes = node.op.reduced(node.operand("x").type)
        x = self._squared(node.operand("x"))
        if x is None or not self._is_read_once(node.operand("x")):
            return None
        count = prod(x.type.shape[axis] for axis in axes)
        return _Root(x, axes, 1.0 if isinstance(node.op, Mean) else float(count)) if count else None

    def _difference_of_squares(self, node: Node) -> _Root | None:
        """mean(x^2) - mean(x)^2."""
        squares, square = node.operands
        first, mean = self._producer(squares, Mean), self._squared(square)
        if first is None or mean is None or squares.type != square.type or not self._is_read_once(squares):
            return None
        found = self._mean_square(first)
        is_variance = found is not None and self._is_mean(mean, found.x, found.axes)
        return replace(found, is_centred=True) if found is not None and is_variance else None

    def _squared(self, value: Value) -> Value | None:
        """x of x^2."""
        node = self.builder.producer(value)
        match node and node.op:
            case Pow(exponent=2.0):
                assert node is not None
                return node.operand("x")
            case Mul(clamp=None) if node is not None and node.operand("a") == node.operand("b"):
                return node.operand("a")
            case _:
                return None

    def _centre(self, x: Value, axes: tuple[int, ...]) -> Value | None:
        """The value from which the mean is subtracted to give `x`."""
        node = self._producer(x, Sub)
        if node is None or node.op != Sub():
            return None
        source, mean = node.operands
        is_centred = self._is_spread(mean, source.type, axes) and self._is_mean(mean, source, axes)
        return source if is_centred and source.type == x.type else None

    def _is_mean(self, value: Value, x: Value, axes: tuple[int, ...]) -> bool:
        node = self._producer(self._unspread(value), Mean)
        if node is None or node.operand("x") != x:
            return False
        assert isinstance(node.op, Mean)
        return node.op.reduced(x.type) == axes

    def _unspread(self, value: Value) -> Value:
        """The statistic before it was expanded or its reduced dimensions were restored."""
        while (node := self.builder.producer(value)) is not None and isinstance(node.op, Expand | Reshape):
            value = node.operand("x")
        return value

    def _with_number(self, node: Node) -> list[tuple[Value, float]]:
        """Each operand whose other operand is filled with one number, and that number."""
        a, b = node.operands
        pairs = [(a, self._number(b))]
        if not isinstance(node.op, Div):
            pairs.append((b, self._number(a)))
        return [(value, number) for value, number in pairs if number is not None]

    def _bounded(self, node: Node) -> list[tuple[Value, float]]:
        """An operand and its lower bound, if that is tiny."""
        if isinstance(node.op, Clamp):
            pairs = [(node.operand("x"), node.op.low)] if node.op.high == inf else []
        else:
            pairs = self._with_number(node)
        return [(value, bound) for value, bound in pairs if 0 <= bound <= LARGEST_BOUND]

    def _number(self, value: Value) -> float | None:
        tensor = self.builder.tensor(value)
        if tensor is None or not tensor.numel() or bool((tensor != tensor.flatten()[0]).any()):
            return None
        return float(tensor.flatten()[0])

    def _producer(self, value: Value, op: type) -> Node | None:
        node = self.builder.producer(value)
        return node if node is not None and isinstance(node.op, op) else None

    def _is_read_once(self, value: Value) -> bool:
        return self.reads[value.name] == 1


def _short(number: float) -> float:
    """The number as written in the source, if float32 cannot distinguish the two: 1e-06 for 9.99999997e-07."""
    short = float(f"{number:.6g}")
    return short if torch.tensor(short) == torch.tensor(number) else number
