"""Prelude of emitted quantized modules; the source of these definitions is copied into the emitted file.

Activations are stored in uint8, the only type of torch's int8 kernels: the byte is the graph's integer plus
128, and so is the zero point. Weights are int8 with a scale for each output channel.
"""

from typing import Any

import torch
import torch.ao.quantization.fx._decomposed  # registers torch.ops.quantized_decomposed
from torch import Tensor, nn


def quantize(
    x: Tensor,
    scale: float,
    zero_point: int,
    dtype: torch.dtype = torch.uint8,
    *,
    bounds: tuple[int, int] | None = None,
) -> Tensor:
    """The integers nearest to x / scale + zero_point, within bounds: by default those of the type."""
    info = torch.iinfo(dtype)
    low, high = bounds or (info.min, info.max)
    y: Tensor = torch.ops.quantized_decomposed.quantize_per_tensor(x, scale, zero_point, low, high, dtype)
    return y


def dequantize(x: Tensor, scale: float, zero_point: int, *, apart: bool = False) -> Tensor:
    """Dequantized integers: (x - zero_point) * scale.

    torch.compile makes an int8 kernel of a layer only if nothing else reads its dequantize, but it merges equal ones:
    `apart` makes a different one, with a bound that does not affect the result.
    """
    info = torch.iinfo(x.dtype)
    y: Tensor = torch.ops.quantized_decomposed.dequantize_per_tensor(
        x, scale, zero_point, info.min + apart, info.max, x.dtype
    )
    return y


def to_unsigned(x: Tensor) -> Tensor:
    """int8 to uint8 by adding 128."""
    return (x.to(torch.int16) + 128).to(torch.uint8)


def to_signed(x: Tensor) -> Tensor:
    """uint8 to int8 by subtracting 128."""
    return (x.to(torch.int16) - 128).to(torch.int8)


class IntegerWeight(nn.Module):
    """Parametrization that stores a layer's weight as integers of at most 8 bits, with a scale per output channel."""

    weight: Tensor
    weight_scale: Tensor
    weight_zero_point: Tensor

    def __init__(self, *sizes: Any, **options: Any) -> None:  # arguments of the layer
        super().__init__(*sizes, **options)
        shape = self.weight.shape
        del self.weight
        self.register_buffer("weight", torch.zeros(shape, dtype=torch.int8))
        self.register_buffer("weight_scale", torch.ones(shape[0], dtype=torch.float32))
        self.register_buffer("weight_zero_point", torch.zeros(shape[0], dtype=torch.int64), persistent=False)

    def real_weight(self) -> Tensor:
        """The dequantized weight."""
        weight: Tensor = torch.ops.quantized_decomposed.dequantize_per_channel(
            self.weight, self.weight_scale, self.weight_zero_point, 0, -128, 127, torch.int8
        )
        return weight


class QuantizedLinear(IntegerWeight, nn.Linear):
    """`nn.Linear` with an integer weight."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.real_weight(), self.bias)


class QuantizedConv1d(IntegerWeight, nn.Conv1d):
    """`nn.Conv1d` with an integer weight."""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self._conv_forward(x, self.real_weight(), self.bias)
        return y


class QuantizedConv2d(IntegerWeight, nn.Conv2d):
    """`nn.Conv2d` with an integer weight."""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self._conv_forward(x, self.real_weight(), self.bias)
        return y


class QuantizedConv3d(IntegerWeight, nn.Conv3d):
    """`nn.Conv3d` with an integer weight."""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self._conv_forward(x, self.real_weight(), self.bias)
        return y
