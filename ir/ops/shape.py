"""Data movement that keeps every element: reshape and permute."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

from torch import Tensor

from ..errors import ShapeError
from ..tensor_type import Quantization, TensorType, Value
from .base import AtenCall, Op, Quantized, lowers, operator


@operator("reshape")
@dataclass(frozen=True)
class Reshape(Op):
    """The same elements in order, with sizes `shape`; one size may be -1 and follows from the others."""

    quantized = Quantized.MOVE

    shape: tuple[int, ...] = ()

    def infer(self, x: TensorType) -> tuple[TensorType, ...]:
        known = prod(n for n in self.shape if n != -1)
        free = self.shape.count(-1)
        if free > 1 or (free and (not known or x.numel % known)) or (not free and known != x.numel):
            raise ShapeError(f"{x.shape} has {x.numel} elements; they do not fill {self.shape}")
        if x.quantization is not None and not x.quantization.is_per_tensor:
            raise ShapeError("reshape takes values with one scale per tensor")
        return (x.with_shape(tuple(x.numel // known if n == -1 else n for n in self.shape)),)

    def reference(self, x: Tensor) -> Tensor:
        return x.reshape(self.shape)


@operator("permute")
@dataclass(frozen=True)
class Permute(Op):
    """Dimensions in another order: result dimension i is operand dimension `order[i]`."""

    quantized = Quantized.MOVE

    order: tuple[int, ...] = ()

    def infer(self, x: TensorType) -> tuple[TensorType, ...]:
        if sorted(self.order) != list(range(x.rank)):
            raise ShapeError(f"{self.order} is no order of {x.rank} dimensions")
        shape = tuple(x.shape[i] for i in self.order)
        return (TensorType(shape, x.dtype, _permuted(x.quantization, self.order)),)

    def reference(self, x: Tensor) -> Tensor:
        return x.permute(self.order)


def _permuted(quantization: Quantization | None, order: tuple[int, ...]) -> Quantization | None:
    if quantization is None or quantization.axis is None:
        return quantization
    if quantization.group_size is not None:
        raise ShapeError("permute takes values without scale groups")
    return replace(quantization, axis=order.index(quantization.axis))


@lowers("view.default", "reshape.default", "_unsafe_view.default")
def _lower_reshape(call: AtenCall) -> Value:
    x = call.value("self")
    listed = call["size"] if call.target != "reshape.default" else call["shape"]
    return call.emit(Reshape(with_free_batch(x.type, Reshape(tuple(listed)).infer(x.type)[0].shape)), x)


@lowers("flatten.using_ints")
def _lower_flatten(call: AtenCall) -> Value:
    x = call.value("self")
    if not x.type.rank:
        return call.emit(Reshape((1,)), x)
    start, end = call["start_dim"] % x.type.rank, call["end_dim"] % x.type.rank
    shape = (*x.type.shape[:start], prod(x.type.shape[start : end + 1]), *x.type.shape[end + 1 :])
    return call.emit(Reshape(with_free_batch(x.type, shape)), x)


@lowers("permute.default")
def _lower_permute(call: AtenCall) -> Value:
    x = call.value("self")
    return call.emit(Permute(tuple(d % x.type.rank for d in call["dims"])), x)


@lowers("transpose.int")
def _lower_transpose(call: AtenCall) -> Value:
    x = call.value("self")
    if not x.type.rank:
        return x
    order = list(range(x.type.rank))
    a, b = call["dim0"] % x.type.rank, call["dim1"] % x.type.rank
    order[a], order[b] = order[b], order[a]
    return call.emit(Permute(tuple(order)), x)


def with_free_batch(x: TensorType, shape: tuple[int, ...]) -> tuple[int, ...]:
    """`shape` with its first size left free (-1) where it is that of the operand, so that other batches pass too."""
    keeps_first = bool(shape) and bool(x.shape) and shape[0] == x.shape[0] and prod(shape[1:]) > 0
    return (-1, *shape[1:]) if keeps_first else shape
