"""Encodings: representation of reals by the stored elements of a tensor, small integers.

    real = (level - zero_point) * scale,   level = code, or levels[code] with a codebook

`scale` and `zero_point` hold one number per tensor, per channel of `axis`, or per group of `group_size` consecutive
elements inside each channel (the channel's other dimensions flattened in order). Codes are signed integers in two's
complement or, with a codebook, indices of its levels, in ascending order.

Integer operators compute on codes of INTEGER_BITS bits with positive scales. Other codes, and scales of either sign
(so that the largest weight uses the additional negative level) are for stored weights.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import prod

import numpy as np
import torch

from .element_type import DType
from .errors import ShapeError
from .numbers import Numbers

STORAGE_BITS = (2, 3, 4, 5, 6, 8, 16, 32)
INTEGER_BITS = (2, 4, 8, 16, 32)
"""Bit widths of integer operators."""
FARTHEST_ZERO = 1 << 20
"""Largest magnitude of a zero point; float32 is exact up to it."""
_CONTAINER = {16: DType.I16, 32: DType.I32}
CODEBOOK_BITS = (2, 4, 8)
"""Bits of the codes of a codebook."""


@dataclass(frozen=True, slots=True, init=False)
class Encoding:
    """Representation of reals by stored codes of `bits` bits."""

    scale: Numbers[float]
    zero_point: Numbers[int]
    bits: int
    axis: int | None
    group_size: int | None
    levels: Numbers[float] | None

    def __init__(
        self,
        scale: Iterable[float] | torch.Tensor | Numbers[float],
        zero_point: Iterable[int] | torch.Tensor | Numbers[int] = (0,),
        bits: int = 8,
        axis: int | None = None,
        group_size: int | None = None,
        levels: Iterable[float] | torch.Tensor | Numbers[float] | None = None,
    ) -> None:
        """Scales and levels given as a tensor are stored in its element type; one zero point is used for all scales."""
        put = object.__setattr__
        put(self, "scale", Numbers.of_reals(scale))
        put(self, "zero_point", Numbers.of_integers(zero_point))
        put(self, "bits", bits)
        put(self, "axis", axis)
        put(self, "group_size", group_size)
        put(self, "levels", None if levels is None else Numbers.of_reals(levels))
        self._check()

    def _check(self) -> None:
        if self.bits not in STORAGE_BITS:
            raise ShapeError(f"{self.bits} storage bits; the choices are {', '.join(map(str, STORAGE_BITS))}")
        scale, zero = self.scale.array, self.zero_point.array
        if not len(scale) or not (np.isfinite(scale) & (scale != 0)).all():
            raise ShapeError("a scale must be a finite number other than 0")
        if self.axis is None and scale[0] < 0:
            raise ShapeError("the scale of a whole tensor must be positive")
        if len(zero) not in (1, len(scale)):
            raise ShapeError(f"{len(zero)} zero points for {len(scale)} scales")
        if zero.min() < -FARTHEST_ZERO or zero.max() > FARTHEST_ZERO:
            raise ShapeError(f"a zero point is outside -{FARTHEST_ZERO}..{FARTHEST_ZERO}")
        if self.axis is None and (len(scale) > 1 or self.group_size is not None):
            raise ShapeError("several scales or a group size need an axis")
        if self.levels is not None:
            self._check_levels(self.levels)

    def _check_levels(self, levels: Numbers[float]) -> None:
        if self.bits not in CODEBOOK_BITS:
            raise ShapeError(f"codes of {self.bits} bits; a codebook takes {CODEBOOK_BITS}")
        if not 1 <= len(levels) <= 1 << self.bits:
            raise ShapeError(f"{len(levels)} levels for codes of {self.bits} bits")
        if not np.isfinite(levels.array).all() or not (np.diff(levels.array) > 0).all():
            raise ShapeError("the levels of a codebook are finite and ascend")
        if not self.is_symmetric:
            raise ShapeError("a codebook has no zero point beside its levels")

    @property
    def qmin(self) -> int:
        """Smallest code."""
        return 0 if self.levels is not None else -(1 << (self.bits - 1))

    @property
    def qmax(self) -> int:
        """Largest code."""
        return len(self.levels) - 1 if self.levels is not None else (1 << (self.bits - 1)) - 1

    @property
    def reach(self) -> int:
        """Largest distance of an integer from its zero point."""
        zeros = self.zero_point.array
        return max(self.qmax - int(zeros.min()), int(zeros.max()) - self.qmin)

    @property
    def holds_zero(self) -> bool:
        """True if 0 is one of the reals, as padding requires; values far from zero may lack it."""
        if self.levels is not None:
            return 0.0 in self.levels
        zeros = self.zero_point.array
        return bool(self.qmin <= zeros.min() and zeros.max() <= self.qmax)

    @property
    def container(self) -> DType:
        """Element type of the codes during computation."""
        return DType.U8 if self.levels is not None else _CONTAINER.get(self.bits, DType.I8)

    @property
    def is_integer(self) -> bool:
        """True if integer operators compute on the codes."""
        is_positive = bool((self.scale.array > 0).all())
        return self.levels is None and self.bits in INTEGER_BITS and is_positive

    @property
    def is_symmetric(self) -> bool:
        """True if every zero point is 0."""
        return not self.zero_point.array.any()

    @property
    def is_per_tensor(self) -> bool:
        """True if the whole tensor has one scale."""
        return self.axis is None

    @property
    def parameter_bytes(self) -> int:
        """Bytes of scales, zero points (unless all are 0) and codebook, as stored."""
        zeros = 0 if self.is_symmetric else self.zero_point.bytes
        return self.scale.bytes + zeros + (0 if self.levels is None else self.levels.bytes)

    def check(self, shape: tuple[int, ...]) -> None:
        """Raises ShapeError unless the number of scales fits `shape`."""
        if self.axis is None:
            return
        if not 0 <= self.axis < len(shape):
            raise ShapeError(f"quantization axis {self.axis} outside a tensor of rank {len(shape)}")
        expected = shape[self.axis]
        if self.group_size is not None:
            per_channel = prod(shape) // max(shape[self.axis], 1)
            if per_channel % self.group_size:
                raise ShapeError(
                    f"groups of {self.group_size} do not divide {per_channel} elements a channel"
                )
            expected *= per_channel // self.group_size
        if len(self.scale) != expected:
            raise ShapeError(f"{len(self.scale)} scales for axis {self.axis} of {shape}; expected {expected}")

    def of_channels(self, channels: torch.Tensor) -> Encoding:
        """The encoding of these channels of `axis`, in this order; the encoding itself if the whole tensor has one
        scale.
        """
        if self.axis is None:
            return self
        if self.group_size is not None or len(self.zero_point) > 1:
            raise ShapeError("channels are taken from values with one scale per channel and one zero point")
        return replace(self, scale=Numbers.of_reals(self.scale.tensor()[channels]))

    def expand(self, shape: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
        """Scale (float64) and zero point (int64) as tensors that broadcast against `shape`."""
        zero = self.zero_point.tensor(torch.int64).expand(len(self.scale))
        return self.spread(self.scale.tensor(torch.float64), shape), self.spread(zero, shape)

    def spread(self, numbers: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        """One number per scale, as a tensor that broadcasts against `shape`."""
        if self.axis is None:
            return numbers.reshape(())
        view = [1] * len(shape)
        view[self.axis] = shape[self.axis]
        if self.group_size is None:
            return numbers.view(view)
        moved = [shape[self.axis], *(n for i, n in enumerate(shape) if i != self.axis)]
        return numbers.repeat_interleave(self.group_size).view(moved).movedim(0, self.axis)

    def quantize(self, real: torch.Tensor) -> torch.Tensor:
        """Codes (int64) nearest to `real`: halves away from zero, saturated; NaN gives the zero point.

        With a codebook, the code of the nearest level; the lower of two equally near ones. NaN counts as 0.
        """
        scale, zero = self.expand(tuple(real.shape))
        ratio = (real / scale.to(real.dtype)).nan_to_num(0.0, 1e9, -1e9).clamp(-1e9, 1e9)
        if self.levels is not None:
            levels = self.levels.tensor(ratio.dtype)
            return torch.bucketize(ratio.contiguous(), (levels[1:] + levels[:-1]) / 2)
        rounded = torch.trunc(ratio + torch.copysign(torch.full_like(ratio, 0.5), ratio)).to(torch.int64)
        return (rounded + zero).clamp(self.qmin, self.qmax)

    def dequantize(self, codes: torch.Tensor, *, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """Reals that `codes` represent, computed in `dtype`."""
        shape = tuple(codes.shape)
        scale = self.scale.tensor(torch.float64).to(dtype)
        if self.axis == 0 and self.is_symmetric and self.levels is None and codes.numel():
            reals = codes.to(dtype, copy=True).reshape(len(scale), -1)  # rows share a scale
            return reals.mul_(scale[:, None]).reshape(shape)
        scale = self.spread(scale, shape)
        if self.levels is not None:
            return self.levels.tensor(dtype)[codes.to(torch.int64)] * scale
        if self.is_symmetric:
            return codes.to(dtype) * scale
        zero = self.zero_point.tensor(torch.int64).expand(len(self.scale))
        return (codes.to(torch.int64) - self.spread(zero, shape)).to(dtype) * scale
