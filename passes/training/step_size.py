"""Rounding with a learned step size (LSQ; Esser et al., ICLR 2020), and to the levels of a codebook.

    y = s * clamp(round(x / s), low, high)
    dy/dx = 1 inside, 0 where it saturates
    dy/ds = round(x / s) - x / s inside, low or high where it saturates; summed over n elements, / sqrt(n * high)

The parameter is t of s = s_0 * exp(t), which keeps steps positive and makes their changes relative; the gradient of t
is that of s divided by s, which gives the relative change of LSQ.

With a codebook, y = s * (the level nearest to x / s). The gradient passes unchanged, except where it would move x
beyond twice the outermost level; dy/ds is the level. With the levels -1 and 1 this is BinaryConnect (Courbariaux et
al., NeurIPS 2015), with a scale for each channel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_REACH = 2.0  # outermost levels


@dataclass(frozen=True)
class Range:
    """Quantized range relative to the zero point, and the scale of the step's gradient."""

    low: int
    high: int
    gain: float

    @staticmethod
    def of(low: int, high: int, *, elements: int) -> Range:
        """Range of a step that quantizes `elements` elements per sample."""
        return Range(low, high, (elements * max(high, -low)) ** -0.5)


def step_of(start: Tensor, growth: Tensor | None) -> Tensor:
    """The step size after its logarithm has grown by `growth`."""
    return start if growth is None else start * growth.exp()


def round_to_step(x: Tensor, start: Tensor, growth: Tensor | None, within: Range) -> Tensor:
    """`x` rounded to multiples of the grown step size; steps are scalars, or broadcast against `x`."""
    rounded: Tensor = _RoundToStep.apply(x, start, growth, within)  # type: ignore[no-untyped-call]
    return rounded


def round_to_levels(
    x: Tensor, start: Tensor, growth: Tensor | None, levels: Tensor, *, gain: float
) -> Tensor:
    """`x` rounded to the levels of a codebook times the grown step size; `gain` scales the gradient of the step."""
    rounded: Tensor = _RoundToLevels.apply(x, start, growth, levels, gain)  # type: ignore[no-untyped-call]
    return rounded


def nearest_levels(x: Tensor, levels: Tensor) -> Tensor:
    """The ascending level nearest to each element; the upper one of two equally near ones."""
    return levels[torch.bucketize(x.contiguous(), (levels[1:] + levels[:-1]) / 2, right=True)]


class _RoundToLevels(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,  # Any: torch's context takes any attribute
        x: Tensor,
        start: Tensor,
        growth: Tensor | None,
        levels: Tensor,
        gain: float,
    ) -> Tensor:
        step = step_of(start, growth).detach()
        y = nearest_levels(x / step, levels) * step
        ctx.save_for_backward(x, y, step)
        ctx.reach, ctx.gain, ctx.learns = _REACH * float(levels.abs().max()), gain, growth is not None
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # Any: as above
        (gradient,), (x, y, step) = gradients, ctx.saved_tensors
        passed = gradient * ((x.abs() <= ctx.reach * step) | (gradient * x > 0))
        if not ctx.learns:
            return passed, None, None, None, None
        moved = (gradient * y).sum_to_size(step.shape)
        return passed, None, ctx.gain * moved / step.square(), None, None


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
