"""Data movement that keeps the elements and changes only the view: reshape, permute, expand, copy."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor

from ..encoding import Encoding
from ..errors import ShapeError
from ..tensor_type import TensorType, Value
from .base import AtenCall, Op, Quantized, lowers, operator
from .channels import Axes, CouplingCall, Cut
from .quantize import check_moved


@operator("reshape")
@dataclass(frozen=True)
class Reshape(Op):
    """The same elements in order, with sizes `shape`; one size may be -1 and is derived from the others."""

    quantized = Quantized.MOVE

    shape: tuple[int, ...] = ()

    def infer(self, x: TensorType) -> tuple[TensorType, ...]:
        known = prod(n for n in self.shape if n != -1)
        free = self.shape.count(-1)
        if free > 1 or (free and (not known or x.numel % known)) or (not free and known != x.numel):
            raise ShapeError(f"{x.shape} has {x.numel} elements; they do not fill {self.shape}")
        check_moved(x)
        return (x.with_shape(tuple(x.numel // known if n == -1 else n for n in self.shape)),)

    def reference(self, x: Tensor) -> Tensor:
        return x.reshape(self.shape)

    def is_identity(self, operands: Sequence[TensorType | None], outputs: Sequence[TensorType]) -> bool:
        return self.operand(operands, "x").shape == outputs[0].shape

    def couple(self, call: CouplingCall) -> tuple[Axes, ...]:
        return (call.regroup(call.operand("x"), call.outputs[0].shape),)

    def cut(self, cut: Cut) -> Reshape:
        return Reshape(_with_free(cut.shape(), self.shape))


@operator("permute")
@dataclass(frozen=True)
class Permute(Op):
    """Dimensions in another order: result dimension i is operand dimension `order[i]`."""

    quantized = Quantized.MOVE

    order: tuple[int, ...] = ()

    def infer(self, x: TensorType) -> tuple[TensorType, ...]:
        if sorted(self.order) != list(range(x.rank)):
            raise ShapeError(f"{self.order} is not an order of {x.rank} dimensions")
        shape = tuple(x.shape[i] for i in self.order)
        return (TensorType(shape, x.dtype, _permuted(x.quantization, self.order)),)

    def reference(self, x: Tensor) -> Tensor:
        return x.permute(self.order)

    def is_identity(self, operands: Sequence[TensorType | None], outputs: Sequence[TensorType]) -> bool:
        return list(self.order) == sorted(self.order)

    def couple(self, call: CouplingCall) -> tuple[Axes, ...]:
        x = call.operand("x")
        return (tuple(x[i] for i in self.order),)


@operator("expand")
@dataclass(frozen=True)
class Expand(Op):
    """Dimensions of size 1 repeated to sizes `shape`; -1 keeps a size, and leading dimensions may be added."""

    quantized = Quantized.MOVE

    shape: tuple[int, ...] = ()

    def infer(self, x: TensorType) -> tuple[TensorType, ...]:
        check_moved(x)
        added = len(self.shape) - x.rank
        old = (*(1,) * added, *x.shape)
        if added < 0 or any(n == -1 for n in self.shape[:added]):
            raise ShapeError(f"{x.shape} does not expand to {self.shape}")
        shape = tuple(m if n == -1 else n for m, n in zip(old, self.shape, strict=True))
        if any(m not in (1, n) for m, n in zip(old, shape, strict=True)):
            raise ShapeError(f"{x.shape} does not expand to {self.shape}")
        return (x.with_shape(shape),)

    def reference(self, x: Tensor) -> Tensor:
        return x.expand(self.shape)

    def is_identity(self, operands: Sequence[TensorType | None], outputs: Sequence[TensorType]) -> bool:
        return self.operand(operands, "x").shape == outputs[0].shape

    def couple(self, call: CouplingCall) -> tuple[Axes, ...]:
        x, shape = call.operand("x"), call.outputs[0].shape
        added = len(shape) - len(x)
        axes = [call.free(n, weak=True) for n in shape[:added]]
        for axis, size in zip(x, shape[added:], strict=True):
            axes.append(axis if call.size(axis) == size else call.free(size, weak=True))
        return (tuple(axes),)

    def cut(self, cut: Cut) -> Expand:
        return Expand(_with_free(cut.shape(), self.shape))


@operator("copy")
@dataclass(frozen=True)
class Copy(Op):
    """The same value, dense in memory. It affects only speed and the last bits of a torch computation."""

    quantized = Quantized.MOVE

    def infer(self, x: TensorType) -> tuple[TensorType, ...]:
        return (x,)

    def reference(self, x: Tensor) -> Tensor:
        return x.contiguous()

    def is_identity(self, operands: Sequence[TensorType | None], outputs: Sequence[TensorType]) -> bool:
        return True

    def couple(self, call: CouplingCall) -> tuple[Axes, ...]:
        return (call.operand("x"),)


def _with_free(shape: tuple[int, ...], written: tuple[int, ...]) -> tuple[int, ...]:
    """`shape`, with -1 wherever `written` has it."""
    return tuple(-1 if old == -1 else new for old, new in zip(written, shape, strict=True))


def _permuted(quantization: Encoding | None, order: tuple[int, ...]) -> Encoding | None:
    if quantization is None or quantization.axis is None:
        return quantization
    if quantization.group_size is not None:
        raise ShapeError("permute supports only values without scale groups")
    return replace(quantization, axis=order.index(quantization.axis))


def with_free_batch(x: TensorType, shape: tuple[int, ...]) -> tuple[int, ...]:
    """`shape` with its first size free (-1) if it is the operand's, so that other batch sizes are accepted."""
    keeps_first = bool(shape) and bool(x.shape) and shape[0] == x.shape[0] and prod(shape[1:]) > 0
    return (-1, *shape[1:]) if keeps_first else shape


