"""Data movement that reorders or repeats elements: flip, roll, tile, shuffles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from ..errors import ShapeError
from ..tensor_type import TensorType, Value
from .base import AtenCall, Op, Quantized, lowers, operator
from .channels import Axes, CouplingCall
from .quantize import check_moved
from .shape import emit_permute, emit_reshape
from .slicing import check_axis


@operator("flip")
@dataclass(frozen=True)
class Flip(Op):
    """Dimensions `axes` in reverse order."""

    quantized = Quantized.MOVE

    axes: tuple[int, ...] = ()

    def infer(self, x: TensorType) -> tuple[TensorType, ...]:
        check_moved(x)
        for axis in self.axes:
            check_axis(axis, x)
        if len(set(self.axes)) != len(self.axes):
            raise ShapeError(f"an axis occurs twice in {self.axes}")
        return (x,)

    def reference(self, x: Tensor) -> Tensor:
        return torch.flip(x, self.axes)

    def is_identity(self, operands: Sequence[TensorType | None], outputs: Sequence[TensorType]) -> bool:
        return all(self.operand(operands, "x").shape[axis] <= 1 for axis in self.axes)

    def couple(self, call: CouplingCall) -> tuple[Axes, ...]:
        axes = list(call.operand("x"))
        for place in self.axes:
            size, own = call.size(axes[place]), axes[place]
            axes[place] = call.free(size)
            call.tie_indices(axes[place], torch.arange(size), own, torch.arange(size).flip(0))
        return (tuple(axes),)


@operator("roll")
@dataclass(frozen=True)
class Roll(Op):
    """Dimensions `axes` rotated by `shifts` positions towards the end."""

    quantized = Quantized.MOVE

    axes: tuple[int, ...] = ()
    shifts: tuple[int, ...] = ()

    def infer(self, x: TensorType) -> tuple[TensorType, ...]:
        check_moved(x)
        for axis in self.axes:
            check_axis(axis, x)
        if len(self.axes) != len(self.shifts) or not self.axes:
            raise ShapeError(f"{len(self.shifts)} shifts for {len(self.axes)} axes")
        return (x,)

    def reference(self, x: Tensor) -> Tensor:
        return torch.roll(x, self.shifts, self.axes)

    def is_identity(self, operands: Sequence[TensorType | None], outputs: Sequence[TensorType]) -> bool:
        return not any(self.shifts)

    def couple(self, call: CouplingCall) -> tuple[Axes, ...]:
        x = call.operand("x")
        call.fix(*(x[place] for place in self.axes), why="it is rotated")
        return (x,)


@operator("tile")
@dataclass(frozen=True)
class Tile(Op):
    """The operand repeated `repeats` times along each dimension; leading dimensions may be added."""

    quantized = Quantized.MOVE

    repeats: tuple[int, ...] = ()

    def infer(self, x: TensorType) -> tuple[TensorType, ...]:
        check_moved(x)
        added = len(self.repeats) - x.rank
        if added < 0 or any(n < 0 for n in self.repeats):
            raise ShapeError(
                f"{self.repeats} does not have one number of repetitions for each dimension of {x.shape}"
            )
        old = (*(1,) * added, *x.shape)
        return (x.with_shape(tuple(m * n for m, n in zip(old, self.repeats, strict=True))),)

    def reference(self, x: Tensor) -> Tensor:
        return x.repeat(self.repeats)

    def is_identity(self, operands: Sequence[TensorType | None], outputs: Sequence[TensorType]) -> bool:
        return self.operand(operands, "x").shape == outputs[0].shape

    def couple(self, call: CouplingCall) -> tuple[Axes, ...]:
        x, shape = call.operand("x"), call.outputs[0].shape
        added = len(shape) - len(x)
        axes = [*call.fixed(*shape[:added])]
        for own, size in zip(x, shape[added:], strict=True):
            count = call.size(own)
            axes.append(own if count == size else call.fixed(size)[0] if count <= 1 else call.free(size))
            if axes[-1] != own and count > 1:
                index = torch.arange(size)
                call.tie_indices(axes[-1], index, own, index % count)
        return (tuple(axes),)


@lowers("flip.default")
def _lower_flip(call: AtenCall) -> Value:
    x = call.value("self")
    return call.emit(Flip(tuple(axis % x.type.rank for axis in call["dims"])), x)


@lowers("roll.default")
def _lower_roll(call: AtenCall) -> Value | None:
    x = call.value("self")
    shifts, dims = (
        (listed,) if isinstance(listed, int) else tuple(listed) for listed in (call["shifts"], call["dims"])
    )
    if not dims or not prod(x.type.shape):
        return None
    return call.emit(Roll(tuple(axis % x.type.rank for axis in dims), shifts), x)


@lowers("repeat.default", "tile.default")
def _lower_tile(call: AtenCall) -> Value:
    x = call.value("self")
    listed = call["repeats"] if call.target == "repeat.default" else call["dims"]
    return call.emit(Tile((*(1,) * (x.type.rank - len(listed)), *listed)), x)


@lowers("channel_shuffle.default")
def _lower_channel_shuffle(call: AtenCall) -> Value:
    x, groups = call.value("self"), call["groups"]
    n, c, *spatial = x.type.shape
    split = emit_reshape(call, x, (n, groups, c // groups, *spatial))
    order = (0, 2, 1, *range(3, split.type.rank))
    return emit_reshape(call, emit_permute(call, split, order), x.type.shape)


@lowers("pixel_shuffle.default")
def _lower_pixel_shuffle(call: AtenCall) -> Value:
    x, r = call.value("self"), call["upscale_factor"]
    *batch, c, h, w = x.type.shape
    split = emit_reshape(call, x, (*batch, c // r**2, r, r, h, w))
    moved = emit_permute(call, split, _behind(batch, (0, 3, 1, 4, 2)))
    return emit_reshape(call, moved, (*batch, c // r**2, h * r, w * r))


@lowers("pixel_unshuffle.default")
def _lower_pixel_unshuffle(call: AtenCall) -> Value:
    x, r = call.value("self"), call["downscale_factor"]
    *batch, c, h, w = x.type.shape
    split = emit_reshape(call, x, (*batch, c, h // r, r, w // r, r))
    moved = emit_permute(call, split, _behind(batch, (0, 2, 4, 1, 3)))
    return emit_reshape(call, moved, (*batch, c * r**2, h // r, w // r))


def _behind(batch: Sequence[int], order: Sequence[int]) -> tuple[int, ...]:
    """An order of dimensions after the batch dimensions, which stay in place."""
    return (*range(len(batch)), *(len(batch) + axis for axis in order))
