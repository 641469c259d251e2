"""The last step of every integer kernel: from an accumulator to an int8 output.

y = sat(requant(acc, multiplier, shift) + zero_point)                                   plain
y = sat(requant(acc, multiplier, shift) + ((r * factor + offset) >> down))              with a residual r
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Residual:
    """A second operand added after requantization: (r * factor + offset) >> down, zero points in `offset`."""

    factor: int
    offset: int
    down: int


@dataclass(frozen=True)
class Epilogue:
    """How an accumulator becomes an output; `low` and `high` are where it saturates.

    `shifted` says that some channel has a left shift, so that the packed constants carry one per channel.
    """

    zero_point: int
    low: int = -128
    high: int = 127
    shifted: bool = False
    residual: Residual | None = None
    shift_index: int = 2

    @property
    def clamped(self) -> bool:
        """Whether saturating to int8 is not enough."""
        return (self.low, self.high) != (-128, 127)

    @property
    def instructions(self) -> float:
        """Instructions per output beyond SMMLAR, SSAT and STRB."""
        return 4.0 * self.clamped + 1.0 * self.shifted + (3.0 if self.residual is not None else 0.0)