def emit_reshape(call: AtenCall, x: Value, shape: Sequence[int]) -> Value:
    """`x` with other sizes of the same elements."""
    return call.emit(Reshape(with_free_batch(x.type, tuple(shape))), x)


def emit_permute(call: AtenCall, x: Value, order: Sequence[int]) -> Value:
    """`x` with its dimensions in this order."""
    return x if list(order) == list(range(x.type.rank)) else call.emit(Permute(tuple(order)), x)


def emit_squeeze(call: AtenCall, x: Value, axes: Sequence[int]) -> Value:
    """`x` without those of the dimensions `axes` that have size 1."""
    kept = [i for i, n in enumerate(x.type.shape) if i not in axes or n != 1]
    if len(kept) == x.type.rank:
        return x
    return call.emit(Reshape(_first_free([x.type.shape[i] for i in kept], 0)), x)


def emit_unsqueeze(call: AtenCall, x: Value, axis: int) -> Value:
    """`x` with a dimension of size 1 inserted at `axis` of the result."""
    shape = [*x.type.shape[:axis], 1, *x.type.shape[axis:]]
    return call.emit(Reshape(_first_free(shape, 1 if axis == 0 else 0)), x)


def emit_on_batch(call: AtenCall, x: Value, rank: int, emit: Callable[[Value], Value]) -> Value:
    """Result of `emit` on `x` [n, c, ...] of `rank` dimensions; [c, ...] is treated as a batch of one."""
    if x.type.rank == rank:
        return emit(x)
    return emit_squeeze(call, emit(emit_unsqueeze(call, x, 0)), [0])


def _first_free(shape: Sequence[int], at: int) -> tuple[int, ...]:
    others = [n for i, n in enumerate(shape) if i != at]
    if at >= len(shape) or not prod(others):
        return tuple(shape)
    return tuple(-1 if i == at else n for i, n in enumerate(shape))


@lowers("view.default", "reshape.default", "_unsafe_view.default", "reshape_as.default", "view_as.default")
def _lower_reshape(call: AtenCall) -> Value:
    x = call.value("self")
    if call.target.endswith("_as.default"):
        return emit_reshape(call, x, call.value("other").type.shape)
    listed = call["shape"] if call.target == "reshape.default" else call["size"]
    return emit_reshape(call, x, Reshape(tuple(listed)).infer(x.type)[0].shape)


@lowers("flatten.using_ints")
def _lower_flatten(call: AtenCall) -> Value:
    x = call.value("self")
    if not x.type.rank:
        return emit_reshape(call, x, (1,))
    start, end = call["start_dim"] % x.type.rank, call["end_dim"] % x.type.rank
    shape = (*x.type.shape[:start], prod(x.type.shape[start : end + 1]), *x.type.shape[end + 1 :])
    return emit_reshape(call, x, shape)


@lowers("unflatten.int")
def _lower_unflatten(call: AtenCall) -> Value:
    x = call.value("self")
    axis = call["dim"] % x.type.rank
    sizes = Reshape(tuple(call["sizes"])).infer(TensorType((x.type.shape[axis],)))[0].shape
    return emit_reshape(call, x, (*x.type.shape[:axis], *sizes, *x.type.shape[axis + 1 :]))


