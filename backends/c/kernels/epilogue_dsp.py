"""The last step of every integer kernel: from an accumulator to an int8 output.

y = sat(requant(acc, multiplier, shift) + zero_point)                                   plain
y = sat(requant(acc, multiplier, shift) + ((r * m + offset) >> s))              with a residual r
"""

from __future__ import annotations

from dataclasses import dataclass

from ....ir.arithmetic import Rescale

HEADERS = ("arithmetic.h", "dsp.h")


@dataclass(frozen=True)
class Epilogue:
    """How an accumulator becomes an output; `low` and `high` are where it saturates.

    `shifted` says that some channel has a left shift, so that the packed constants carry one per channel.
    """

    zero_point: int
    low: int = -128
    high: int = 127
    shifted: bool = False
    residual: Rescale | None = None

    @property
    def clamped(self) -> bool:
        """Whether saturating to int8 is not enough."""
        return (self.low, self.high) != (-128, 127)

    @property
    def instructions(self) -> float:
        """Instructions per output beyond SMMLAR, SSAT and STRB."""
        return 4.0 * self.clamped + 1.0 * self.shifted + (3.0 if self.residual is not None else 0.0)


def parameters(epilogue: Epilogue) -> str:
    """The C parameters of a kernel: operands, result, packed constants, working memory."""
    residual = "" if epilogue.residual is None else "const int8_t *r, "
    return f"const int8_t *x, {residual}int8_t *y, const int32_t *constants, void *scratch"
