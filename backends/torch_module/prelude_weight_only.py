"""Prelude of emitted weight-only modules; the source of these definitions is copied into the emitted file.

A weight below 8 bits is kept as bytes of several integers each, the lowest bits first. Linear layers take torch's
own kernels for int8 and int4 where these fit, packed at the first call; else the weight is dequantized.
"""

from typing import Any

import torch
from torch import Tensor, nn


class IntegerWeight(nn.Module):
    """A weight of `bits`-bit integers, with a scale for each `group_size` of them along the last dimension."""

    integers: Tensor
    scale: Tensor

    def __init__(self, *shape: int, bits: int, group_size: int) -> None:
        super().__init__()
        self.bits, self.group_size = bits, group_size
        stored = torch.int8 if bits == 8 else torch.uint8
        *rows, columns = shape
        self.register_buffer("integers", torch.zeros(*rows, columns * bits // 8, dtype=stored))
        self.register_buffer("scale", torch.ones(*rows, columns // group_size))
        self.has_int4_kernel = bits == 4 and rows[-1] % 16 == 0 and group_size in (32, 64, 128, 256)
        self.packed: tuple[Tensor, Tensor] | None = None

    def linear(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """x @ weight^T + bias."""
        rows = x.reshape(-1, x.shape[-1])
        if rows.stride() != (rows.shape[1], 1):  # the kernels look at strides of single columns too
            rows = rows.clone(memory_format=torch.contiguous_format)
        if x.dtype != torch.float32 or x.device.type != "cpu":
            return nn.functional.linear(x, self.reals().to(x.dtype), bias)
        y: Tensor
        if self.bits == 8 and self.scale.shape[1] == 1:
            y = torch.ops.aten._weight_int8pack_mm(rows, self.integers, self.scale[:, 0])
        elif self.has_int4_kernel:
            if self.packed is None:
                self.packed = self.pack()
            weight, scales = self.packed
            y = torch.ops.aten._weight_int4pack_mm_for_cpu(rows, weight, self.group_size, scales)
        else:
            return nn.functional.linear(x, self.reals(), bias)
        y = y.reshape(*x.shape[:-1], y.shape[-1])
        return y if bias is None else y + bias

    def rows(self, indices: Tensor) -> Tensor:
        """The reals of some rows."""
        flat = indices.reshape(-1)
        reals = self.to_reals(self.integers[flat], self.scale[flat])
        return reals.reshape(*indices.shape, reals.shape[-1])

    def reals(self) -> Tensor:
        """The reals of the whole weight."""
        return self.to_reals(self.integers, self.scale)

    def to_reals(self, stored: Tensor, scale: Tensor) -> Tensor:
        """Stored integers times the scales of their groups."""
        integers = self.unpacked(stored)
        grouped = integers.reshape(*scale.shape, self.group_size) * scale[..., None]
        return grouped.reshape(integers.shape)

    def unpacked(self, stored: Tensor) -> Tensor:
        """One integer an element, from bytes that hold several."""
        if self.bits == 8:
            return stored
        parts = [(stored << shift).view(torch.int8) >> (8 - self.bits) for shift in self.shifts()]
        return torch.stack(parts, -1).flatten(-2)

    def shifts(self) -> range:
        """Left shifts that move each packed integer of a byte to the top."""
        return range(8 - self.bits, -1, -self.bits)

    def pack(self) -> tuple[Tensor, Tensor]:
        """Weight and scales as torch's int4 kernel wants them on this processor."""
        shifted = (self.unpacked(self.integers) + 8).to(torch.int32)
        scales = torch.stack([self.scale, torch.zeros_like(self.scale)], -1)
        packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(shifted, 1)
        return packed, scales.transpose(0, 1).contiguous()

    def __getstate__(self) -> dict[str, Any]:  # any: what a module holds
        return {**self.__dict__, "packed": None}

    def _load_from_state_dict(self, *arguments: Any) -> None:  # any: those of nn.Module
        self.packed = None
        super()._load_from_state_dict(*arguments)
