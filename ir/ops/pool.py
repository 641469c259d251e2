"""Pooling over spatial dimensions. Operand x [n, c, ...]; padding as in a convolution, before and after.

Averages on integers: requant(sum(x - zx), sx / sy / count) + zy, where count is that of the window.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor
from torch.nn import functional

from ..arithmetic import Requant, prove_requant, requant
from ..errors import ShapeError
from ..tensor_type import TensorType, Value
from .base import AtenCall, IntegerCall, Op, Quantized, check_floats, lowers, operator
from .channels import Axes, CouplingCall
from .facts import Facts
from .quantize import check_moved, per_tensor_types
from .reduce import Mean, ReduceMax
from .shape import Reshape, emit_on_batch
from .slicing import Concat, Slice
from .spatial import on_both_sides, pairs, spread, symmetric_padding

_MAX_POOL = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}


@operator("max_pool")
@dataclass(frozen=True)
class MaxPool(Op):
    """Largest element of each window; padding is never the largest."""

    quantized = Quantized.MOVE

    kernel: tuple[int, ...] = (2, 2)
    stride: tuple[int, ...] = (2, 2)
    padding: tuple[int, ...] = (0, 0, 0, 0)
    dilation: tuple[int, ...] = (1, 1)
    ceil: bool = False

    def infer(self, x: TensorType) -> tuple[TensorType, ...]:
        check_moved(x)
        if x.dtype.torch.is_complex:
            raise ShapeError("complex values have no largest element")
        if self.ceil and any(before != after for before, after in pairs(self.padding)):
            raise ShapeError("a pool with ceil_mode needs equal padding on both sides")
        return (x.with_shape(_pooled(x, self)),)

    def reference(self, x: Tensor) -> Tensor:
        if not x.is_floating_point():  # torch pools floats only; float64 holds every integer of 32 bits
            return self.reference(x.double()).to(x.dtype)
        x, padding = symmetric_padding(x, self.padding, value=float("-inf"))
        return _MAX_POOL[len(self.kernel)](x, self.kernel, self.stride, padding, self.dilation, self.ceil)

    def is_identity(self, operands: Sequence[TensorType | None], outputs: Sequence[TensorType]) -> bool:
        return _is_window_of_one(self)

    def couple(self, call: CouplingCall) -> tuple[Axes, ...]:
        return (_couple(call),)


@dataclass(frozen=True)
class Averaging(Op):
    """Base of the average pools: sums of windows, each divided by its count."""

    quantized = Quantized.COMPUTE
    facts = Facts(monotone=("x",), piecewise_linear=(("x",),), homogeneous=True)

    def check_quantized(self, operands: Sequence[TensorType | None], outputs: Sequence[TensorType]) -> None:
        (x, *_), (qx, qy) = operands, per_tensor_types(self.operand(operands, "x"), outputs[0])
        assert x is not None
        shape = (1, 1, *x.shape[2:])
        elements = int(self.window_sums(torch.ones(shape, dtype=torch.int64)).max())
        counts = {int(n) for n in self.counts(shape).flatten()}
        prove_requant(qx.reach * elements, *(Requant.of(qx.scale[0] / qy.scale[0] / n) for n in counts))

    def integer(self, call: IntegerCall) -> Tensor:
        qx, qy = per_tensor_types(call.type("x"), call.output)
        centred = call.operand("x") - qx.zero_point[0]
        counts = self.counts(tuple(centred.shape))
        multipliers, shifts = torch.zeros_like(counts), torch.zeros_like(counts)
        for count in set(counts.flatten().tolist()):
            step = Requant.of(qx.scale[0] / qy.scale[0] / count)
            multipliers[counts == count], shifts[counts == count] = step.multiplier, step.shift
        y = requant(self.window_sums(centred), multipliers, shifts)
        return (y + qy.zero_point[0]).clamp(qy.qmin, qy.qmax)

    def couple(self, call: CouplingCall) -> tuple[Axes, ...]:
        return (_couple(call),)

    @abstractmethod
    def counts(self, shape: tuple[int, ...]) -> Tensor:
        """Divisor of each window's sum, int64 [1, 1, spatial...], for an operand of `shape`."""

    @abstractmethod
    def window_sums(self, x: Tensor) -> Tensor:
        """Sum of each window of integers, padding counted as 0, int64."""


