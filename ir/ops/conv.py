"""Convolution and transposed convolution over any number of spatial dimensions.

Operands: x [n, c, ...], weight, bias [out] or none, residual shaped like the result or none:

    y = clamp(conv(x, weight) + bias + residual)

Weights are [out, in / groups, k...]; for the transposed form [in, out / groups, k...]. `padding` lists the
zeros before and after each spatial dimension: (top, bottom, left, right) in two dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor
from torch.nn import functional

from ..errors import ShapeError
from ..tensor_type import TensorType, Value
from .accumulate import (
    Clamp,
    check_accumulating,
    check_addends,
    finish_accumulator,
    finish_reals,
    zero_point,
)
from .base import AtenCall, IntegerCall, check_floats, lowers, operator
from .channels import Axes, CouplingCall, Cut, tie_all, tie_grouped
from .layer import Layer
from .shape import emit_on_batch
from .spatial import check_spatial, on_both_sides, pairs, spread, symmetric_padding

_CONV = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
_CONV_TRANSPOSE = {
    1: functional.conv_transpose1d,
    2: functional.conv_transpose2d,
    3: functional.conv_transpose3d,
}


@operator("conv")
@dataclass(frozen=True)
class Conv(Layer):
    """Cross-correlation, as in `torch.nn.ConvNd`; `groups` equal to the channels makes it depthwise."""

    stride: tuple[int, ...] = (1, 1)
    padding: tuple[int, ...] = (0, 0, 0, 0)
    dilation: tuple[int, ...] = (1, 1)
    groups: int = 1
    clamp: Clamp = None

    @property
    def channel_groups(self) -> int:
        return self.groups

    @property
    def reads_zeros(self) -> bool:
        return any(self.padding)

    @property
    def rank(self) -> int:
        """Number of spatial dimensions."""
        return len(self.stride)

    def infer(
        self,
        x: TensorType,
        weight: TensorType,
        bias: TensorType | None = None,
        residual: TensorType | None = None,
    ) -> tuple[TensorType, ...]:
        check_floats(self, x, weight, bias, residual)
        check_spatial(self.rank, x, weight, (self.padding, 2), (self.dilation, 1))
        if x.shape[1] != weight.shape[1] * self.groups or weight.shape[0] % self.groups:
            raise ShapeError(f"{x.shape[1]} channels, weight {weight.shape}, {self.groups} groups do not fit")
        sizes = [
            (n + before + after - d * (k - 1) - 1) // s + 1
            for n, (before, after), k, s, d in zip(
                x.shape[2:], pairs(self.padding), weight.shape[2:], self.stride, self.dilation, strict=True
            )
        ]
        if any(n <= 0 for n in sizes):
            raise ShapeError(f"the kernel {weight.shape[2:]} is larger than the padded input {x.shape[2:]}")
        y = TensorType((x.shape[0], weight.shape[0], *sizes), x.real().dtype)
        check_addends(bias, residual, y, channels=weight.shape[0])
        return (y,)

    def reference(
        self, x: Tensor, weight: Tensor, bias: Tensor | None = None, residual: Tensor | None = None
    ) -> Tensor:
        x, padding = symmetric_padding(x, self.padding)
        y = _CONV[self.rank](x, weight, bias, self.stride, padding, self.dilation, self.groups)
        return finish_reals(y, residual, self.clamp)

    def check_quantized(self, operands: Sequence[TensorType | None], outputs: Sequence[TensorType]) -> None:
        check_accumulating(operands, outputs, channel_axis=0)
        x = self.operand(operands, "x")
        if (
            any(self.padding)
            and x is not None
            and x.quantization is not None
            and not x.quantization.holds_zero
        ):
            raise ShapeError("padding needs zero among the operand's integers")

    def integer(self, call: IntegerCall) -> Tensor:
        x, w = call.operand("x"), call.operand("weight")
        acc = self._accumulate(x - zero_point(call.type("x")), w)
        return finish_accumulator(call, acc, self.clamp)

    def _accumulate(self, x: Tensor, weight: Tensor) -> Tensor:
        # float64 holds every partial sum of these integers exactly, and is faster than integer convolution
        x, padding = symmetric_padding(x.double(), self.padding)
        return _CONV[self.rank](
            x, weight.double(), None, self.stride, padding, self.dilation, self.groups
        ).to(torch.int64)

    def macs(self, operands: Sequence[TensorType | None], outputs: Sequence[TensorType]) -> int:
        weight = self.operand(operands, "weight")
        assert weight is not None
        return outputs[0].numel * prod(weight.shape[1:])

    def couple(self, call: CouplingCall) -> tuple[Axes, ...]:
        return (_couple(call, self.groups, self.out_axis),)

    def rows(self, weight: Tensor) -> Tensor:
        """The weights of each output channel, [out, taps]."""
        return weight.flatten(1)

    def phases(self, weight: TensorType) -> None:
        """None: all taps of a row are summed into one result."""

    def channel_scales(self, weight: TensorType) -> tuple[int, int | None]:
        """Axis and group size of weights with a scale for each output channel."""
        return 0, None

    def cut(self, cut: Cut) -> Conv:
        return replace(self, groups=cut.groups("x", 1, self.groups))


@operator("conv_transpose")
@dataclass(frozen=True)
class ConvTranspose(Layer):
    """Transposed convolution, as in `torch.nn.ConvTransposeNd`; `padding` is the number of elements cut off before
    and after.
    """

    out_axis = 1

    stride: tuple[int, ...] = (1, 1)
    padding: tuple[int, ...] = (0, 0, 0, 0)
    output_padding: tuple[int, ...] = (0, 0)
    dilation: tuple[int, ...] = (1, 1)
    groups: int = 1
    clamp: Clamp = None

    @property
    def channel_groups(self) -> int:
        return self.groups

    @property
    def reads_zeros(self) -> bool:
        return True

    @property
    def rank(self) -> int:
        """Number of spatial dimensions."""
        return len(self.stride)

    def infer(
        self,
        x: TensorType,
        weight: TensorType,
        bias: TensorType | None = None,
        residual: TensorType | None = None,
    ) -> tuple[TensorType, ...]:
        check_floats(self, x, weight, bias, residual)
        check_spatial(self.rank, x, weight, (self.padding, 2), (self.dilation, 1), (self.output_padding, 1))
        if x.shape[1] != weight.shape[0] or x.shape[1] % self.groups:
            raise ShapeError(f"{x.shape[1]} channels, weight {weight.shape}, {self.groups} groups do not fit")
        channels = weight.shape[1] * self.groups
        sizes = [
            (n - 1) * s - before - after + d * (k - 1) + extra + 1
            for n, (before, after), k, s, d, extra in zip(
                x.shape[2:],
                pairs(self.padding),
                weight.shape[2:],
                self.stride,
                self.dilation,
                self.output_padding,
                strict=True,
            )
        ]
        if any(n <= 0 for n in sizes):
            raise ShapeError(f"the result would have sizes {tuple(sizes)}")
        y = TensorType((x.shape[0], channels, *sizes), x.real().dtype)
        check_addends(bias, residual, y, channels=channels)
        return (y,)

    def reference(
        self, x: Tensor, weight: Tensor, bias: Tensor | None = None, residual: Tensor | None = None
    ) -> Tensor:
        return finish_reals(self._transpose(x, weight, bias), residual, self.clamp)

    def check_quantized(self, operands: Sequence[TensorType | None], outputs: Sequence[TensorType]) -> None:
        weight = self.operand(operands, "weight")
        assert weight is not None
        axis, group_size = self.channel_scales(weight) or (None, None)
        check_accumulating(operands, outputs, channel_axis=axis, group_size=group_size)

    def integer(self, call: IntegerCall) -> Tensor:
        x, w = call.operand("x"), call.operand("weight")
        acc = self._transpose((x - zero_point(call.type("x"))).double(), w.double(), None).to(torch.int64)
        return finish_accumulator(call, acc, self.clamp)

    def macs(self, operands: Sequence[TensorType | None], outputs: Sequence[TensorType]) -> int:
        x, weight = self.operand(operands, "x"), self.operand(operands, "weight")
        assert x is not None and weight is not None
        return x.numel * prod(weight.shape[1:])

    def couple(self, call: CouplingCall) -> tuple[Axes, ...]:
        return (_couple(call, self.groups, self.out_axis),)

    def cut(self, cut: Cut) -> ConvTranspose:
        return replace(self, groups=cut.groups("x", 1, self.groups))

    def rows(self, weight: Tensor) -> Tensor:
        """The weights of each output channel, [out, taps]."""
        split = weight.reshape(self.groups, -1, *weight.shape[1:])
        return split.transpose(1, 2).flatten(0, 1).flatten(1)

    def phases(self, weight: TensorType) -> Tensor:
        """For each tap of a row, the number of its phase: an output is a sum over the taps of one phase of the
        stride.
        """
        phase = torch.zeros((), dtype=torch.int64)
        for size, stride, dilation in zip(weight.shape[2:], self.stride, self.dilation, strict=True):
            phase = phase[..., None] * stride + torch.arange(size) * dilation % stride
        return phase.flatten().repeat(weight.shape[0] // self.groups)

    def channel_scales(self, weight: TensorType) -> tuple[int, int | None] | None:
        """Axis and group size of weights with a scale for each output channel; None if the type has no such form.

        Output channels are the second dimension of the weight, or with one input channel in each group the first two
        together. Otherwise each group repeats the second dimension, and the whole weight has one scale.
        """
        if self.groups == 1:
            return 1, None
        if weight.shape[0] != self.groups:
            return None
        return 0, None if weight.shape[1] == 1 else prod(weight.shape[2:])

    def _transpose(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        cut = [(before, after) for before, after in pairs(self.padding)]
        common = [min(before, after) for before, after in cut]
        y = _CONV_TRANSPOSE[self.rank](
            x, weight, bias, self.stride, common, self.output_padding, self.groups, self.dilation
        )
        for axis, ((before, after), both) in enumerate(zip(cut, common, strict=True), start=2):
            if before != after:
                y = y.narrow(axis, before - both, y.shape[axis] - (before - both) - (after - both))
        return y


def _couple(call: CouplingCall, groups: int, out_axis: int) -> Axes:
    """Coupling of both forms: the weight's dimension `out_axis` has the outputs, the other of the first two the
    inputs.
    """
    x, w, bias = call.operand("x"), call.operand("weight"), call.optional("bias")
    call.fix(*x[2:], *w[2:], why="a convolution slides along it")
    out = w[out_axis]
    if groups == 1:
        call.tie(x[1], w[1 - out_axis])
        call.sum_over(x[1])
    else:
        out = _couple_groups(call, groups, x[1], w, out_axis)
    if bias is not None:
        call.tie(out, bias[0])
    y = (x[0], out, *call.fixed(*call.outputs[0].shape[2:]))
    tie_all(call, y, call.optional("residual"))
    return y


def _couple_groups(call: CouplingCall, groups: int, x: int, w: Axes, out_axis: int) -> int:
    """The axis of the result. One dimension of the weight spans all groups, the other that of one group."""
    inputs_in_weight, outputs = w[1 - out_axis], w[out_axis]
    if out_axis == 1:
        call.tie(x, inputs_in_weight)
        outputs = call.free(call.outputs[0].shape[1])
    within = w[1]
    if tie_grouped(call, groups, x, outputs):
        call.fix(within, why="whole groups of the convolution are removed")
        return outputs
    call.sum_over(x)
    spanning = x if out_axis == 0 else outputs
    index = torch.arange(call.size(spanning))
    call.tie_indices(spanning, index, within, index % call.size(within))
    return outputs


@lowers(
    "conv1d.default", "conv2d.default", "conv3d.default", "conv1d.padding", "conv2d.padding", "conv3d.padding"
)
def _lower_conv(call: AtenCall) -> Value:
    x, w = call.value("input"), call.value("weight")
    rank = w.type.rank - 2
    dilation = spread(call["dilation"], rank)
    op = Conv(
        stride=spread(call["stride"], rank),
        padding=_zeros_around(call["padding"], w.type.shape[2:], dilation),
        dilation=dilation,
        groups=call["groups"],
    )
    bias = call.optional_value("bias")
    return emit_on_batch(call, x, w.type.rank, lambda batch: call.emit(op, batch, w, bias))


def _zeros_around(
    padding: str | int | Sequence[int], kernel: tuple[int, ...], dilation: tuple[int, ...]
) -> tuple[int, ...]:
    """Torch's `padding` of a convolution as zeros before and after: "same" with an odd total adds one more zero
    after.
    """
    if padding == "valid":
        padding = 0
    if not isinstance(padding, str):
        return on_both_sides(padding, len(kernel))
    total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    return tuple(n for t in total for n in (t // 2, t - t // 2))


@lowers("conv_transpose1d.default", "conv_transpose2d.input", "conv_transpose3d.input")
def _lower_conv_transpose(call: AtenCall) -> Value:
    x, w = call.value("input"), call.value("weight")
    rank = w.type.rank - 2
    op = ConvTranspose(
        stride=spread(call["stride"], rank),
        padding=on_both_sides(call["padding"], rank),
        output_padding=spread(call["output_padding"], rank),
        dilation=spread(call["dilation"], rank),
        groups=call["groups"],
    )
    bias = call.optional_value("bias")
    return emit_on_batch(call, x, w.type.rank, lambda batch: call.emit(op, batch, w, bias))
