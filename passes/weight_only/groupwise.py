"""Weights as symmetric integers, with a scale for each group of consecutive weights of an output channel."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ...ir import Encoding
from ..quantize.scales import FLOAT32_RANGE
from ..quantize.weights import row_scales

_PART = 1 << 18
"""Weights that are quantized at a time: temporaries of float32 then take 1 MiB each and stay in the cache."""


def nearest_group_size(inputs: int, wanted: int | None) -> int:
    """The divisor of `inputs` whose ratio to `wanted` is nearest to one; all inputs where none is wanted."""
    if wanted is None:
        return inputs
    divisors = (size for size in range(1, inputs + 1) if inputs % size == 0)
    return min(divisors, key=lambda size: (max(size / wanted, wanted / size), -size))


def quantize_groupwise(
    weight: Tensor, *, bits: int, group_size: int | None, observer: Literal["minmax", "mse"] = "mse"
) -> tuple[Tensor, Encoding]:
    """Integers of `weight` [out, ...] and their encoding, scales of float32; groups divide an output channel."""
    rows = weight.reshape(-1, group_size or weight[0].numel())
    parts = rows.split(max(1, _PART // rows.shape[1]))
    scales = torch.cat([_scales(part.float(), bits=bits, observer=observer) for part in parts])
    encoding = Encoding(scales, bits=bits, axis=0, group_size=group_size)
    return encode_groupwise(weight, encoding), encoding


def encode_groupwise(weight: Tensor, encoding: Encoding) -> Tensor:
    """The integers nearest to `weight` [out, ...] on a symmetric encoding of groups or channels."""
    integers = torch.empty(weight.shape, dtype=encoding.container.torch)
    scales = encoding.scale.tensor(torch.float32)
    rows, stored = weight.reshape(len(scales), -1), integers.view(len(scales), -1)
    count = max(1, _PART // rows.shape[1])
    for row, part, scale in zip(rows.split(count), stored.split(count), scales.split(count), strict=True):
        part.copy_((row.float() / scale[:, None]).round_().clamp_(-encoding.qmax, encoding.qmax))
    return integers


def _scales(rows: Tensor, *, bits: int, observer: Literal["minmax", "mse"]) -> Tensor:
    """A scale for each row, as float32; 1 for a row of zeros."""
    scales = row_scales(rows, bits=bits, observer=observer)
    return torch.where(scales > 0, scales.clamp(*FLOAT32_RANGE), 1.0).float()
