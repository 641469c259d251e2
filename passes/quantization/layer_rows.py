"""A convolution or linear layer as a matrix product over some of its places.

    y[g, n] = rows[g, n] @ taps[g]^T + bias + residual[g, n]

with g the groups, n the places of all samples, k the weights of one output: an unfolding of which only the places
that are asked for exist.
"""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor
from torch.nn import functional

from ...ir.ops.conv import Conv
from ...ir.ops.linear import Linear
from ...ir.ops.spatial import pairs
from ..layers import channel_taps

Unfoldable = Conv | Linear


def taps_of(op: Unfoldable, weight: Tensor) -> Tensor:
    """The weight as [groups, out / groups, k]."""
    return channel_taps(op, weight).flatten(2)


def count_places(op: Unfoldable, output: Tensor) -> int:
    """How many places of one sample a layer computes; rows of all leading dimensions for a linear layer."""
    return prod(output.shape[2:]) if isinstance(op, Conv) else prod(output.shape[:-1])


def unfold(
    op: Unfoldable, x: Tensor, kernel: tuple[int, ...], output: tuple[int, ...], places: Tensor
) -> Tensor:
    """What the layer reads at `places` of each sample: [groups, samples * places, k]."""
    if isinstance(op, Linear):
        return x.flatten(0, -2)[places][None]
    padding = [n for pair in reversed(pairs(op.padding)) for n in pair]
    padded = functional.pad(x, padding)
    sizes = padded.shape[2:]
    coordinates = torch.unravel_index(places, output[2:])
    offsets = torch.unravel_index(torch.arange(prod(kernel)), kernel)
    index = torch.zeros(len(places), prod(kernel), dtype=torch.int64)
    for axis, size in enumerate(sizes):
        along = coordinates[axis][:, None] * op.stride[axis] + offsets[axis] * op.dilation[axis]
        index = index * size + along
    read = padded.flatten(2)[:, :, index]  # [samples, channels, places, taps]
    grouped = read.reshape(len(x), op.groups, -1, *read.shape[2:]).permute(1, 0, 3, 2, 4)
    return grouped.reshape(op.groups, len(x) * len(places), -1)


def pick(op: Unfoldable, y: Tensor, places: Tensor) -> Tensor:
    """A tensor shaped like the layer's result at `places` of each sample: [groups, samples * places, out / groups]."""
    if isinstance(op, Linear):
        return y.flatten(0, -2)[places][None]
    picked = y.flatten(2)[:, :, places].reshape(len(y), op.groups, -1, len(places))
    return picked.permute(1, 0, 3, 2).reshape(op.groups, len(y) * len(places), -1)
