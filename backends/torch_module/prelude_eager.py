"""Prelude of emitted eager int8 modules; the source of these definitions is copied into the emitted file.

Activations are stored in uint8: the byte is the graph's integer plus 128, and so is the zero point. Layers are
oneDNN's int8 kernels with the residual, the activation and the requantization in them; their weights are packed at
the first call. Processors without VNNI saturate sums of products at 16 bits in these kernels: there layers compute in
float. Elementwise functions are tables of 256 bytes.
"""

from typing import Any

import torch
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
    return (x / scale).round_().add_(zero_point).clamp_(low, high).to(dtype)


def dequantize(x: Tensor, scale: float, zero_point: int) -> Tensor:
    """Dequantized integers: (x - zero_point) * scale."""
    return x.float().sub_(zero_point).mul_(scale)


def lookup(table: Tensor, x: Tensor) -> Tensor:
    """table[x] for bytes x."""
    return table.index_select(0, x.reshape(-1).int()).view(x.shape)


def to_unsigned(x: Tensor) -> Tensor:
    """int8 to uint8 by adding 128."""
    return x.view(torch.uint8) ^ 128


def to_signed(x: Tensor) -> Tensor:
    """uint8 to int8 by subtracting 128."""
    return (x ^ 128).view(torch.int8)


class Int8Layer(nn.Module):
    """A layer of uint8 activations and int8 weights, with a scale for each output channel.

    Grids are scale and zero point of the operand, the result and the residual. `clamp` is the fused activation in
    bytes, if it is narrower than saturation.
    """

    weight: Tensor
    weight_scale: Tensor
    bias: Tensor | None

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        x_grid: tuple[float, int],
        y_grid: tuple[float, int],
        residual_grid: tuple[float, int] = (1.0, 0),
        clamp: tuple[int, int] | None = None,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.x_grid, self.y_grid, self.residual_grid = x_grid, y_grid, residual_grid
        self.clamp = clamp
        self.register_buffer("weight", torch.zeros(shape, dtype=torch.int8))
        self.register_buffer("weight_scale", torch.ones(shape[0], dtype=torch.float32))
        self.register_buffer("bias", torch.zeros(shape[0], dtype=torch.float32) if bias else None)
        self.packed: tuple[Tensor, Tensor, Tensor, Tensor | None] | None = None

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """uint8 to uint8."""
        if torch.cpu._is_vnni_supported():
            y = self.on_bytes(x, residual)
        else:
            reals = self.on_reals(dequantize(x, *self.x_grid))
            if residual is not None:
                reals += dequantize(residual, *self.residual_grid)
            y = quantize(reals, *self.y_grid)
        return y if self.clamp is None else y.clamp_(*self.clamp)

    def on_bytes(self, x: Tensor, residual: Tensor | None) -> Tensor:
        """The layer by its int8 kernel, uint8 to uint8."""
        raise NotImplementedError

    def on_reals(self, x: Tensor) -> Tensor:
        """The layer without residual in float."""
        raise NotImplementedError

    def real_weight(self) -> Tensor:
        """The dequantized weight."""
        return self.weight * self.weight_scale.view(-1, *[1] * (self.weight.ndim - 1))

    def real_bias(self) -> Tensor | None:
        """The bias in float."""
        return self.bias

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "packed": None}

    def _load_from_state_dict(self, *arguments: Any) -> None:
        self.packed = None
        super()._load_from_state_dict(*arguments)


