"""Sums of products beyond int32: which layers have them, and how many products of theirs int32 holds.

Activations of 16 bits times weights of 8 bits leave int32 after 516 products at the worst. Such layers add up parts
that are proven to fit int32, and the parts in int64.
"""

from __future__ import annotations

import numpy as np
import torch

from ....ir.arithmetic import INT32_MAX
from ....ir.errors import OverflowBoundError
from ....ir.ops.accumulate import FixedPoint, fits_int32, fixed_point, prove_accumulator
from ....ir.ops.conv import Conv, ConvTranspose
from ....ir.ops.linear import Linear
from .base import AnyArray, Site
from .low_bits import BYTE

PORTABLE_ONLY = "sums leave int32, which the DSP kernels do not add up"


def sums_fit(site: Site) -> bool:
    """Whether the accumulators of an integer layer are proven to fit int32."""
    residual = site.type("residual") if site.has("residual") else None
    return _fit(
        site, fixed_point(site.type("x"), site.type("weight"), site.output, residual=residual), factor=1
    )


def scaled_sums_fit(site: Site) -> bool:
    """Whether sums of packed weights, 2^(8 - bits) times as large, are proven to fit int32 as well."""
    factor = 1 << (BYTE - site.quantization("weight").bits)
    return factor == 1 or _fit(site, FixedPoint((1,), (0,), 0, 0, 0), factor=factor)


def part_size(site: Site, rows: AnyArray, *, multiple: int) -> int:
    """The most products, a multiple of `multiple`, that int32 holds of each of the rows [channels, taps]."""
    taps, grid = rows.shape[1], site.quantization("x")
    sizes = np.abs(rows.astype(np.int64)) * max(grid.qmax, -grid.qmin)
    for parts in range(2, taps // multiple + 1):
        size: int = -(-taps // (parts * multiple)) * multiple
        if np.add.reduceat(sizes, np.arange(0, taps, size), axis=1).max() <= INT32_MAX:
            return size
    return multiple


def _fit(site: Site, fixed: FixedPoint, *, factor: int) -> bool:
    op = site.node.op
    assert isinstance(op, Conv | ConvTranspose | Linear)
    weight = torch.from_numpy(site.array("weight").astype(np.int64)) * factor
    bias = torch.from_numpy(site.array("bias").astype(np.int64)) * factor if site.has("bias") else None
    try:
        phases = op.phases(site.type("weight"))
        bound = prove_accumulator(op.rows(weight), bias, fixed, x=site.quantization("x"), phases=phases)
    except OverflowBoundError:
        return False
    return fits_int32(bound, fixed)
