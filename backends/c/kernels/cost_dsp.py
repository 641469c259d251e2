"""What a kernel costs, for the choice between kernels."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Cost:
    """Instructions and estimated Cortex-M4 cycles of one call (zero wait states), bytes of code."""

    instructions: float
    cycles: float
    code_bytes: int
