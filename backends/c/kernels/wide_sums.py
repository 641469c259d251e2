"""Sums of products beyond int32: which layers have them, and how many of their products int32 can hold.

Activations of 16 bits times weights of 8 bits exceed int32 after 516 products in the worst case. Such layers sum parts
that are proven to fit int32, and add the parts in int64.
"""

from __future__ import annotations

import numpy as np
import torch

from ....ir.arithmetic import INT32_MAX
from ....ir.errors import OverflowBoundError
from ....ir.ops.accumulate import FixedPoint, fits_int32, prove_accumulator
from ....ir.ops.conv import Conv, ConvTranspose
from ....ir.ops.linear import Linear
from .base import AnyArray, Site
from .low_bits import BYTE
from .rounding import layer_fixed_point

WIDE_WEIGHTS = "weights of 16 bits whose sums exceed int32"
PORTABLE_ONLY = "sums exceed int32, which the DSP kernels do not support"


def sums_fit(site: Site) -> bool:
    """True if the accumulators of an integer layer are proven to fit int32."""
    return _fit(site, layer_fixed_point(site), factor=1)


def scaled_sums_fit(site: Site) -> bool:
    """True if sums of packed weights, 2^(8 - bits) times as large, are also proven to fit int32."""
    factor = 1 << max(BYTE - site.quantization("weight").bits, 0)
    return factor == 1 or _fit(site, FixedPoint((1,), (0,), 0, 0, 0), factor=factor)


def part_size(site: Site, rows: AnyArray, *, multiple: int) -> int:
    """The most products, a multiple of `multiple`, that int32 can hold for each of the rows [channels, taps]."""
    taps, encoding = rows.shape[1], site.quantization("x")
    sizes = np.abs(rows.astype(np.int64)) * max(encoding.qmax, -encoding.qmin)
    for parts in range(2, taps // multiple + 1):
        size: int = -(-taps // (parts * multiple)) * multiple
        if np.add.reduceat(sizes, np.arange(0, taps, size), axis=1).max() <= INT32_MAX:
            return size
    return multiple


def _fit(site: Site, fixed: FixedPoint, *, factor: int) -> bool:
    """True if sums fit, by the bits and the number of the weights if that is sufficient, else by the weights."""
    op = site.node.op
    assert isinstance(op, Conv | ConvTranspose | Linear)
    bias = torch.from_numpy(site.array("bias").astype(np.int64)) * factor if site.has("bias") else None
    if _largest_sum(site, bias, factor) << max(fixed.shifts) <= INT32_MAX:
        return True
    weight = torch.from_numpy(site.array("weight").astype(np.int64)) * factor
    try:
        phases = op.phases(site.type("weight"))
        bound = prove_accumulator(op.rows(weight), bias, fixed, x=site.quantization("x"), phases=phases)
    except OverflowBoundError:
        return False
    return fits_int32(bound, fixed)


def _largest_sum(site: Site, bias: torch.Tensor | None, factor: int) -> int:
    """Bound of |accumulator|, with and without zero points folded into the bias, for any weights of these bits."""
    x, weight = site.quantization("x"), site.type("weight")
    taps = weight.numel // site.output.shape[-1 if isinstance(site.node.op, Linear) else 1]
    largest = factor << (site.quantization("weight").bits - 1)
    added = 0 if bias is None else int(bias.abs().max())
    return taps * largest * (max(x.qmax, -x.qmin) + abs(x.zero_point[0])) + added
