"""Entropy calibration: the range whose quantization loses the least information about the distribution of values.

The values of a tensor are counted in bins. A candidate range holds some of the bins: P are their counts, with what lies
beyond the ends added to the outermost ones; Q are the counts without that, merged into as many equal steps as there are
levels and spread again over those bins of a step that hold any. An empty outermost bin that takes clipped values counts
as holding one. The candidate of least KL(P || Q) is chosen.
Source: Migacz, 8-bit inference with TensorRT, GTC 2017.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import inf

import torch
from torch import Tensor

_BINS = 4096
_ROUNDS = 4


def clip_by_divergence(
    sample: Tensor, *, low: float, high: float, levels: int, candidates: int
) -> tuple[float, float]:
    """The ends inside [low, high], which holds zero, of least divergence.

    Each end is searched by itself among `candidates` places, in turn, until neither moves. A range with fewer bins than
    levels is no candidate: there the merging loses nothing, whatever the range.
    """
    width = high - low
    if not width:
        return low, high
    values = sample.double()
    values = values[values != 0] / width  # zero is exact in every encoding, and tells nothing about a range
    counts = torch.histc(values, _BINS, low / width, high / width)
    zero = round(_BINS * (-low / width))
    start, stop = 0, _BINS
    for _ in range(_ROUNDS):
        before = (start, stop)
        stops = sorted({zero + round((_BINS - zero) * k / candidates) for k in range(1, candidates + 1)})
        stop = _best(((start, s) for s in reversed(stops)), counts, levels)[1]
        starts = sorted({zero - round(zero * k / candidates) for k in range(1, candidates + 1)})
        start = _best(((s, stop) for s in starts), counts, levels)[0]
        if before == (start, stop):
            break
    at_start, at_stop = (low + width * place / _BINS for place in (start, stop))
    return (low if start == 0 else at_start), (high if stop == _BINS else at_stop)


def divergence(counts: Tensor, start: int, stop: int, *, levels: int) -> float:
    """KL(P || Q) of the range of bins [start, stop), in nats; infinite where no value lies inside or beyond."""
    inside = counts[start:stop]
    p = inside.clone()
    p[0] += counts[:start].sum()
    p[-1] += counts[stop:].sum()
    seen = p > 0
    if not bool(seen.any()):
        return inf
    kept = torch.where(seen, inside.clamp(min=1), 0.0)
    step = torch.arange(len(kept)) * levels // len(kept)
    merged = torch.zeros(levels, dtype=kept.dtype).index_add(0, step, kept)
    holding = torch.zeros(levels, dtype=kept.dtype).index_add(0, step, seen.to(kept.dtype))
    q = (merged / holding.clamp(min=1))[step][seen]
    p = p[seen] / p.sum()
    return float((p * (p / (q / q.sum())).log()).sum())


def _best(ranges: Iterable[tuple[int, int]], counts: Tensor, levels: int) -> tuple[int, int]:
    """The range of least divergence, the widest of several; the first is the widest and always a candidate."""
    listed = list(ranges)
    possible = [r for r in listed if r[1] - r[0] >= levels] or listed[:1]
    return min(possible, key=lambda r: divergence(counts, *r, levels=levels))
