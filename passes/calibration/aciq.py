"""Analytic clipping: the clip with the least mean squared error for a Laplace or a Gauss distribution.

Values of scale 1 that are rounded to L steps over [-t, t] and clipped outside have the error

    Laplace   2 exp(-t) + t^2 / (3 L^2)
    Gauss     (t^2 + 1) erfc(t / sqrt 2) - t sqrt(2 / pi) exp(-t^2 / 2) + t^2 / (3 L^2)

whose minima are the clips of this module. One side of a distribution, as after a ReLU, has twice the steps. The more
likely of the two distributions is used. Source: Banner et al., Post training 4-bit quantization of convolutional
networks for rapid-deployment, NeurIPS 2019.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from math import erfc, exp, pi, sqrt

import torch
from torch import Tensor

_FARTHEST = 64.0  # scales from the mean; no number of steps below 2^32 needs a larger clip
_HALVINGS = 60


@lru_cache
def laplace_clip(levels: int) -> float:
    """Clip of a Laplace distribution in units of its mean absolute deviation, for `levels` steps on both sides."""
    return _root(lambda t: t / (3 * levels**2) - exp(-t))


@lru_cache
def gauss_clip(levels: int) -> float:
    """Clip of a Gauss distribution in units of its standard deviation, for `levels` steps on both sides."""
    return _root(
        lambda t: t * erfc(t / sqrt(2)) - sqrt(2 / pi) * exp(-t * t / 2) + t / (3 * levels**2),
    )


def clip_activations(sample: Tensor, *, levels: int) -> tuple[float, float]:
    """Ends of the clip of a tensor, from a sample of it: symmetric around its mean, or one side from zero.

    For a tensor with a single sign, zeros are excluded: they come from a ReLU, and are always exact.
    """
    values = sample.double()
    if float(values.min()) < 0 < float(values.max()):
        mean = float(values.mean())
        clip = float(_clip((values - mean)[None], levels=levels))
        return mean - clip, mean + clip
    nonzero = values[values != 0]
    if not len(nonzero):
        return 0.0, 0.0
    clip = float(_clip(nonzero[None], levels=2 * levels))
    return (0.0, clip) if float(nonzero[0]) > 0 else (-clip, 0.0)


def clip_scales(rows: Tensor, *, bits: int) -> Tensor:
    """Scale of each row of weights [rows, n] for symmetric integers: the outermost step ends at the clip.

    A scale never covers more than the largest weight of its row.
    """
    qmax = (1 << (bits - 1)) - 1
    levels = 2 * qmax + 1
    return torch.minimum(2 * _clip(rows, levels=levels) / levels, rows.abs().amax(1) / qmax)


def spread_correction(rows: Tensor, rounded: Tensor) -> Tensor:
    """Factor for each row of rounded weights that restores the standard deviation of the real ones.

    The correction of the mean in the source is part of the bias here.
    """
    real, kept = ((t - t.mean(1, keepdim=True)).norm(dim=1) for t in (rows, rounded))
    return torch.where((real > 0) & (kept > 0), real / kept, 1.0)


def _clip(rows: Tensor, *, levels: int) -> Tensor:
    """Clip of each row, whose mean is assumed to be zero, for the more likely distribution."""
    # scaled to size 1, so that squares of tiny and huge values are finite
    size = rows.abs().amax(1)
    unit = rows / torch.where(size > 0, size, 1.0)[:, None]
    deviation, variance = unit.abs().mean(1), unit.square().mean(1)
    laplace = -(2 * deviation).log() - 1
    gauss = -0.5 * (2 * pi * variance).log() - 0.5
    clip = torch.where(
        laplace > gauss, laplace_clip(levels) * deviation, gauss_clip(levels) * variance.sqrt()
    )
    return clip * size


def _root(function: Callable[[float], float]) -> float:
    """Root of an increasing function, by bisection."""
    low, high = 0.0, _FARTHEST
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if function(middle) < 0 else (low, middle)
    return (low + high) / 2
