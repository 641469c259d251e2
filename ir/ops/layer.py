"""Base of the layers: convolution, transposed convolution and linear layer.

    y = clamp(sum over input channels and taps of weight * x + bias + residual)

Operands: x, weight, bias [out] or none, residual shaped like the result or none. Channels of a grouped layer are split
into `channel_groups` equal, independent parts.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

from torch import Tensor

from ..tensor_type import TensorType
from .accumulate import Clamp
from .base import Op, Quantized
from .facts import EVERYTHING, Facts


class Layer(Op):
    """Base of the operators with an accumulator over weights; subclasses have the field `clamp`."""

    quantized = Quantized.COMPUTE
    learned_operands = ("weight", "bias")
    out_axis = 0
    """Dimension of the weight (0 or 1) with the outputs; the other one has the inputs."""

    clamp: Clamp

    @property
    def facts(self) -> Facts:
        return Facts(
            monotone=("bias", "residual"),
            piecewise_linear=(("x", "bias", "residual"), ("weight", "bias", "residual")),
            bounds=self.clamp or EVERYTHING,
        )

    @property
    def channel_groups(self) -> int:
        """Number of groups of channels."""
        return 1

    @property
    def reads_zeros(self) -> bool:
        """True if taps may read padding, or no element at all, in place of an element of x."""
        return False

    def is_depthwise(self, weight_shape: Sequence[int]) -> bool:
        """True if each output channel reads one input channel."""
        return self.out_axis == 0 and self.channel_groups > 1 and weight_shape[1] == 1

    def channel_axis(self, type: TensorType) -> int:
        """Channel dimension of the operand or result with this type."""
        return 1

    def output_channels(self, weight: Tensor) -> int:
        """Number of channels of the result."""
        return weight.shape[0] if self.out_axis == 0 else weight.shape[1] * self.channel_groups

    def taps(self, weight: Tensor) -> Tensor:
        """The weight as [groups, out / groups, in / groups, taps]."""
        taps = weight.reshape(self.channel_groups, -1, weight.shape[1], weight[0, 0].numel())
        return taps if self.out_axis == 0 else taps.transpose(1, 2)

    def weight_of(self, taps: Tensor, shape: Sequence[int]) -> Tensor:
        """The weight with this shape and these `taps` [groups, out / groups, k]."""
        if self.out_axis == 0:
            return taps.reshape(*shape)
        split = taps.reshape(*taps.shape[:2], shape[0] // self.channel_groups, -1)
        return split.transpose(1, 2).reshape(*shape)

    def scale_outputs(self, weight: Tensor, factor: Tensor) -> Tensor:
        """The weight with output channel i multiplied by `factor[i]`."""
        return self._scaled(weight, factor, self.out_axis)

    def scale_inputs(self, weight: Tensor, factor: Tensor) -> Tensor:
        """The weight with the taps of input channel i multiplied by `factor[i]`."""
        return self._scaled(weight, factor, 1 - self.out_axis)

    def _scaled(self, weight: Tensor, factor: Tensor, axis: int) -> Tensor:
        """The weight [groups * a, b, ...] with its first dimension scaled by `factor` [groups * a], or its second by
        [groups * b].
        """
        if axis == 0:
            return weight * factor.view(-1, *[1] * (weight.ndim - 1))
        grouped = weight.reshape(self.channel_groups, -1, *weight.shape[1:])
        along = factor.view(self.channel_groups, 1, -1, *[1] * (weight.ndim - 2))
        return (grouped * along).reshape(weight.shape)

    @abstractmethod
    def rows(self, weight: Tensor) -> Tensor:
        """The weights of each output channel, [out, taps]."""

    @abstractmethod
    def phases(self, weight: TensorType) -> Tensor | None:
        """For each tap of a row, the number of the results that it is summed into; None if all taps are summed into
        one.
        """

    @abstractmethod
    def channel_scales(self, weight: TensorType) -> tuple[int, int | None] | None:
        """Axis and group size of weights with a scale for each output channel; None if the type has no such form."""