@operator("avg_pool")
@dataclass(frozen=True)
class AvgPool(Averaging):
    """Mean of each window; `count_padding` counts padding zeros, `divisor` replaces the count."""

    kernel: tuple[int, ...] = (2, 2)
    stride: tuple[int, ...] = (2, 2)
    padding: tuple[int, ...] = (0, 0, 0, 0)
    ceil: bool = False
    count_padding: bool = True
    divisor: int | None = None

    def infer(self, x: TensorType) -> tuple[TensorType, ...]:
        check_floats(self, x)
        if any(before != after for before, after in pairs(self.padding)):
            raise ShapeError("an average pool needs equal padding on both sides")
        if self.divisor is not None and (len(self.kernel) == 1 or self.divisor < 1):
            raise ShapeError("a divisor is positive, and only for pools over two or three dimensions")
        return (x.real().with_shape(_pooled(x, self)),)

    def reference(self, x: Tensor) -> Tensor:
        padding = [before for before, _ in pairs(self.padding)]
        common = (self.kernel, self.stride, padding, self.ceil, self.count_padding)
        if len(self.kernel) == 1:
            return torch.avg_pool1d(x, *common)
        pool = functional.avg_pool2d if len(self.kernel) == 2 else functional.avg_pool3d
        return pool(x, *common, self.divisor)

    def counts(self, shape: tuple[int, ...]) -> Tensor:
        ones = torch.ones((1, 1, *shape[2:]), dtype=torch.float64)
        return (self.window_sums(ones) / self.reference(ones)).round().to(torch.int64)

    def window_sums(self, x: Tensor) -> Tensor:
        if len(self.kernel) == 1:  # torch supports a divisor in two dimensions and more
            plane = AvgPool((1, *self.kernel), (1, *self.stride), (0, 0, *self.padding), self.ceil)
            return plane.window_sums(x.unsqueeze(2)).squeeze(2)
        summed = AvgPool(self.kernel, self.stride, self.padding, self.ceil, divisor=1)
        return summed.reference(x.double()).round().to(torch.int64)

    def is_identity(self, operands: Sequence[TensorType | None], outputs: Sequence[TensorType]) -> bool:
        return _is_window_of_one(self) and self.divisor in (None, 1)


