"""Zero points without data, by half-quadratic splitting of an lp norm of the errors with p < 1 (HQQ).

    minimize over z  |w - s (round(w / s + z) - z)|_p^p,   p < 1, alternating for k = 1, 2, ...
        e = shrink(w - s (q - z)),   shrink(x) = sign(x) max(|x| - |x|^(p-1) / beta, 0)
        z = mean(q - (w - e) / s),   beta = 1.01 beta

A norm with p < 1 favours the many weights near zero over outliers. Source: Badri and Shaji, Half-quadratic quantization
of large machine learning models, 2023. Zero points are rounded to integers of 8 bits here, and scales then refitted by
least squares, s = <w, q - z> / <q - z, q - z>.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...ir import Encoding
from ...specs.options import Hqq
from .groupwise import fitting_dtype, stored_scales
from .rounding_methods import Coded, Rounded, RoundingTask, rounding_method

_BETA, _GROWTH = 10.0, 1.01
_TINY = 1e-30
_FARTHEST = 127  # zero point


@rounding_method(Hqq)
def round_by_hqq(task: RoundingTask, options: Hqq) -> Rounded:
    """Each weight separately, with a zero point for each scale; no sample is run."""
    coded = {}
    for name, stored in task.weights.items():
        weight = task.graph.params[name]
        integers, encoding = quantize_by_hqq(
            weight,
            bits=stored.bits,
            group_size=task.group_size(weight.shape),
            norm=options.norm,
            iterations=options.iterations,
            dtype=task.scales,
        )
        coarser = task.with_stored_scales(encoding)
        if coarser is not encoding:
            integers = _encode(weight, coarser)
        coded[name] = Coded.of(weight, integers, coarser, in_file=task.is_lazy(name))
    return Rounded(task.graph, coded)


def quantize_by_hqq(
    weight: Tensor,
    *,
    bits: int,
    group_size: int | None,
    norm: float = 0.7,
    iterations: int = 20,
    dtype: torch.dtype = torch.float16,
) -> tuple[Tensor, Encoding]:
    """Integers of `weight` [out, ...] and their encoding with a scale and a zero point for each group."""
    rows = weight.reshape(-1, group_size or weight[0].numel()).float()
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    dtype = fitting_dtype(rows, bits, dtype)
    scale = _range_scale(rows, (low, high), dtype)
    zero = _zeros(rows, scale, low - rows.amin(1, keepdim=True) / scale, (low, high), norm, iterations)
    zero = zero.round().clamp(-_FARTHEST, _FARTHEST)
    distance = (rows / scale + zero).round().clamp(low, high) - zero
    squares = distance.square().sum(1, keepdim=True)
    refitted = torch.where(squares > 0, (rows * distance).sum(1, keepdim=True) / squares, scale)
    scale = stored_scales(torch.where(refitted > 0, refitted, scale), dtype)
    encoding = Encoding(
        scale.flatten().to(dtype), zero.flatten().to(torch.int8), bits=bits, axis=0, group_size=group_size
    )
    return _encode(weight, encoding), encoding


def _encode(weight: Tensor, encoding: Encoding) -> Tensor:
    """The integers nearest to a weight in an encoding with zero points."""
    scale, zero = (
        numbers.tensor(torch.float32)[:, None] for numbers in (encoding.scale, encoding.zero_point)
    )
    integers = (weight.reshape(len(scale), -1).float() / scale + zero).round()
    return integers.clamp(encoding.qmin, encoding.qmax).reshape(weight.shape).to(encoding.container.torch)


def _range_scale(rows: Tensor, limits: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """Scales with which the levels span from the smallest to the largest weight; the span includes zero if it is far
    away.
    """
    low, high = limits
    least, most = rows.amin(1, keepdim=True), rows.amax(1, keepdim=True)
    scale = (most - least) / (high - low)
    is_far = torch.maximum(least, -most) > (_FARTHEST + low) * scale
    least, most = (
        torch.where(is_far, x, y) for x, y in ((least.clamp(max=0), least), (most.clamp(min=0), most))
    )
    return stored_scales((most - least) / (high - low), dtype)


def _zeros(
    rows: Tensor, scale: Tensor, zero: Tensor, limits: tuple[int, int], norm: float, iterations: int
) -> Tensor:
    """The best zero point of each row over the iterations."""
    best, least, beta = zero, torch.full_like(zero, torch.inf), _BETA
    for _ in range(iterations):
        integers = (rows / scale + zero).round().clamp(*limits)
        error = rows - scale * (integers - zero)
        size = error.abs().pow(norm).mean(1, keepdim=True)
        best, least = torch.where(size < least, zero, best), torch.minimum(size, least)
        magnitude = error.abs()
        kept = error.sign() * (magnitude - magnitude.clamp(min=_TINY).pow(norm - 1) / beta).clamp(min=0)
        zero = (integers - (rows - kept) / scale).mean(1, keepdim=True)
        beta *= _GROWTH
    return best
