"""Norms on integers: statistics of a group are integers; the reciprocal of the root is computed by Newton's method.

For the n elements u of a group, in steps of their scale s, with sum S (0 without a mean), c_i = n * u_i - S:

    y_i = c_i / sqrt(n * sum(u^2) - S^2 + n^2 * eps / s^2) * w_i + b_i

In fixed point, with floor division and the common `requant`:

    d = max(n * sum(u^2) - S^2, 1) * 4^spread + epsilon,    taken times 4^shift into [2^60, 2^62)
    r = 2^61 / sqrt(d)    up to one part in 2^28, by the steps of `reciprocal_root`
    t_i = requant(c_i * 2^(shift + spread - root_bits), r)                             29 - root_bits bits of fraction
    y_i = requant(requant(t_i, weight_i) + bias_i, multiplier) + zero point                                  saturated

The integers of weights and biases do not depend on the scales of operand and result, so that calls which share weights
also share these integers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import frexp

import torch
from torch import Tensor

from ..arithmetic import INT32_MAX, requant
from ..encoding import Encoding
from ..errors import OverflowBoundError

_SUM_BITS = 60
_T_BITS = 29
_WEIGHT_BITS = {8: 26, 16: 30}  # by bits of the result
_BIAS_BITS = 25
_MULTIPLIER_BITS = {8: 14, 16: 18}  # at least
_PARABOLA = (
    2867787663,
    3527624810,
    1759398853,
)  # within 2.5 % of 1 / sqrt(p) for p from 1/4 to 1, times 2^30
_NEWTON_STEPS = 3


@dataclass(frozen=True, eq=False)
class NormForm:
    """Numbers of the fixed-point form. Weight and bias (int64) are shaped like the parameters, or [1] without
    parameters.

    `zero_point` is that of the operand if no mean is subtracted, else 0; `reach` is the largest magnitude without it.
    """

    count: int
    zero_point: int
    reach: int
    is_centred: bool
    spread: int
    epsilon: int
    root_bits: int
    weight: Tensor
    bias: Tensor
    multiplier: int

    @staticmethod
    def of(
        x: Encoding,
        y: Encoding,
        *,
        count: int,
        eps: float,
        is_centred: bool,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
    ) -> NormForm:
        """The form between two encodings; OverflowBoundError if none exists."""
        zero_point = 0 if is_centred else x.zero_point[0]
        reach = max(x.qmax - zero_point, zero_point - x.qmin)
        if count * 2 * reach > INT32_MAX:
            raise OverflowBoundError(f"a norm over {count:,} elements of {x.bits} bits can exceed int32")
        added = count**2 * eps / x.scale[0] ** 2
        spread = (_SUM_BITS - int((count * reach) ** 2 + added).bit_length()) // 2
        if spread < 0:
            raise OverflowBoundError(
                f"the epsilon {eps:g} of a norm is too large for steps of {x.scale[0]:g}"
            )
        root_bits = -(-((count - 1).bit_length()) // 2)
        weight = torch.ones(1) if weight is None else weight
        bias = torch.zeros(1) if bias is None else bias
        weight_bits = 32 - _T_BITS + root_bits  # bits that a product with t loses
        fraction = min(
            _room(weight, _WEIGHT_BITS[y.bits]) - weight_bits,
            _room(bias, _BIAS_BITS),
            32 - _MULTIPLIER_BITS[y.bits] - frexp(y.scale[0])[1],
        )
        multiplier = round(2.0 ** (32 - fraction) / y.scale[0])
        if not 0 < multiplier <= INT32_MAX:
            raise OverflowBoundError(
                "weight and bias of a norm and the steps of its result are too far apart"
            )
        return NormForm(
            count,
            zero_point,
            reach,
            is_centred,
            spread,
            round(added * 4**spread),
            root_bits,
            _fixed(weight, weight_bits + fraction),
            _fixed(bias, fraction),
            multiplier,
        )

    def apply(self, x: Tensor, axes: Sequence[int], shape: Sequence[int], y: Encoding) -> Tensor:
        """Results for integers `x` with statistics over `axes`; `shape` is the shape to which weight and bias are
        expanded.
        """
        u = x - self.zero_point
        total = u.sum(tuple(axes), keepdim=True) if self.is_centred else 0
        squares = self.count * u.square().sum(tuple(axes), keepdim=True)
        deviation = (squares - total * total).clamp(min=1)  # if it is 0, all c are 0
        reciprocal, shift = reciprocal_root(deviation * 4**self.spread + self.epsilon)
        shift = shift + self.spread - self.root_bits
        centred = self.count * u - total
        shifted = torch.where(shift >= 0, centred << shift.clamp(min=0), centred >> (-shift).clamp(min=0))
        normed = requant(shifted, reciprocal, 0)
        scaled = requant(normed, _along(self.weight, shape), 0) + _along(self.bias, shape)
        return (requant(scaled, self.multiplier, 0) + y.zero_point[0]).clamp(y.qmin, y.qmax)


def reciprocal_root(d: Tensor) -> tuple[Tensor, Tensor]:
    """r and shift for numbers from 1 to 2^62 - 1: 1 / sqrt(d) = r * 2^shift / 2^61, up to one part in 2^28.

    r has 30 bits of fraction. It begins as the parabola that is nearest to the reciprocal root of the 32 highest bits p
    of d, and three steps of Newton's method follow, r = r * (3 - p * r^2) / 2, products cut off to their high words.
    """
    shift = torch.zeros_like(d)
    for step in (16, 8, 4, 2, 1):
        small = d < 1 << (62 - 2 * step)
        d, shift = torch.where(small, d << (2 * step), d), torch.where(small, shift + step, shift)
    part = d >> 30
    constant, linear, quadratic = _PARABOLA
    r = constant - (part * (linear - (part * quadratic >> 32)) >> 32)
    for _ in range(_NEWTON_STEPS):
        one = part * (r * r >> 32) >> 32
        r = (r * (((3 << 28) - one) << 2) >> 32) << 1
    return r.clamp(max=(1 << 31) - 1), shift


def _room(numbers: Tensor, bits: int) -> int:
    """Fraction bits with which the numbers stay below 2^bits."""
    largest = float(numbers.abs().max()) if numbers.numel() else 0.0
    return bits - frexp(largest)[1] if largest else bits


def _fixed(numbers: Tensor, fraction: int) -> Tensor:
    return (numbers.to(torch.float64) * 2.0**fraction).round().to(torch.int64)


def _along(parameter: Tensor, shape: Sequence[int]) -> Tensor:
    return parameter if parameter.numel() == 1 else parameter.reshape(tuple(shape))