class Int8Linear(Int8Layer):
    """Affine map of the last dimension, plus a residual, within a clamp."""

    def on_bytes(self, x: Tensor, residual: Tensor | None) -> Tensor:
        """Result by oneDNN's kernel."""
        if self.packed is None:
            self.packed = self.pack(x)
        weight, scale, zero, bias = self.packed
        before, after = (x, *self.x_grid, weight, scale, zero), (*self.y_grid, torch.uint8)
        y: Tensor
        if residual is None:
            y = torch.ops.onednn.qlinear_pointwise(*before, bias, *after, "none", [], "")
        else:
            added = dequantize(residual, *self.residual_grid)
            y = torch.ops.onednn.qlinear_pointwise.binary(
                *before, added, bias, *after, 1.0, 0, "add", 1.0, "none", [], ""
            )
        return y

    def on_reals(self, x: Tensor) -> Tensor:
        """Result by torch's float kernel."""
        return nn.functional.linear(x, self.real_weight(), self.real_bias())

    def pack(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Weight in the form of the kernel, its scales and zero points, bias."""
        zero = torch.zeros(len(self.weight_scale), dtype=torch.int32)
        return (
            torch.ops.onednn.qlinear_prepack(self.weight, list(x.shape)),
            self.weight_scale,
            zero,
            self.real_bias(),
        )


class Int8Conv(Int8Layer):
    """Convolution over one or two spatial dimensions, plus a residual, within a clamp.

    The kernel gets the zero point 0 for the operand, since for another one it would sum its weights at every call:
    the bias compensates for it, and padding is done before with the zero point. `padding` is (before, after) for each
    dimension.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        stride: tuple[int, ...],
        padding: tuple[int, ...],
        dilation: tuple[int, ...],
        groups: int = 1,
        **options: Any,
    ) -> None:
        super().__init__(shape, **options)
        before, after = list(padding[::2]), list(padding[1::2])
        self.pad: list[int] = []
        if any(padding) and (self.x_grid[1] != 0 or before != after):
            self.pad = [n for pair in zip(reversed(before), reversed(after), strict=True) for n in pair]
            before = [0] * len(before)
        self.is_flat = len(stride) == 1  # one dimension is computed as two, the first of size 1
        self.geometry = [[*stride], before, [*dilation]]
        if self.is_flat:
            self.geometry = [[1, *stride], [0, *before], [1, *dilation]]
        self.groups = groups

    def on_bytes(self, x: Tensor, residual: Tensor | None) -> Tensor:
        """Result by oneDNN's kernel."""
        if self.pad:
            x = nn.functional.pad(x, self.pad, value=self.x_grid[1])
        if not self.is_flat:
            return self.convolve(x, residual)
        return self.convolve(x.unsqueeze(2), None if residual is None else residual.unsqueeze(2)).squeeze(2)

    def on_reals(self, x: Tensor) -> Tensor:
        """Result by torch's float kernel."""
        if self.pad:
            x = nn.functional.pad(x, self.pad)
        stride, padding, dilation = (sizes[self.is_flat :] for sizes in self.geometry)
        convolve = nn.functional.conv1d if self.is_flat else nn.functional.conv2d
        return convolve(x, self.real_weight(), self.real_bias(), stride, padding, dilation, self.groups)

    def convolve(self, x: Tensor, residual: Tensor | None) -> Tensor:
        """The convolution in two dimensions, padded."""
        if self.packed is None:
            self.packed = self.pack(x)
        weight, scale, zero, bias = self.packed
        before = (x, self.x_grid[0], 0, weight, scale, zero)
        after = (bias, *self.geometry, self.groups, *self.y_grid, torch.uint8)
        y: Tensor
        if residual is None:
            y = torch.ops.onednn.qconv_pointwise(*before, *after, "none", [], "")
        else:
            sums = residual.clone(memory_format=torch.channels_last)  # the kernel adds in place
            y = torch.ops.onednn.qconv2d_pointwise.binary(
                *before, sums, *after, *self.residual_grid, "sum", 1.0, "none", [], ""
            )
        return y

    def pack(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Weight in the form of the kernel, its scales and zero points, bias without the contribution of the zero
        point.
        """
        scale, zero_point = self.x_grid
        weight = self.weight.unsqueeze(2) if self.is_flat else self.weight
        packed = torch.ops.onednn.qconv_prepack(
            weight, self.weight_scale, scale, 0, *self.geometry, self.groups, list(x.shape)
        )
        bias = self.real_bias()
        if zero_point != 0:
            added = weight.flatten(1).sum(1) * self.weight_scale.double() * (scale * zero_point)
            bias = ((0 if bias is None else bias) - added).float()
        return packed, self.weight_scale, torch.zeros(len(self.weight_scale), dtype=torch.int32), bias
