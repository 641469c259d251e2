"""Entropy calibration: the range with the least loss of information about the distribution of values.

The values of a tensor are counted in bins. A candidate range consists of consecutive bins: P are their counts, with
the counts beyond the ends added to the outermost bins; Q are the counts without these additions, merged into as many
equal steps as there are levels, and distributed again over the nonempty bins of each step. An empty outermost bin with
clipped values counts as nonempty. The candidate with the least KL(P || Q) is chosen. Source: Migacz, 8-bit inference
with TensorRT, GTC 2017.
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
    """The ends with the least divergence inside [low, high], which includes zero.

    Each end is searched separately among `candidates` positions, in turn, until neither moves. A range with fewer
    bins than levels is excluded: merging loses nothing there.
    """
    width = high - low
    if not width:
        return low, high
    values = sample.double()
    values = values[values != 0] / width  # zero is exact in every encoding, and has no effect on the range
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
    """KL(P || Q) of the range of bins [start, stop), in nats; infinite if the range or its outside has no values."""
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
    """The range with the least divergence, the widest of equals; the first is the widest and always a candidate."""
    listed = list(ranges)
    possible = [r for r in listed if r[1] - r[0] >= levels] or listed[:1]
    return min(possible, key=lambda r: divergence(counts, *r, levels=levels))
