"""The integer arithmetic that the interpreter and the emitted C share, bit for bit.

    requant(acc, multiplier, shift) = (int64(acc << shift) * multiplier + 2^31) >> 32

It rounds once, ties toward +infinity. With `shift` 0 it is one instruction (SMMLAR) on a Cortex-M with DSP. The same
function is used for sums of up to 48 bits, which some layers with many inputs need. Additions and rescalings use
16-bit multipliers and one arithmetic shift:

    rescale(x_1, ..., x_n) = (sum_i x_i * multiplier_i + offset) >> shift
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch

from .errors import OverflowBoundError

INT32_MAX = (1 << 31) - 1
WIDEST_SUM = (1 << 47) - 1
MAX_RESCALE_SHIFT = 22


@dataclass(frozen=True, slots=True)
class Requant:
    """A real factor as 32-bit multiplier and left shift: factor = multiplier * 2^shift / 2^32."""

    multiplier: int
    shift: int

    @staticmethod
    def of(factor: float) -> Requant:
        """The nearest representation of a positive factor; shift 0 whenever factor < 0.5."""
        exact, shift = Fraction(factor), 0
        while round(exact * (1 << (32 - shift))) > INT32_MAX:
            shift += 1
            if shift > 31:
                raise OverflowBoundError(f"a scale ratio of {factor:g} is too large for the integer form")
        return Requant(round(exact * (1 << (32 - shift))), shift)


def requant(acc: torch.Tensor, multiplier: torch.Tensor | int, shift: torch.Tensor | int) -> torch.Tensor:
    """High word of `(acc << shift) * multiplier`, rounded once; int64 tensors that hold int32 values."""
    shifted = check_int32(acc << shift, "a shifted accumulator")
    return (shifted * multiplier + (1 << 31)) >> 32


def requant_sum(acc: torch.Tensor, multiplier: torch.Tensor | int, shift: torch.Tensor | int) -> torch.Tensor:
    """`requant` of sums of up to 48 bits; OverflowBoundError if a sum is larger.

    The product has more than 64 bits, so the upper and lower parts of the sum are multiplied separately.
    """
    shifted = acc << shift
    if acc.numel() and int((acc.abs() << shift).max()) > WIDEST_SUM:
        raise OverflowBoundError("an accumulator exceeds 48 bits")
    high, low = shifted >> 16, shifted & 0xFFFF
    return (high * multiplier + ((low * multiplier + (1 << 31)) >> 16)) >> 16


@dataclass(frozen=True, slots=True)
class Rescale:
    """Integer weighted sum that rescales several quantized operands to one scale with one rounding."""

    multipliers: tuple[int, ...]
    offset: int
    shift: int

    @staticmethod
    def of(
        factors: Sequence[float], zero_points: Sequence[int], zero_point: int, *, bits: int = 8
    ) -> Rescale:
        """Form of `sum_i factor_i * (x_i - zero_point_i) + zero_point` for operands of at most `bits` bits.

        The shift is the largest, up to 22, that keeps every multiplier within 16 bits signed and every sum within
        int32. OverflowBoundError if there is none.
        """
        for shift in range(MAX_RESCALE_SHIFT, -1, -1):
            multipliers = tuple(round(Fraction(f) * (1 << shift)) for f in factors)
            offset = (zero_point << shift) + ((1 << shift) >> 1)
            offset -= sum(m * z for m, z in zip(multipliers, zero_points, strict=True))
            bound = abs(offset) + sum(abs(m) << (bits - 1) for m in multipliers)
            if max(map(abs, multipliers)) <= 32767 and bound <= INT32_MAX:
                return Rescale(multipliers, offset, shift)
        largest = max(map(abs, factors))
        raise OverflowBoundError(f"a scale ratio of {largest:g} is too large for the integer form")

    def apply(self, *operands: torch.Tensor) -> torch.Tensor:
        """The rescaled sum, before saturation; every partial sum is asserted to fit int32."""
        total = torch.full_like(operands[0], self.offset)
        for x, multiplier in zip(operands, self.multipliers, strict=True):
            total = check_int32(total + x * multiplier, "a rescaled sum")
        return total >> self.shift


def prove_requant(bound: int, *steps: Requant) -> None:
    """Raises OverflowBoundError unless every accumulator up to `bound` fits int32 before and after the left shift."""
    largest = bound << max(step.shift for step in steps)
    if largest > INT32_MAX:
        raise OverflowBoundError(f"an accumulator can reach {largest:,}, beyond int32")


def check_int32(x: torch.Tensor, what: str) -> torch.Tensor:
    """Returns `x`; OverflowBoundError if an element does not fit int32, with `what` as its name."""
    if x.numel() and (int(x.max()) > INT32_MAX or int(x.min()) < -INT32_MAX - 1):
        raise OverflowBoundError(f"{what} exceeds int32")
    return x
