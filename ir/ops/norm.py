"""Normalization layers. Batch norm stays a separate operator until a pass folds it into the layer before it.

The other norms compute statistics of their operand. On integers the statistics are integers, and root and reciprocal
are computed bit by bit (`norm_form`).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from ..errors import ShapeError
from ..tensor_type import TensorType, Value
from .base import AtenCall, IntegerCall, Op, Quantized, check_floats, lowers, operator
from .channels import Axes, CouplingCall, Cut, tie_all, tie_grouped
from .facts import Facts
from .norm_form import NormForm
from .quantize import per_tensor_types


@operator("batch_norm")
@dataclass(frozen=True)
class BatchNorm(Op):
    """(x - mean) / sqrt(var + eps) * weight + bias over dimension 1, with stored statistics (evaluation mode).

    Operands: x [n, c, ...], weight [c] or none, bias [c] or none, mean [c], var [c].
    """

    learned_operands = ("weight", "bias")
    facts = Facts(monotone=("bias",), piecewise_linear=(("x", "bias", "mean"), ("weight", "bias")))

    eps: float = 1e-5

    def infer(
        self,
        x: TensorType,
        weight: TensorType | None,
        bias: TensorType | None,
        mean: TensorType,
        var: TensorType,
    ) -> tuple[TensorType, ...]:
        if x.rank < 2:
            raise ShapeError(f"batch norm of an input of rank {x.rank}")
        return _normalized(self, x, (x.shape[1],), weight=weight, bias=bias, mean=mean, variance=var)

    def reference(
        self, x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, var: Tensor
    ) -> Tensor:
        return functional.batch_norm(x, mean, var, weight, bias, training=False, eps=self.eps)

    def couple(self, call: CouplingCall) -> tuple[Axes, ...]:
        return (_couple_channels(call, call.operand("x")[1:2]),)


@dataclass(frozen=True)
class Groups:
    """Groups of elements over which a norm computes statistics: the operand's dimensions, some of them split, and the
    reduced ones.

    `parameters` is the shape of weight and bias among these dimensions.
    """

    sizes: tuple[int, ...]
    axes: tuple[int, ...]
    parameters: tuple[int, ...]

    @property
    def count(self) -> int:
        """Number of elements of a group."""
        return prod(self.sizes[axis] for axis in self.axes)


@dataclass(frozen=True)
class StatisticsNorm(Op):
    """Base of the norms with statistics of the operand. Operands: x, weight or none, bias or none."""

    quantized = Quantized.COMPUTE
    real_operands: ClassVar[tuple[str, ...]] = ("weight", "bias")
    learned_operands: ClassVar[tuple[str, ...]] = ("weight", "bias")
    facts = Facts(monotone=("bias",), piecewise_linear=(("weight", "bias"),))

    @property
    def is_centred(self) -> bool:
        """True if the mean is subtracted."""
        return True

    @property
    @abstractmethod
    def epsilons(self) -> tuple[float, float]:
        """Epsilon added inside the square root, and epsilon added to the root."""

    @abstractmethod
    def groups_of(self, shape: tuple[int, ...]) -> Groups:
        """The groups of an operand of this shape."""

    def check_quantized(self, operands: Sequence[TensorType | None], outputs: Sequence[TensorType]) -> None:
        x, *parameters = operands
        if any(q.bits not in (8, 16) for q in per_tensor_types(x, outputs[0])):
            raise ShapeError(f"{self.name} needs operands and results of 8 or 16 bits")
        self.form(x, outputs[0])
        if self.epsilons[1]:
            raise ShapeError(f"{self.name} that adds to the root computes on reals")
        if any(type is not None and type.is_quantized for type in parameters):
            raise ShapeError(f"{self.name} needs weight and bias as reals")

    def integer(self, call: IntegerCall) -> Tensor:
        x = call.operand("x")
        form = self.form(call.type("x"), call.output, *call.operands[1:])
        groups = self.groups_of(tuple(x.shape))
        (qy,) = per_tensor_types(call.output)
        return form.apply(x.reshape(groups.sizes), groups.axes, groups.parameters, qy).reshape(x.shape)

    def form(
        self, x: TensorType | None, y: TensorType, weight: Tensor | None = None, bias: Tensor | None = None
    ) -> NormForm:
        """The integer form between two quantized types; OverflowBoundError if none exists."""
        qx, qy = per_tensor_types(x, y)
        count, eps = self.groups_of(y.shape).count, self.epsilons[0]
        return NormForm.of(qx, qy, count=count, eps=eps, is_centred=self.is_centred, weight=weight, bias=bias)


@dataclass(frozen=True)
class RowNorm(StatisticsNorm):
    """Base of the norms with statistics over some dimensions of each sample, with sizes `shape`.

    The dimensions are `axes`, ascending, or the last ones if it is empty. Weight and bias have these sizes.
    `root_eps` is added to the root before the division.
    """

    shape: tuple[int, ...] = ()
    eps: float | None = None
    axes: tuple[int, ...] = ()
    root_eps: float = 0.0

    def dimensions(self, rank: int) -> tuple[int, ...]:
        """The dimensions of an operand of this rank over which statistics are taken."""
        return self.axes or tuple(range(rank - len(self.shape), rank))

    @property
    def epsilons(self) -> tuple[float, float]:
        return torch.finfo(torch.float32).eps if self.eps is None else self.eps, self.root_eps

    def groups_of(self, shape: tuple[int, ...]) -> Groups:
        axes = self.dimensions(len(shape))
        return Groups(shape, axes, tuple(n if axis in axes else 1 for axis, n in enumerate(shape)))

    def check_shape(self, x: TensorType) -> None:
        """Raises ShapeError unless `x` has these sizes in these dimensions."""
        axes = self.dimensions(x.rank)
        exist = axes == tuple(sorted(set(axes))) and all(0 <= axis < x.rank for axis in axes)
        if not self.shape or not exist or tuple(x.shape[axis] for axis in axes) != self.shape:
            where = f"dimensions {self.axes}" if self.axes else "last dimensions"
            raise ShapeError(f"the {where} of {x.shape} are not {self.shape}")

    def couple(self, call: CouplingCall) -> tuple[Axes, ...]:
        x = call.operand("x")
        channels = tuple(x[axis] for axis in self.dimensions(len(x)))
        call.pool(*channels)
        return (_couple_channels(call, channels),)

    def cut(self, cut: Cut) -> RowNorm:
        left = cut.shape()
        return replace(self, shape=tuple(left[axis] for axis in self.dimensions(len(left))))


@operator("layer_norm")
@dataclass(frozen=True)
class LayerNorm(RowNorm):
    """(x - mean) / (sqrt(var + eps) + root_eps) * weight + bias, statistics over `axes`, or the last dimensions.

    Operands: x, weight [*shape] or none, bias [*shape] or none; `shape` are the sizes of these dimensions.
    """

    eps: float = 1e-5

    def infer(
        self, x: TensorType, weight: TensorType | None = None, bias: TensorType | None = None
    ) -> tuple[TensorType, ...]:
        self.check_shape(x)
        return _normalized(self, x, self.shape, weight=weight, bias=bias)

    def reference(self, x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        if not self.axes and not self.root_eps:
            return functional.layer_norm(x, self.shape, weight, bias, self.eps)
        axes = self.dimensions(x.ndim)
        centred = x - x.mean(axes, keepdim=True)
        root = (centred.square().mean(axes, keepdim=True) + self.eps).sqrt() + self.root_eps
        return _affine(centred / root, axes, weight, bias)


@operator("rms_norm")
@dataclass(frozen=True)
class RmsNorm(RowNorm):
    """x / (sqrt(mean(x^2) + eps) + root_eps) * weight, mean over `axes`, or the last dimensions.

    The default `eps` is the machine epsilon of the element type. Operands: x, weight [*shape] or none; `shape` are
    the sizes of these dimensions.
    """

    real_operands = ("weight",)
    learned_operands = ("weight",)

    @property
    def is_centred(self) -> bool:
        return False

    def infer(self, x: TensorType, weight: TensorType | None = None) -> tuple[TensorType, ...]:
        self.check_shape(x)
        return _normalized(self, x, self.shape, weight=weight)

    def reference(self, x: Tensor, weight: Tensor | None = None) -> Tensor:
        if not self.axes and not self.root_eps:
            return functional.rms_norm(x, list(self.shape), weight, self.eps)
        axes = self.dimensions(x.ndim)
        eps = torch.finfo(x.dtype).eps if self.eps is None else self.eps
        root = (x.square().mean(axes, keepdim=True) + eps).sqrt() + self.root_eps
        return _affine(x / root, axes, weight, None)


@operator("group_norm")
@dataclass(frozen=True)
class GroupNorm(StatisticsNorm):
    """Normalization over each of `groups` consecutive groups of channels and all spatial dimensions.

    Operands: x [n, c, ...], weight [c] or none, bias [c] or none.
    """

    groups: int = 1
    eps: float = 1e-5

    @property
    def epsilons(self) -> tuple[float, float]:
        return self.eps, 0.0

    def groups_of(self, shape: tuple[int, ...]) -> Groups:
        return _channel_groups(shape, self.groups)

    def infer(
        self, x: TensorType, weight: TensorType | None = None, bias: TensorType | None = None
    ) -> tuple[TensorType, ...]:
        if x.rank < 2 or self.groups < 1 or x.shape[1] % self.groups:
            raise ShapeError(f"{self.groups} groups do not divide the channels of {x.shape}")
        return _normalized(self, x, (x.shape[1],), weight=weight, bias=bias)

    def reference(self, x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        return functional.group_norm(x, self.groups, weight, bias, self.eps)

    def couple(self, call: CouplingCall) -> tuple[Axes, ...]:
        x = call.operand("x")
        call.fix(*x[2:], why="a normalization computes its statistics over it")
        if not tie_grouped(call, self.groups, x[1]):
            call.pool(x[1])
        return (_couple_channels(call, x[1:2]),)

    def cut(self, cut: Cut) -> GroupNorm:
        return replace(self, groups=cut.groups("x", 1, self.groups))


@operator("instance_norm")
@dataclass(frozen=True)
class InstanceNorm(StatisticsNorm):
    """Normalization of each channel of each sample over its spatial dimensions.

    Operands: x [n, c, ...], weight [c] or none, bias [c] or none.
    """

    eps: float = 1e-5

    @property
    def epsilons(self) -> tuple[float, float]:
        return self.eps, 0.0

    def groups_of(self, shape: tuple[int, ...]) -> Groups:
        return _channel_groups(shape, shape[1])

    def infer(
        self, x: TensorType, weight: TensorType | None = None, bias: TensorType | None = None
    ) -> tuple[TensorType, ...]:
        if x.rank < 3:
            raise ShapeError(f"instance norm of an input of rank {x.rank}")
        return _normalized(self, x, (x.shape[1],), weight=weight, bias=bias)

    def reference(self, x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        return torch.instance_norm(x, weight, bias, None, None, True, 0.1, self.eps, False)

    def couple(self, call: CouplingCall) -> tuple[Axes, ...]:
        x = call.operand("x")
        call.fix(*x[2:], why="a normalization computes its statistics over it")
        return (_couple_channels(call, x[1:2]),)


def _channel_groups(shape: tuple[int, ...], groups: int) -> Groups:
    """Groups of consecutive channels with all spatial dimensions."""
    sizes = (shape[0], groups, shape[1] // groups, *shape[2:])
    return Groups(sizes, tuple(range(2, len(sizes))), (1, *sizes[1:3], *(1 for _ in shape[2:])))


def _couple_channels(call: CouplingCall, channels: Axes) -> Axes:
    """Axes of the result; every other operand has the axes `channels`, those of the operand x."""
    for parameter in call.operands[1:]:
        tie_all(call, channels, parameter)
    return call.operand("x")


def _affine(x: Tensor, axes: tuple[int, ...], weight: Tensor | None, bias: Tensor | None) -> Tensor:
    sizes = [n if axis in axes else 1 for axis, n in enumerate(x.shape)]
    x = x if weight is None else x * weight.view(sizes)
    return x if bias is None else x + bias.view(sizes)


def _normalized(
    op: Op, x: TensorType, shape: tuple[int, ...], **operands: TensorType | None
) -> tuple[TensorType, ...]:
    for what, type in operands.items():
        if type is not None and type.shape != shape:
            raise ShapeError(f"{what} {type.shape}; expected {shape}")
    check_floats(op, x, *operands.values())
    return (x.real(),)


@lowers("batch_norm.default")
def _lower_batch_norm(call: AtenCall) -> Value | None:
    mean, var = call.optional_value("running_mean"), call.optional_value("running_var")
    if call["training"] or mean is None or var is None:
        return None
    operands = (call.value("input"), call.optional_value("weight"), call.optional_value("bias"), mean, var)
    return call.emit(BatchNorm(call["eps"]), *operands)


@lowers("layer_norm.default")
def _lower_layer_norm(call: AtenCall) -> Value:
    op = LayerNorm(tuple(call["normalized_shape"]), call["eps"])
    return call.emit(op, call.value("input"), call.optional_value("weight"), call.optional_value("bias"))


@lowers("rms_norm.default")
def _lower_rms_norm(call: AtenCall) -> Value | None:
    x, weight = call.value("input"), call.optional_value("weight")
    if weight is not None and weight.type.dtype is not x.type.dtype:
        return None
    return call.emit(RmsNorm(tuple(call["normalized_shape"]), call["eps"]), x, weight)


@lowers("group_norm.default")
def _lower_group_norm(call: AtenCall) -> Value:
    op = GroupNorm(call["num_groups"], call["eps"])
    return call.emit(op, call.value("input"), call.optional_value("weight"), call.optional_value("bias"))


@lowers("instance_norm.default")
def _lower_instance_norm(call: AtenCall) -> Value | None:
    if not call["use_input_stats"]:
        return None
    operands = (call.value("input"), call.optional_value("weight"), call.optional_value("bias"))
    return call.emit(InstanceNorm(call["eps"]), *operands)
