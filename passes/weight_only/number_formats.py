"""Number formats of stored weights whose levels are a table: NF4, FP8 (E4M3) and MXFP4.

    w = s * levels[code]

NF4 has 16 levels at quantiles of a normal distribution, with an exact zero (Dettmers et al., QLoRA, NeurIPS 2023). FP8
E4M3 has the numbers with 4 exponent bits and 3 mantissa bits up to 448 (Micikevicius et al., FP8 formats for deep
learning, 2022), MXFP4 those with 2 and 1 up to 6, with a power of two as the scale (OCP Microscaling formats, 2023).
Codes are indices into the ascending levels, not the bit patterns of these formats; scales are stored in the type set
in the spec.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import torch
from torch import Tensor
from torch.distributions import Normal

from ...ir import Encoding
from .groupwise import stored_scales

_PART = 1 << 18  # weights processed at a time
_SHARES = 12
_LEAST_SHARE, _LARGEST_SHARE = 0.6, 1.1
_NORMAL_TAIL = 0.9677083  # probability of the outermost quantile


@dataclass(frozen=True)
class NumberFormat:
    """Levels of a format, ascending, as float32; `is_power`: its scales are powers of two."""

    bits: int
    levels: Tensor
    is_power: bool = False

    @property
    def largest(self) -> float:
        """The largest magnitude of a level."""
        return float(self.levels.abs().max())


def _normal_quantiles() -> Tensor:
    """8 levels from -1 to 0 and 8 above to 1, at evenly spaced probabilities on each side."""
    normal = Normal(0.0, 1.0)
    positive, negative = (normal.icdf(torch.linspace(0.5, _NORMAL_TAIL, count)) for count in (9, 8))
    return torch.cat([-negative.flip(0)[:-1] / negative[-1], positive / positive[-1]])


def _floating(exponent_bits: int, mantissa_bits: int, *, bias: int, largest: float) -> Tensor:
    """All finite numbers of a small floating-point format, with subnormal ones."""
    steps, found = 1 << mantissa_bits, {0.0}
    for exponent in range(1 << exponent_bits):
        for mantissa in range(steps):
            significand = mantissa / steps + (exponent > 0)
            value = significand * 2.0 ** (max(exponent, 1) - bias)
            if value <= largest:
                found |= {value, -value}
    return torch.tensor(sorted(found))


FORMATS: Mapping[str, NumberFormat] = MappingProxyType(
    {
        "nf4": NumberFormat(4, _normal_quantiles()),
        "fp8_e4m3": NumberFormat(8, _floating(4, 3, bias=7, largest=448.0)),
        "mxfp4": NumberFormat(4, _floating(2, 1, bias=1, largest=6.0), is_power=True),
    }
)
"""The formats by their name in the spec."""


def quantize_to_format(
    weight: Tensor,
    format: NumberFormat,
    *,
    group_size: int | None,
    observer: Literal["minmax", "mse"] = "mse",
    dtype: torch.dtype = torch.float16,
) -> tuple[Tensor, Encoding]:
    """Codes of `weight` [out, ...] and their encoding with scales of `dtype`; groups divide an output channel."""
    rows = weight.reshape(-1, group_size or weight[0].numel())
    count = max(1, _PART // rows.shape[1])
    dtype = _fitting_dtype(rows, format, dtype)
    scales = torch.cat([_scales(part.float(), format, observer, dtype) for part in rows.split(count)])
    encoding = Encoding(
        scales.to(dtype), bits=format.bits, axis=0, group_size=group_size, levels=format.levels
    )
    return encode_to_levels(weight, encoding), encoding


def encode_to_levels(weight: Tensor, encoding: Encoding) -> Tensor:
    """The codes of the levels nearest to `weight` [out, ...], in an encoding with levels."""
    assert encoding.levels is not None
    levels, scales = encoding.levels.tensor(torch.float32), encoding.scale.tensor(torch.float32)
    middles = (levels[1:] + levels[:-1]) / 2
    rows, codes = weight.reshape(len(scales), -1), torch.empty(weight.shape, dtype=torch.uint8)
    count = max(1, _PART // rows.shape[1])
    parts = zip(rows.split(count), codes.view(len(scales), -1).split(count), scales.split(count), strict=True)
    for row, part, scale in parts:
        part.copy_(torch.bucketize((row.float() / scale[:, None]).contiguous(), middles))
    return codes


def _fitting_dtype(rows: Tensor, format: NumberFormat, dtype: torch.dtype) -> torch.dtype:
    """`dtype`, or float32 if the scales of these rows are out of the normal range of float16."""
    units = rows.abs().amax(1).float() / format.largest
    units = units[units > 0]
    limits = torch.finfo(torch.float16)
    fits = bool(((units > 4 * limits.tiny) & (units < limits.max / 4)).all())
    return dtype if fits or dtype is not torch.float16 else torch.float32


def _scales(
    rows: Tensor, format: NumberFormat, observer: Literal["minmax", "mse"], dtype: torch.dtype
) -> Tensor:
    """A scale for each row, by its largest weight or by least squared error, as float32."""
    unit = rows.abs().amax(1) / format.largest
    if format.is_power:
        exponent = torch.log2(unit.clamp(min=2.0**-126)).ceil()
        tried = [exponent] if observer == "minmax" else [exponent, exponent - 1]
        candidates = [stored_scales(2.0**e, dtype) for e in tried]
    elif observer == "minmax":
        candidates = [stored_scales(unit, dtype)]
    else:
        shares = torch.linspace(_LARGEST_SHARE, _LEAST_SHARE, _SHARES).tolist()
        candidates = [stored_scales(unit * share, dtype) for share in (1.0, *shares)]
    middles = (format.levels[1:] + format.levels[:-1]) / 2
    best, least = candidates[0], torch.full_like(unit, torch.inf)
    for scales in candidates:
        reals = format.levels[torch.bucketize(rows / scales[:, None], middles)] * scales[:, None]
        error = (reals - rows).square().sum(1)
        best, least = torch.where(error < least, scales, best), torch.minimum(error, least)
    return best
