"""A convolution, transposed convolution or linear layer as a matrix product over some of its output positions.

    y[g, n] = rows[g, n] @ taps[g]^T + bias + residual[g, n]

with g the groups, n the positions of all samples, k the weights of one output. Only the requested positions are
unfolded.
"""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor
from torch.nn import functional

from ...ir.ops.conv import Conv, ConvTranspose
from ...ir.ops.layer import Layer
from ...ir.ops.linear import Linear
from ...ir.ops.spatial import pairs


def taps_of(op: Layer, weight: Tensor) -> Tensor:
    """The weight as [groups, out / groups, k]."""
    return op.taps(weight).flatten(2)


def count_places(op: Layer, output: Tensor) -> int:
    """Number of output positions of a layer per sample; rows of all leading dimensions for a linear layer."""
    return prod(output.shape[:-1]) if isinstance(op, Linear) else prod(output.shape[2:])


def unfold(op: Layer, x: Tensor, kernel: tuple[int, ...], output: tuple[int, ...], places: Tensor) -> Tensor:
    """Inputs of the layer at output positions `places`: [groups, samples * places, k] (im2col)."""
    if not isinstance(op, Conv | ConvTranspose):
        return x.reshape(-1, x.shape[-1])[places][None]
    taps, stride = torch.arange(prod(kernel)), op.stride
    if isinstance(op, ConvTranspose):
        padded, taps, stride = _stretched(op, x, kernel), taps.flip(0), (1,) * op.rank
    else:
        padded = functional.pad(x, [n for pair in reversed(pairs(op.padding)) for n in pair])
    coordinates = torch.unravel_index(places, output[2:])
    offsets = torch.unravel_index(taps, kernel)
    index = torch.zeros(len(places), prod(kernel), dtype=torch.int64)
    for axis, size in enumerate(padded.shape[2:]):
        along = coordinates[axis][:, None] * stride[axis] + offsets[axis] * op.dilation[axis]
        index = index * size + along
    read = padded.flatten(2)[:, :, index]  # [samples, channels, places, taps]
    grouped = read.reshape(len(x), op.groups, -1, *read.shape[2:]).permute(1, 0, 3, 2, 4)
    return grouped.reshape(op.groups, len(x) * len(places), -1)


def _stretched(op: ConvTranspose, x: Tensor, kernel: tuple[int, ...]) -> Tensor:
    """The image with zeros inserted and around it; its convolution with the flipped kernel is the transposed
    convolution.
    """
    sizes = [(n - 1) * s + 1 for n, s in zip(x.shape[2:], op.stride, strict=True)]
    image = x.new_zeros(*x.shape[:2], *sizes)
    image[tuple(slice(None, None, s) for s in (1, 1, *op.stride))] = x
    reach = [d * (k - 1) for k, d in zip(kernel, op.dilation, strict=True)]
    around = [
        (full - before, full - after + extra)
        for full, (before, after), extra in zip(reach, pairs(op.padding), op.output_padding, strict=True)
    ]
    return functional.pad(image, [n for pair in reversed(around) for n in pair])


def pick(op: Layer, y: Tensor, places: Tensor) -> Tensor:
    """A tensor of the shape of the layer's result at `places` of each sample: [groups, samples * places, out /
    groups].
    """
    if not isinstance(op, Conv | ConvTranspose):
        return y.reshape(-1, y.shape[-1])[places][None]
    picked = y.flatten(2)[:, :, places].reshape(len(y), op.groups, -1, len(places))
    return picked.permute(1, 0, 3, 2).reshape(op.groups, len(y) * len(places), -1)
