"""Padding: elements added around the last dimensions, or removed where a number is negative."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from ..errors import ShapeError
from ..tensor_type import TensorType, Value
from .base import AtenCall, IntegerCall, Op, Quantized, lowers, operator
from .channels import Axes, CouplingCall, Cut
from .facts import Facts
from .quantize import check_moved
from .spatial import pairs

MODES = ("constant", "reflect", "replicate", "circular")


@operator("pad")
@dataclass(frozen=True)
class Pad(Op):
    """The operand with `padding` = (before, after) for each of the last dimensions, in their order.

    `mode` is "constant" (elements of `value`), "reflect", "replicate" or "circular".
    """

    quantized = Quantized.MOVE

    padding: tuple[int, ...] = ()
    mode: str = "constant"
    value: float = 0.0

    @property
    def facts(self) -> Facts:
        return replace(
            super().facts,
            selects=self.mode != "constant",
            homogeneous=self.mode != "constant" or not self.value,
        )

    def infer(self, x: TensorType) -> tuple[TensorType, ...]:
        check_moved(x)
        added = pairs(self.padding)
        if self.mode not in MODES or len(added) > x.rank or len(self.padding) % 2:
            raise ShapeError(f"{self.mode} padding {self.padding} does not fit {x.shape}")
        kept = x.rank - len(added)
        for size, (before, after) in zip(x.shape[kept:], added, strict=True):
            self._check(size, before, after)
        sizes = [n + before + after for n, (before, after) in zip(x.shape[kept:], added, strict=True)]
        return (x.with_shape((*x.shape[:kept], *sizes)),)

    def reference(self, x: Tensor) -> Tensor:
        return self._padded(x, self.value)

    def integer(self, call: IntegerCall) -> Tensor:
        return self._padded(call.operand("x"), self.fill(call.output))

    def is_identity(self, operands: Sequence[TensorType | None], outputs: Sequence[TensorType]) -> bool:
        return not any(self.padding)

    def couple(self, call: CouplingCall) -> tuple[Axes, ...]:
        axes = list(call.operand("x"))
        for place, (before, after) in enumerate(pairs(self.padding), len(axes) - len(self.padding) // 2):
            if not before and not after:
                continue
            size = call.size(axes[place])
            if self.mode != "constant" or min(before, after) < 0 or size == 1:
                call.fix(axes[place], why="it is padded with its own elements, or cut")
                axes[place] = call.fixed(size + before + after)[0]
            else:
                padded = call.free(size + before + after)
                call.tie_indices(padded, torch.arange(before, before + size), axes[place], torch.arange(size))
                axes[place] = padded
        return (tuple(axes),)

    def cut(self, cut: Cut) -> Pad:
        """Reduces the padding along pruned channels."""
        x, y = cut.operand("x"), cut.results[0]
        first = len(x) - len(self.padding) // 2
        padding: list[int] = []
        for place, (before, after) in enumerate(pairs(self.padding), first):
            removed = len(y[place]) != cut.outputs[0].shape[place]
            added = int((y[place] < before).sum()) if removed else before
            padding += [added, len(y[place]) - len(x[place]) - added if removed else after]
        return replace(self, padding=tuple(padding))

    def fill(self, x: TensorType) -> int:
        """The integer that represents `value`: the zero point if it is 0."""
        assert x.quantization is not None
        return int(x.quantization.quantize(torch.tensor(self.value, dtype=torch.float64)).item())

    def _check(self, size: int, before: int, after: int) -> None:
        limit = {"reflect": size - 1, "circular": size + min(before, 0) + min(after, 0)}.get(self.mode)
        if limit is not None and max(before, after) > limit:
            raise ShapeError(f"{self.mode} padding of {max(before, after)} around {size} elements")
        if self.mode != "constant" and size + min(before, 0) + min(after, 0) < 1:
            raise ShapeError(f"{self.mode} padding of no elements")
        if size + before + after < 0 or min(before, after) < -size:
            raise ShapeError(f"padding ({before}, {after}) cuts more than {size} elements")

    def _padded(self, x: Tensor, value: float) -> Tensor:
        flat = [n for pair in reversed(pairs(self.padding)) for n in pair]
        if self.mode == "constant":
            return functional.pad(x, flat, value=value)
        return self._gathered(x)

    def _gathered(self, x: Tensor) -> Tensor:
        """Padding of any element type and rank: each dimension is indexed by the positions of its source elements."""
        added = pairs(self.padding)
        for axis, (before, after) in enumerate(added, start=x.ndim - len(added)):
            size = x.shape[axis]
            at = torch.arange(-before, size + after)
            if self.mode == "reflect":
                at = (size - 1) - (at.abs() - (size - 1)).abs()
            elif self.mode == "replicate":
                at = at.clamp(0, size - 1)
            else:  # elements that are cut off do not reappear on the other side
                first, kept = max(-before, 0), size + min(before, 0) + min(after, 0)
                at = first + (at - first) % kept
            x = x.index_select(axis, at)
        return x


@lowers("pad.default", "constant_pad_nd.default")
def _lower_pad(call: AtenCall) -> Value | None:
    x, flat = call.value("self"), list(call["pad"])
    mode = call["mode"] if call.target == "pad.default" else "constant"
    if mode not in MODES or not x.type.dtype.is_floating:
        return None
    return _emit(call, x, flat, mode, call["value"] or 0.0)


@lowers("reflection_pad1d.default", "reflection_pad2d.default", "reflection_pad3d.default")
def _lower_reflection(call: AtenCall) -> Value:
    return _emit(call, call.value("self"), call["padding"], "reflect", 0.0)


@lowers("replication_pad1d.default", "replication_pad2d.default", "replication_pad3d.default")
def _lower_replication(call: AtenCall) -> Value:
    return _emit(call, call.value("self"), call["padding"], "replicate", 0.0)


def _emit(call: AtenCall, x: Value, flat: Sequence[int], mode: str, value: float) -> Value:
    """Emits the padding; torch lists the last dimension first."""
    if not any(flat):
        return x
    padding = tuple(n for pair in reversed(pairs(flat)) for n in pair)
    return call.emit(Pad(padding, mode, float(value)), x)
