"""Pooling over spatial dimensions. Operand x [n, c, ...]; padding as in a convolution, before and after."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ..arithmetic import Requant, requant
from ..errors import ShapeError
from ..tensor_type import TensorType, Value
from .base import AtenCall, IntegerCall, Op, Quantized, lowers, operator
from .conv import pairs, spread, symmetric_padding
from .quantize import per_tensor_types

_MAX_POOL = {1: functional.max_pool1d, 2: functional.max_pool2d, 3: functional.max_pool3d}
_AVG_POOL = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}


@operator("max_pool")
@dataclass(frozen=True)
class MaxPool(Op):
    """Largest element of each window; padding never wins."""

    quantized = Quantized.MOVE

    kernel: tuple[int, ...] = (2, 2)
    stride: tuple[int, ...] = (2, 2)
    padding: tuple[int, ...] = (0, 0, 0, 0)
    dilation: tuple[int, ...] = (1, 1)
    ceil: bool = False

    def infer(self, x: TensorType) -> tuple[TensorType, ...]:
        return (x.with_shape(_pooled(x, self.kernel, self.stride, self.padding, self.dilation, self.ceil)),)

    def reference(self, x: Tensor) -> Tensor:
        lowest = float("-inf") if x.is_floating_point() else torch.iinfo(x.dtype).min
        if not x.is_floating_point():  # torch pools floats only; float64 holds every integer of 32 bits
            return self.reference(x.double()).to(x.dtype)
        x, padding = symmetric_padding(x, self.padding, value=lowest)
        return _MAX_POOL[len(self.kernel)](x, self.kernel, self.stride, padding, self.dilation, self.ceil)


@operator("avg_pool")
@dataclass(frozen=True)
class AvgPool(Op):
    """Mean of each window; `count_padding` says whether padding zeros count, `divisor` replaces the count."""

    quantized = Quantized.COMPUTE

    kernel: tuple[int, ...] = (2, 2)
    stride: tuple[int, ...] = (2, 2)
    padding: tuple[int, ...] = (0, 0, 0, 0)
    ceil: bool = False
    count_padding: bool = True
    divisor: int | None = None

    def infer(self, x: TensorType) -> tuple[TensorType, ...]:
        ones = (1,) * len(self.kernel)
        return (x.real().with_shape(_pooled(x, self.kernel, self.stride, self.padding, ones, self.ceil)),)

    def reference(self, x: Tensor) -> Tensor:
        rank = len(self.kernel)
        padding = [before for before, _ in pairs(self.padding)]
        if rank == 1:
            return functional.avg_pool1d(x, self.kernel, self.stride, padding, self.ceil, self.count_padding)
        return _AVG_POOL[rank](
            x, self.kernel, self.stride, padding, self.ceil, self.count_padding, self.divisor
        )

    def check_quantized(self, operands: Sequence[TensorType | None], outputs: Sequence[TensorType]) -> None:
        per_tensor_types(operands[0], outputs[0])

    def integer(self, call: IntegerCall) -> Tensor:
        qx, qy = per_tensor_types(call.types[0], call.output)
        centred = (call.operand(0) - qx.zero_point[0]).double()
        sums = self._window_sums(centred)
        counts = self.counts(tuple(centred.shape))
        steps = {int(n): Requant.of(qx.scale[0] / qy.scale[0] / int(n)) for n in counts.unique()}
        multipliers, shifts = torch.zeros_like(counts), torch.zeros_like(counts)
        for n, step in steps.items():
            multipliers[counts == n], shifts[counts == n] = step.multiplier, step.shift
        return (requant(sums, multipliers, shifts) + qy.zero_point[0]).clamp(qy.qmin, qy.qmax)

    def counts(self, shape: tuple[int, ...]) -> Tensor:
        """What each window's sum is divided by, int64 [1, 1, spatial...], for an operand of `shape`."""
        ones = torch.ones((1, 1, *shape[2:]), dtype=torch.float64)
        sums = self._window_sums(ones).double()
        return (sums / torch.as_tensor(self.reference(ones))).round().to(torch.int64)

    def _window_sums(self, x: Tensor) -> Tensor:
        rank, n, c = len(self.kernel), x.shape[0], x.shape[1]
        extra = [self._overhang(size, axis) for axis, size in enumerate(x.shape[2:])]
        flat = [
            n
            for (before, after), more in zip(reversed(pairs(self.padding)), reversed(extra), strict=True)
            for n in (before, after + more)
        ]
        padded = functional.pad(x, flat)
        ones = torch.ones((1, 1, *self.kernel), dtype=x.dtype)
        conv = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}[rank]
        sums = conv(padded.reshape(n * c, 1, *padded.shape[2:]), ones, None, self.stride)
        return sums.round().to(torch.int64).reshape(n, c, *sums.shape[2:])

    def _overhang(self, size: int, axis: int) -> int:
        before, after = pairs(self.padding)[axis]
        kernel, stride = self.kernel[axis], self.stride[axis]
        windows = _window_count(size, kernel, stride, before, after, 1, self.ceil)
        return max(0, (windows - 1) * stride + kernel - size - before - after)


def _window_count(
    n: int, kernel: int, stride: int, before: int, after: int, dilation: int, ceil: bool
) -> int:
    span = n + before + after - dilation * (kernel - 1) - 1
    if not ceil:
        return span // stride + 1
    count = -(-span // stride) + 1
    return count - 1 if (count - 1) * stride >= n + before else count


def _pooled(
    x: TensorType,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    ceil: bool,
) -> tuple[int, ...]:
    rank = len(kernel)
    if x.rank != rank + 2 or len(stride) != rank or len(padding) != 2 * rank:
        raise ShapeError(f"a window of {rank} dimensions does not fit {x.shape}")
    sizes = tuple(
        _window_count(n, k, s, before, after, d, ceil)
        for n, k, s, (before, after), d in zip(
            x.shape[2:], kernel, stride, pairs(padding), dilation, strict=True
        )
    )
    if any(n <= 0 for n in sizes):
        raise ShapeError(f"the window {tuple(kernel)} is larger than {x.shape[2:]}")
    return (*x.shape[:2], *sizes)


@lowers("max_pool1d.default", "max_pool2d.default", "max_pool3d.default")
def _lower_max_pool(call: AtenCall) -> Value | None:
    x = call.value("self")
    rank = int(call.target[8])
    if x.type.rank != rank + 2 or not x.type.dtype.is_floating:
        return None
    kernel = spread(call["kernel_size"], rank)
    op = MaxPool(
        kernel,
        spread(call["stride"], rank) if call["stride"] else kernel,
        tuple(n for n in spread(call["padding"], rank) for _ in range(2)),
        spread(call["dilation"], rank),
        call["ceil_mode"],
    )
    return call.emit(op, x)


@lowers("avg_pool1d.default", "avg_pool2d.default", "avg_pool3d.default")
def _lower_avg_pool(call: AtenCall) -> Value | None:
    x = call.value("self")
    rank = int(call.target[8])
    if x.type.rank != rank + 2:
        return None
    kernel = spread(call["kernel_size"], rank)
    op = AvgPool(
        kernel,
        spread(call["stride"], rank) if call["stride"] else kernel,
        tuple(n for n in spread(call["padding"], rank) for _ in range(2)),
        call["ceil_mode"],
        call["count_include_pad"],
        call["divisor_override"] if rank > 1 else None,
    )
    return call.emit(op, x)