@operator("adaptive_avg_pool")
@dataclass(frozen=True)
class AdaptiveAvgPool(Averaging):
    """Mean of `size` windows that cover the operand evenly.

    Along n elements window i reaches from floor(i n / size) to ceil((i + 1) n / size).
    """

    size: tuple[int, ...] = (1, 1)

    def infer(self, x: TensorType) -> tuple[TensorType, ...]:
        if x.rank != len(self.size) + 2 or len(self.size) not in (1, 2, 3) or min(self.size) < 1:
            raise ShapeError(f"{x.shape} cannot be pooled to {self.size}")
        check_floats(self, x)
        if 0 in x.shape[1:]:
            raise ShapeError(f"{x.shape} has no mean")
        return (x.real().with_shape((*x.shape[:2], *self.size)),)

    def reference(self, x: Tensor) -> Tensor:
        match self.size:
            case (_,):
                return torch.adaptive_avg_pool1d(x, self.size)
            case (h, w):
                return functional.adaptive_avg_pool2d(x, (h, w))
            case (d, h, w):
                return functional.adaptive_avg_pool3d(x, (d, h, w))
        raise AssertionError("infer admits one to three dimensions")

    def as_avg_pool(self, x: TensorType) -> AvgPool | None:
        """The plain pool with the same windows, if `size` divides the operand's size."""
        if any(n % size for n, size in zip(x.shape[2:], self.size, strict=True)):
            return None
        kernel = tuple(n // size for n, size in zip(x.shape[2:], self.size, strict=True))
        return AvgPool(kernel, kernel, (0,) * (2 * len(kernel)))

    def windows(self, axis: int, n: int) -> tuple[tuple[int, int], ...]:
        """Start and stop of each window along spatial dimension `axis` of `n` elements."""
        return _even_windows(n, self.size[axis])

    def counts(self, shape: tuple[int, ...]) -> Tensor:
        return self.window_sums(torch.ones((1, 1, *shape[2:]), dtype=torch.int64))

    def window_sums(self, x: Tensor) -> Tensor:
        for axis, n in enumerate(x.shape[2:]):
            parts = [x.narrow(axis + 2, start, stop - start) for start, stop in self.windows(axis, n)]
            x = torch.stack([part.sum(axis + 2) for part in parts], axis + 2)
        return x


def _couple(call: CouplingCall) -> Axes:
    x = call.operand("x")
    call.fix(*x[2:], why="a window slides along it")
    return (*x[:2], *call.fixed(*call.outputs[0].shape[2:]))


@dataclass(frozen=True)
class _Window:
    """A pooling window along one dimension."""

    kernel: int
    stride: int
    before: int
    after: int
    dilation: int = 1

    @property
    def extent(self) -> int:
        """Distance from its first to its last element, plus one."""
        return self.dilation * (self.kernel - 1) + 1

    def count(self, n: int, *, ceil: bool) -> int:
        """Number of windows along `n` elements; with `ceil_mode` no window starts in the padding after the elements."""
        span = n + self.before + self.after - self.extent
        if not ceil:
            return span // self.stride + 1
        count = -(-span // self.stride) + 1
        return count - 1 if (count - 1) * self.stride >= n + self.before else count


def _is_window_of_one(op: MaxPool | AvgPool) -> bool:
    return set(op.kernel) == {1} and set(op.stride) == {1} and not any(op.padding)


def _pooled(x: TensorType, op: MaxPool | AvgPool) -> tuple[int, ...]:
    rank = len(op.kernel)
    dilation = op.dilation if isinstance(op, MaxPool) else (1,) * rank
    if x.rank != rank + 2 or rank not in (1, 2, 3) or 0 in x.shape[1:]:
        raise ShapeError(f"a window of {rank} dimensions does not fit {x.shape}")
    if (len(op.stride), len(dilation), len(op.padding)) != (rank, rank, 2 * rank):
        raise ShapeError(f"stride, padding or dilation do not have {rank} dimensions")
    if min(*op.kernel, *op.stride, *dilation) < 1:
        raise ShapeError("a window has positive sizes, strides and dilations")
    columns = zip(op.kernel, op.stride, pairs(op.padding), dilation, strict=True)
    windows = [_Window(k, s, before, after, d) for k, s, (before, after), d in columns]
    if any(not 0 <= n <= w.extent // 2 for w in windows for n in (w.before, w.after)):
        raise ShapeError(f"padding {op.padding} is more than half of the window {op.kernel}")
    sizes = tuple(w.count(n, ceil=op.ceil) for w, n in zip(windows, x.shape[2:], strict=True))
    if min(sizes) <= 0:
        raise ShapeError(f"the window {op.kernel} is larger than {x.shape[2:]}")
    return (*x.shape[:2], *sizes)


@lowers("max_pool1d.default", "max_pool2d.default", "max_pool3d.default")
def _lower_max_pool(call: AtenCall) -> Value | None:
    rank = _rank(call)
    op = MaxPool(*_windows(call, rank), spread(call["dilation"], rank), call["ceil_mode"])
    return _pool(call, lambda x: call.emit(op, x))


@lowers("max_pool2d_with_indices.default", "max_pool3d_with_indices.default")
def _lower_max_pool_with_indices(call: AtenCall) -> tuple[Value, ...] | None:
    pooled = _lower_max_pool(call)
    return None if pooled is None else (pooled, call.opaque()[1])


@lowers("avg_pool1d.default", "avg_pool2d.default", "avg_pool3d.default")
def _lower_avg_pool(call: AtenCall) -> Value | None:
    rank = _rank(call)
    divisor = call["divisor_override"] if rank > 1 else None
    op = AvgPool(*_windows(call, rank), call["ceil_mode"], call["count_include_pad"], divisor)
    flat = _over_depth(op) if rank == 3 else None
    return _pool(call, lambda x: call.emit(op, x) if flat is None else _pool_depth(call, op, flat, x))


def _pool_depth(call: AtenCall, op: AvgPool, flat: AvgPool, x: Value) -> Value:
    """`op` of `x` as the pool `flat` of images: rows are the depth, columns the other two dimensions."""
    (n, c, depth, *image), made = x.type.shape, op.infer(x.type)[0].shape
    rows = call.emit(Reshape((n, c, depth, prod(image))), x)
    return call.emit(Reshape(made), call.emit(flat, rows))


def _over_depth(op: AvgPool) -> AvgPool | None:
    """A pool over only the first of three dimensions, as a pool over images whose columns are the other two."""
    if op.kernel[1:] + op.stride[1:] != (1,) * 4 or any(op.padding[2:]):
        return None
    return AvgPool(
        (op.kernel[0], 1), (op.stride[0], 1), (*op.padding[:2], 0, 0), op.ceil, op.count_padding, op.divisor
    )


@lowers("adaptive_avg_pool1d.default", "adaptive_avg_pool2d.default", "adaptive_avg_pool3d.default")
def _lower_adaptive_avg_pool(call: AtenCall) -> Value | None:
    """Adaptive average pooling; to a single element it is a mean, as in torch."""
    rank = _rank(call)
    size = spread(call["output_size"], rank)
    whole = Mean(tuple(range(2, rank + 2)), keepdim=True)
    return _pool(call, lambda x: call.emit(whole if size == (1,) * rank else AdaptiveAvgPool(size), x))


@lowers("adaptive_max_pool1d.default", "adaptive_max_pool2d.default", "adaptive_max_pool3d.default")
def _lower_adaptive_max_pool(call: AtenCall) -> tuple[Value, ...] | None:
    size = spread(call["output_size"], _rank(call))
    pooled = _pool(call, lambda x: _largest_of_parts(call, size, x))
    return None if pooled is None else (pooled, call.opaque()[1])


def _largest_of_parts(call: AtenCall, size: tuple[int, ...], x: Value) -> Value:
    """A plain pool, or the largest element of each part if windows overlap."""
    plain = AdaptiveAvgPool(size).as_avg_pool(x.type)
    if plain is not None:
        return call.emit(MaxPool(plain.kernel, plain.stride, plain.padding, (1,) * len(size)), x)
    for axis, windows in enumerate(
        (_even_windows(n, s) for n, s in zip(x.type.shape[2:], size, strict=True)), start=2
    ):
        parts = [call.emit(Slice(axis, start, stop), x) for start, stop in windows]
        x = call.emit(Concat(axis), *(call.emit(ReduceMax((axis,), keepdim=True), part) for part in parts))
    return x


def _rank(call: AtenCall) -> int:
    """Number of spatial dimensions, from the name of the overload: `max_pool2d.default`."""
    return int(call.target.removesuffix(".default").removesuffix("_with_indices")[-2])


def _pool(call: AtenCall, emit: Callable[[Value], Value]) -> Value | None:
    """Result of `emit` on a non-empty float operand, with or without a batch dimension."""
    x = call.value("self")
    if not x.type.dtype.is_floating or 0 in x.type.shape[1:]:
        return None
    return emit_on_batch(call, x, _rank(call) + 2, emit)


def _windows(call: AtenCall, rank: int) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Kernel, stride (by default the size of the kernel) and padding."""
    kernel = spread(call["kernel_size"], rank)
    stride = spread(call["stride"], rank) if call["stride"] else kernel
    return kernel, stride, on_both_sides(call["padding"], rank)


def _even_windows(n: int, size: int) -> tuple[tuple[int, int], ...]:
    """Start and stop of each of `size` windows that cover `n` elements."""
    return tuple((i * n // size, -(-(i + 1) * n // size)) for i in range(size))
