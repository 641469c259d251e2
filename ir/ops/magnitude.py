"""Magnitude of points given by two coordinates, such as the real and imaginary parts of a spectrum.

    y = sqrt(a^2 + b^2)

On integers, with u the real value of one unit of the root:

    v = (a - zero_a)^2 * weight_a + (b - zero_b)^2 * weight_b         unsigned, below 65535^2
    y = saturate(requant(root(v), multiplier, shift) + zero_y)        multiplier * 2^shift / 2^32 = u / scale_y

`root` is the whole number nearest to the square root. The weights are the squares of both scales in units of u^2, as
large as the bound of v allows. With operands of 16 bits that is impossible: both need the same scale, and both weights
are 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, sqrt

import torch
from torch import Tensor

from ..arithmetic import Requant, check_int32, prove_requant, requant
from ..encoding import Encoding
from ..errors import ShapeError
from ..tensor_type import TensorType
from .accumulate import clamp_bounds
from .base import IntegerCall, Quantized, operator
from .binary import OfReals
from .facts import Facts
from .quantize import per_tensor_types

_LARGEST_SQUARE = (1 << 32) - (1 << 18)  # with rounded weights the sum stays below 65535^2
_NARROW_BITS = 8


@dataclass(frozen=True)
class MagnitudeForm:
    """Integers of the form: factors of both squares, and the requantization of the root."""

    weights: tuple[int, int]
    step: Requant

    @staticmethod
    def of(a: Encoding, b: Encoding, y: Encoding) -> MagnitudeForm:
        """The form for operands and a result with these encodings; ShapeError if none exists."""
        scales = (a.scale[0], b.scale[0])
        reached = [q.reach * q.scale[0] / max(scales) for q in (a, b)]
        most = int(_LARGEST_SQUARE / (reached[0] ** 2 + reached[1] ** 2))
        if max(a.bits, b.bits) > _NARROW_BITS and scales[0] != scales[1]:
            raise ShapeError("a magnitude of operands of 16 bits needs one scale for both")
        if not most:
            raise ShapeError("a magnitude computes on values of at most 16 bits")
        weights = tuple(round(most * (scale / max(scales)) ** 2) for scale in scales)
        step = Requant.of(max(scales) / sqrt(most) / y.scale[0])
        prove_requant(65535, step)
        return MagnitudeForm((weights[0], weights[1]), step)


@operator("magnitude")
@dataclass(frozen=True)
class Magnitude(OfReals):
    """sqrt(a^2 + b^2)."""

    quantized = Quantized.COMPUTE
    arithmetic = Facts(commutative=True, homogeneous=True, bounds=(0.0, inf))

    def combine(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.sqrt(a * a + b * b)

    def check_quantized(self, operands: Sequence[TensorType | None], outputs: Sequence[TensorType]) -> None:
        MagnitudeForm.of(*per_tensor_types(*operands, outputs[0]))

    def integer(self, call: IntegerCall) -> Tensor:
        qa, qb, qy = per_tensor_types(*call.types, call.output)
        form = MagnitudeForm.of(qa, qb, qy)
        a, b = call.operand("a") - qa.zero_point[0], call.operand("b") - qb.zero_point[0]
        root = rounded_root(a * a * form.weights[0] + b * b * form.weights[1])
        y = requant(check_int32(root, "a root"), form.step.multiplier, form.step.shift) + qy.zero_point[0]
        return y.clamp(*clamp_bounds(self.clamp, qy))


def rounded_root(v: Tensor) -> Tensor:
    """Whole number nearest to the square root of integers from 0 to 2^52."""
    root = v.double().sqrt().floor().to(torch.int64)
    return root + (v - root * root > root)