@lowers("squeeze.default", "squeeze.dim", "squeeze.dims")
def _lower_squeeze(call: AtenCall) -> Value:
    x = call.value("self")
    if call.target == "squeeze.default" or not x.type.rank:
        return emit_squeeze(call, x, range(x.type.rank))
    listed = [call["dim"]] if isinstance(call["dim"], int) else call["dim"]
    return emit_squeeze(call, x, [axis % x.type.rank for axis in listed])


@lowers("unsqueeze.default")
def _lower_unsqueeze(call: AtenCall) -> Value:
    x = call.value("self")
    return emit_unsqueeze(call, x, call["dim"] % (x.type.rank + 1))


@lowers("expand.default", "expand_as.default", "broadcast_to.default")
def _lower_expand(call: AtenCall) -> Value:
    x = call.value("self")
    size = call.value("other").type.shape if call.target == "expand_as.default" else call["size"]
    old = (*(None,) * (len(size) - x.type.rank), *x.type.shape)
    shape = tuple(-1 if n == m else n for m, n in zip(old, size, strict=True))
    return x if shape == (-1,) * x.type.rank else call.emit(Expand(shape), x)


@lowers("fill.Tensor")
def _lower_fill_with_tensor(call: AtenCall) -> Value | None:
    x, value = call.value("self"), call.value("value")
    if value.type.rank or value.type.dtype is not x.type.dtype:
        return None
    return call.emit(Expand(x.type.shape), value)


_FILLINGS: dict[str, str | int] = {
    "fill.Scalar": "value",
    "full_like.default": "fill_value",
    "new_full.default": "fill_value",
    "zero.default": 0,
    "zeros_like.default": 0,
    "new_zeros.default": 0,
    "ones_like.default": 1,
    "new_ones.default": 1,
}


@lowers(*_FILLINGS)
def _lower_filling(call: AtenCall) -> Value:
    """One number for all elements, independent of the operand's elements."""
    x, filling = call.value("self"), _FILLINGS[call.target]
    shape = tuple(call["size"]) if call.target.startswith("new_") else x.type.shape
    chosen = None if call.target in ("fill.Scalar", "zero.default") else call["dtype"]
    number = call[filling] if isinstance(filling, str) else filling
    tensor = torch.full((), number, dtype=chosen or x.type.dtype.torch)
    return call.emit(Expand(shape), call.constant("filling", tensor))


@lowers("permute.default", "movedim.int", "movedim.intlist")
def _lower_permute(call: AtenCall) -> Value:
    x = call.value("self")
    if call.target == "permute.default":
        return emit_permute(call, x, [axis % x.type.rank for axis in call["dims"]])
    source, target = (
        [axis % x.type.rank for axis in ([listed] if isinstance(listed, int) else listed)]
        for listed in (call["source"], call["destination"])
    )
    placed = dict(zip(target, source, strict=True))
    rest = iter([axis for axis in range(x.type.rank) if axis not in source])
    return emit_permute(call, x, [placed[i] if i in placed else next(rest) for i in range(x.type.rank)])


@lowers("transpose.int", "swapaxes.default", "swapdims.default", "t.default", "mT.default", "numpy_T.default")
def _lower_transpose(call: AtenCall) -> Value:
    x = call.value("self")
    order = list(range(x.type.rank))
    first, second = {
        "transpose.int": ("dim0", "dim1"),
        "swapdims.default": ("dim0", "dim1"),
        "swapaxes.default": ("axis0", "axis1"),
    }.get(call.target, ("", ""))
    if call.target == "numpy_T.default" or (call.target == "t.default" and x.type.rank == 2):
        order.reverse()
    elif call.target == "mT.default":
        order[-2:] = order[:-3:-1]
    elif first and x.type.rank:
        a, b = call[first] % x.type.rank, call[second] % x.type.rank
        order[a], order[b] = order[b], order[a]
    return emit_permute(call, x, order)


@lowers("contiguous.default", "clone.default")
def _lower_copy(call: AtenCall) -> Value | None:
    x, memory_format = call.value("self"), call["memory_format"]
    if memory_format is None or memory_format == torch.preserve_format:
        return x
    is_dense = memory_format in (torch.contiguous_format, 0)  # the default of a schema is its number
    return call.emit(Copy(), x) if is_dense else None


@lowers("detach.default", "alias.default", "lift_fresh_copy.default")
def _lower_alias(call: AtenCall) -> Value:
    return call.value("self")


@lowers(
    "dropout.default", "feature_dropout.default", "alpha_dropout.default", "feature_alpha_dropout.default"
)
def _lower_dropout(call: AtenCall) -> Value | None:
    return None if call["train"] else call.value("input")
