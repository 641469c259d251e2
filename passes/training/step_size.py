"""Rounding to a grid whose step is learned (LSQ; Esser et al., ICLR 2020).

    y = s * clamp(round(x / s), low, high)
    dy/dx = 1 inside, 0 where it saturates
    dy/ds = round(x / s) - x / s inside, low or high where it saturates; summed over n elements, / sqrt(n * high)

What is learned is t of s = s_0 * exp(t), so that no step becomes negative and each changes in proportion to itself;
the gradient of t is that of s divided by s, which is the change in proportion that LSQ makes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Range:
    """The smallest and the largest integer, counted from the zero point, and the weight of a step's gradient."""

    low: int
    high: int
    gain: float

    @staticmethod
    def of(low: int, high: int, *, elements: int) -> Range:
        """The range for a step that serves so many elements of a sample."""
        return Range(low, high, (elements * max(high, -low)) ** -0.5)


def step_of(start: Tensor, growth: Tensor | None) -> Tensor:
    """The step after its logarithm grew by so much."""
    return start if growth is None else start * growth.exp()


def round_to_step(x: Tensor, start: Tensor, growth: Tensor | None, within: Range) -> Tensor:
    """`x` on the grid of the step that has grown; steps are numbers, or broadcast against `x`."""
    rounded: Tensor = _RoundToStep.apply(x, start, growth, within)  # type: ignore[no-untyped-call]
    return rounded


class _RoundToStep(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # Any: torch's context takes any attribute
        x: Tensor,
        start: Tensor,
        growth: Tensor | None,
        within: Range,
    ) -> Tensor:
        step = step_of(start, growth).detach()
        y = (x / step).round_().clamp_(within.low, within.high).mul_(step)
        ctx.save_for_backward(x, y, step)
        ctx.within, ctx.learns = within, growth is not None
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # Any: as above
        (gradient,), (x, y, step), within = gradients, ctx.saved_tensors, ctx.within
        inside = (x >= within.low * step) & (x <= within.high * step)
        passed = gradient * inside
        if not ctx.learns:
            return passed, None, None, None
        moved = torch.addcmul(gradient * y, passed, x, value=-1).sum_to_size(step.shape)
        return passed, None, within.gain * moved / step.square(), None
