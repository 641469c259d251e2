"""Data movement that takes parts and joins them: slice, select, split, concat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from ..errors import ShapeError
from ..sizes import largest, smallest
from ..tensor_type import TensorType, Value
from .base import AtenCall, Op, Quantized, lowers, operator
from .channels import Axes, CouplingCall, Cut, tie_part
from .quantize import check_moved
from .shape import emit_unsqueeze


@operator("slice")
@dataclass(frozen=True)
class Slice(Op):
    """Every `step`-th element of dimension `axis` from `start` up to `stop`, or to the end if `stop` is None."""

    quantized = Quantized.MOVE

    axis: int = 0
    start: int = 0
    stop: int | None = None
    step: int = 1

    def infer(self, x: TensorType) -> tuple[TensorType, ...]:
        check_axis(self.axis, x)
        check_moved(x)
        if self.start < 0 or self.step < 1 or (self.stop is not None and self.stop < 0):
            raise ShapeError("a slice counts from the front: start and stop at least 0, step at least 1")
        size = x.shape[self.axis]
        stop = size if self.stop is None else smallest(self.stop, size)
        count = -(-largest(stop - self.start, 0) // self.step)
        return (x.with_shape((*x.shape[: self.axis], count, *x.shape[self.axis + 1 :])),)

    def reference(self, x: Tensor) -> Tensor:
        window = (slice(None),) * self.axis
        return x[(*window, slice(self.start, self.stop, self.step))]

    def is_identity(self, operands: Sequence[TensorType | None], outputs: Sequence[TensorType]) -> bool:
        return self.operand(operands, "x").shape == outputs[0].shape and self.step == 1

    def couple(self, call: CouplingCall) -> tuple[Axes, ...]:
        x, size = call.operand("x"), call.outputs[0].shape[self.axis]
        if self.step != 1:
            call.fix(x[self.axis], why="elements are selected in steps along it")
            return ((*x[: self.axis], *call.fixed(size), *x[self.axis + 1 :]),)
        return ((*x[: self.axis], tie_part(call, x[self.axis], self.start, size), *x[self.axis + 1 :]),)

    def cut(self, cut: Cut) -> Slice:
        """The slice with indices among the kept elements."""
        kept = cut.operand("x")[self.axis]
        if self.step != 1 or len(kept) == int(cut.type("x").shape[self.axis]):
            return self
        start = int((kept < self.start).sum())
        return Slice(self.axis, start, None if self.stop is None else int((kept < self.stop).sum()))


@operator("select")
@dataclass(frozen=True)
class Select(Op):
    """Element `index` of dimension `axis`; the dimension is removed."""

    quantized = Quantized.MOVE

    axis: int = 0
    index: int = 0

    def infer(self, x: TensorType) -> tuple[TensorType, ...]:
        check_axis(self.axis, x)
        check_moved(x)
        if not 0 <= self.index < x.shape[self.axis]:
            raise ShapeError(f"index {self.index} in a dimension of size {x.shape[self.axis]}")
        return (x.with_shape((*x.shape[: self.axis], *x.shape[self.axis + 1 :])),)

    def reference(self, x: Tensor) -> Tensor:
        return x.select(self.axis, self.index)

    def couple(self, call: CouplingCall) -> tuple[Axes, ...]:
        x = call.operand("x")
        call.fix(x[self.axis], why="one element of it is selected")
        return ((*x[: self.axis], *x[self.axis + 1 :]),)


@operator("split")
@dataclass(frozen=True)
class Split(Op):
    """Consecutive parts of dimension `axis`, one result for each of `sizes`."""

    quantized = Quantized.MOVE

    axis: int = 0
    sizes: tuple[int, ...] = ()

    def infer(self, x: TensorType) -> tuple[TensorType, ...]:
        check_axis(self.axis, x)
        check_moved(x)
        if not self.sizes or min(self.sizes) < 0 or sum(self.sizes) != x.shape[self.axis]:
            raise ShapeError(f"parts {self.sizes} do not add up to {x.shape[self.axis]}")
        return tuple(
            x.with_shape((*x.shape[: self.axis], size, *x.shape[self.axis + 1 :])) for size in self.sizes
        )

    def reference(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.split_with_sizes(x, self.sizes, self.axis))

    def is_identity(self, operands: Sequence[TensorType | None], outputs: Sequence[TensorType]) -> bool:
        return len(outputs) == 1

    def couple(self, call: CouplingCall) -> tuple[Axes, ...]:
        x, parts, start = call.operand("x"), [], 0
        for size in self.sizes:
            part = tie_part(call, x[self.axis], start, size)
            parts.append((*x[: self.axis], part, *x[self.axis + 1 :]))
            start += size
        return tuple(parts)

    def cut(self, cut: Cut) -> Split:
        return Split(self.axis, tuple(cut.shape(result=i)[self.axis] for i in range(len(self.sizes))))


@operator("concat")
@dataclass(frozen=True)
class Concat(Op):
    """Operands joined along dimension `axis`."""

    quantized = Quantized.MOVE

    axis: int = 0

    def infer(self, *operands: TensorType) -> tuple[TensorType, ...]:
        if not operands:
            raise ShapeError("concat needs an operand")
        first = operands[0]
        check_axis(self.axis, first)
        check_moved(*operands)
        around = {(*t.shape[: self.axis], *t.shape[self.axis + 1 :]) for t in operands}
        if len(around) > 1 or any(t.rank != first.rank for t in operands):
            raise ShapeError(f"{', '.join(str(t.shape) for t in operands)} differ outside axis {self.axis}")
        total = sum(t.shape[self.axis] for t in operands)
        return (first.with_shape((*first.shape[: self.axis], total, *first.shape[self.axis + 1 :])),)

    def reference(self, *operands: Tensor) -> Tensor:
        return torch.cat(operands, self.axis)

    def is_identity(self, operands: Sequence[TensorType | None], outputs: Sequence[TensorType]) -> bool:
        return len(operands) == 1

    def couple(self, call: CouplingCall) -> tuple[Axes, ...]:
        parts = [axes for axes in call.operands if axes is not None]
        joined, start = call.free(call.outputs[0].shape[self.axis]), 0
        for part in parts:
            size = call.size(part[self.axis])
            index = torch.arange(size)
            call.tie_indices(joined, index + start, part[self.axis], index)
            start += size
            for place, (own, first) in enumerate(zip(part, parts[0], strict=True)):
                if place != self.axis:
                    call.tie(first, own)
        return ((*parts[0][: self.axis], joined, *parts[0][self.axis + 1 :]),)


def check_axis(axis: int, x: TensorType) -> None:
    """Raises ShapeError unless `x` has dimension `axis`, counted from the front."""
    if not 0 <= axis < x.rank:
        raise ShapeError(f"{x.shape} has no dimension {axis}")


@lowers("slice.Tensor")
def _lower_slice(call: AtenCall) -> Value:
    x = call.value("self")
    axis = call["dim"] % x.type.rank
    size = x.type.shape[axis]
    start, stop = _place(call["start"], size, default=0), _place(call["end"], size, default=size)
    return _emit_slice(call, x, axis, start, stop, call["step"])


@lowers("narrow.default")
def _lower_narrow(call: AtenCall) -> Value:
    x = call.value("self")
    axis = call["dim"] % x.type.rank
    start = call["start"] + (x.type.shape[axis] if call["start"] < 0 else 0)
    return _emit_slice(call, x, axis, start, start + call["length"])


def _place(given: int | None, size: int, *, default: int) -> int:
    """An end of a slice of `size` elements, counted from the front."""
    if given is None:
        return default
    return smallest(largest(given + size, 0) if given < 0 else given, size)


def _emit_slice(call: AtenCall, x: Value, axis: int, start: int, stop: int, step: int = 1) -> Value:
    """`x` itself if the slice is the whole dimension; a slice to the end stays one if the size of that dimension
    changes.
    """
    size = x.type.shape[axis]
    if (start, stop, step) == (0, size, 1):
        return x
    return call.emit(Slice(axis, start, None if stop == size else largest(start, stop), step), x)


@lowers("slice_scatter.default")
def _lower_slice_scatter(call: AtenCall) -> Value | None:
    """Concatenation of the slice before the written range, the written values, and the slice after it."""
    x, part = call.value("self"), call.value("src")
    axis = call["dim"] % x.type.rank
    size = x.type.shape[axis]
    start, stop = _place(call["start"], size, default=0), _place(call["end"], size, default=size)
    if call["step"] != 1 or stop <= start or part.type.dtype is not x.type.dtype:
        return None
    parts = [part]
    if start != 0:
        parts.insert(0, _emit_slice(call, x, axis, 0, start))
    if stop != size:
        parts.append(_emit_slice(call, x, axis, stop, size))
    return part if len(parts) == 1 else call.emit(Concat(axis), *parts)


@lowers("select.int")
def _lower_select(call: AtenCall) -> Value:
    x = call.value("self")
    axis = call["dim"] % x.type.rank
    index = call["index"] + (x.type.shape[axis] if call["index"] < 0 else 0)
    return call.emit(Select(axis, index), x)


@lowers("unbind.int")
def _lower_unbind(call: AtenCall) -> tuple[Value, ...]:
    x = call.value("self")
    axis = call["dim"] % x.type.rank
    return tuple(call.emit(Select(axis, index), x) for index in range(x.type.shape[axis]))


@lowers("split.Tensor", "split.sizes", "split_with_sizes.default", "chunk.default")
def _lower_split(call: AtenCall) -> tuple[Value, ...] | None:
    x = call.value("self")
    axis = call["dim"] % x.type.rank
    total = x.type.shape[axis]
    if call.target == "split_with_sizes.default":
        sizes = tuple(call["split_sizes"])
    elif call.target == "split.sizes":
        sizes = tuple(call["split_size"])
    else:
        each = call["split_size"] if call.target == "split.Tensor" else -(-total // call["chunks"])
        if not total or not each:
            return None
        sizes = tuple(min(each, total - start) for start in range(0, total, each))
    return call.emit_many(Split(axis, sizes), x)


@lowers("tensor_split.indices")
def _lower_tensor_split(call: AtenCall) -> tuple[Value, ...] | None:
    x, at = call.value("self"), list(call["indices"])
    axis = call["dim"] % x.type.rank
    ends = [0, *at, x.type.shape[axis]]
    if ends != sorted(ends):
        return None
    return call.emit_many(Split(axis, tuple(b - a for a, b in pairwise(ends))), x)


@lowers("cat.default", "concat.default", "concatenate.default")
def _lower_concat(call: AtenCall) -> Value | None:
    values = call.values("tensors")
    if len({v.type.rank for v in values}) != 1 or len({v.type.dtype for v in values}) != 1:
        return None
    return call.emit(Concat(call["dim"] % values[0].type.rank), *values)


@lowers("stack.default")
def _lower_stack(call: AtenCall) -> Value | None:
    values = call.values("tensors")
    if len({v.type.dtype for v in values}) != 1:
        return None
    axis = call["dim"] % (values[0].type.rank + 1)
    return call.emit(Concat(axis), *(emit_unsqueeze(call, v, axis) for v in values))
