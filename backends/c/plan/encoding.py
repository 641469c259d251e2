"""Encoding of the integers of an input or output.

    real = (integer - zero_point) * scale + offset

`offset` is 0 unless the model shifts the input by a part of a step before quantization.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ....ir import TensorType

_WHOLE = 1e-4  # share of a step, for a shift that was computed in float32


@dataclass(frozen=True, slots=True)
class PortEncoding:
    """Numbers of the model as integers from `low` to `high`."""

    scale: float
    zero_point: int
    low: int
    high: int
    offset: float = 0.0

    @staticmethod
    def of(type: TensorType) -> PortEncoding | None:
        """PortEncoding of a quantized type; None for other types."""
        q = type.quantization
        return None if q is None else PortEncoding(q.scale[0], q.zero_point[0], q.qmin, q.qmax)

    def before(self, *, scale: float, offset: float) -> PortEncoding:
        """The encoding of x if this is the encoding of x * scale + offset."""
        shift = -offset / self.scale
        whole = round(shift) if abs(shift - round(shift)) < _WHOLE else 0
        rest = 0.0 if whole or abs(shift) < _WHOLE else -offset / scale
        return PortEncoding(self.scale / scale, self.zero_point - whole, self.low, self.high, rest)

    def integers(self, reals: Tensor) -> Tensor:
        """The nearest integers (int64), halves away from zero, saturated; NaN gives the zero point."""
        numbers = reals if reals.is_floating_point() else reals.to(torch.float32)
        shifted = numbers - self.offset if self.offset else numbers
        ratio = (shifted / torch.tensor(self.scale, dtype=numbers.dtype)).nan_to_num(0.0, 1e9, -1e9)
        ratio = ratio.clamp(-1e9, 1e9)
        rounded = torch.trunc(ratio + torch.copysign(torch.full_like(ratio, 0.5), ratio)).to(torch.int64)
        return (rounded + self.zero_point).clamp(self.low, self.high)

    def reals(self, integers: Tensor) -> Tensor:
        """The float32 numbers that the integers represent."""
        steps = (integers.to(torch.int64) - self.zero_point).to(torch.float32)
        return steps * torch.tensor(self.scale, dtype=torch.float32) + self.offset
