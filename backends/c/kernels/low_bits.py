"""Weights of 4 and 2 bits as the kernels read them: packed so that unpacking is masks and shifts.

DSP kernels multiply bytes. Where int8 weights are words of four bytes, 8 / bits of such words share one: the first
has the top bits of every byte, the next the bits below. A shift to the left and a mask leave 2^(8 - bits) times the
weights, as signed bytes; so accumulators are that many times too large, which a shift to the right takes back exactly.

Portable kernels read single weights, as sign-extended fields of bytes, the lowest bits first.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from ....ir.errors import OverflowBoundError
from ....ir.ops.accumulate import FixedPoint, prove_accumulator
from .base import AnyArray, Site

BYTE = 8


def weights_text(bits: int) -> str:
    """What a comment says of weights of so many bits."""
    return "" if bits == BYTE else f", weights of {bits} bits"


def share_words(words: npt.NDArray[np.int32], bits: int) -> npt.NDArray[np.int32]:
    """Words of four int8 along the last axis, 8 / bits of them in one; missing ones are zeros, in front."""
    fields = BYTE // bits
    missing = -words.shape[-1] % fields
    front = [(0, 0)] * (words.ndim - 1) + [(missing, 0)]
    padded = np.pad(words.view(np.uint32), front).reshape(*words.shape[:-1], -1, fields)
    mask = np.uint32(0x01010101 * ((1 << bits) - 1))
    shifts = np.arange(BYTE - bits, -1, -bits, dtype=np.uint32)
    shared: npt.NDArray[np.uint32] = np.bitwise_or.reduce((padded & mask) << shifts, axis=-1)
    return shared.view(np.int32)


def share_bytes(values: AnyArray, bits: int) -> npt.NDArray[np.int8]:
    """Integers of `bits` bits along the last axis, 8 / bits of them in a byte, the first in the lowest bits."""
    if bits == BYTE:
        return np.ascontiguousarray(values, np.int8)
    fields = BYTE // bits
    behind = [(0, 0)] * (values.ndim - 1) + [(0, -values.shape[-1] % fields)]
    padded = np.pad(values.astype(np.int8).view(np.uint8), behind).reshape(*values.shape[:-1], -1, fields)
    mask = np.uint8((1 << bits) - 1)
    shifts = np.arange(0, BYTE, bits, dtype=np.uint8)
    shared: npt.NDArray[np.uint8] = np.bitwise_or.reduce((padded & mask) << shifts, axis=-1)
    return shared.view(np.int8)


def scaled_sums_fit(site: Site, *, bits: int) -> bool:
    """Whether the sums of a convolution or linear layer, 2^(8 - bits) times as large, are proven to fit int32."""
    if bits == BYTE:
        return True
    factor = 1 << (BYTE - bits)
    weight = torch.from_numpy(site.array(1).astype(np.int64)) * factor
    bias = torch.from_numpy(site.array(2).astype(np.int64)) * factor if site.has(2) else None
    fixed = FixedPoint((1,), (0,), 0, 0, 0)
    try:
        prove_accumulator(weight, bias, fixed, x=site.quantization(0), channel_axis=0)
    except OverflowBoundError:
        return False
    return True
