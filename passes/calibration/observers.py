"""Ranges from calibration: the statistics of each tensor, and the rules that choose a range from them.

Every rule uses the same `Statistics`; none has a lower limit, so that small activations keep their precision.

    minmax           the smallest and largest value
    moving_average   exponential mean of the smallest and largest value of each batch
    percentile       the range with (1 - coverage) / 2 of the values outside at either end
    mse              the range inside the full one with the least mean squared error when quantized
    kl               the range whose quantization loses the least information (`entropy`)
    aciq             the clip with the least squared error for a Laplace or Gauss distribution (`aciq`)
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ...specs.options import (
    Aciq,
    Entropy,
    MinMax,
    MovingAverage,
    MseSearch,
    Observer,
    OwnObserver,
    Percentile,
)
from ...specs.plugins import OBSERVERS, PluginError
from ..errors import PassError
from .aciq import clip_activations
from .entropy import clip_by_divergence

_KEPT_VALUES = 1 << 17
_BINS = 2048
_MSE_ROUNDS = 4


@dataclass(frozen=True)
class Range:
    """Reals that an encoding must represent; zero is included, unless it is not needed."""

    low: float
    high: float

    @staticmethod
    def of(low: float, high: float) -> Range:
        """The smallest range that contains `low`, `high` and zero."""
        return Range(min(low, 0.0), max(high, 0.0))

    @property
    def width(self) -> float:
        """Distance between the ends."""
        return self.high - self.low

    def shifted(self, offset: float) -> Range:
        """The range of the same reals with `offset` added."""
        return Range(self.low + offset, self.high + offset)

    def union(self, other: Range) -> Range:
        """The smallest range that contains both."""
        return Range(min(self.low, other.low), max(self.high, other.high))


@dataclass(frozen=True)
class Statistics:
    """Calibration statistics of a tensor: min and max of each batch, a sample of values, channel means.

    `means` has the mean of each index of a dimension, by dimension, if requested.
    """

    batches: tuple[tuple[float, float], ...]
    sample: Tensor
    means: Mapping[int, Tensor] = field(default_factory=dict)

    @property
    def low(self) -> float:
        """Smallest value."""
        return min(low for low, _ in self.batches)

    @property
    def high(self) -> float:
        """Largest value."""
        return max(high for _, high in self.batches)

    def shifted(self, offset: float) -> Statistics:
        """Statistics of the same values with `offset` added, without means."""
        return Statistics(tuple((a + offset, b + offset) for a, b in self.batches), self.sample + offset)

    @staticmethod
    def joined(parts: Sequence[Statistics]) -> Statistics:
        """Statistics of values that share one encoding."""
        if len(parts) == 1:
            return parts[0]
        together = zip(*(part.batches for part in parts), strict=False)
        ends = tuple((min(low for low, _ in batch), max(high for _, high in batch)) for batch in together)
        return Statistics(ends, torch.cat([part.sample for part in parts]))


class Collector:
    """Gathers the statistics of one tensor over `batches` calls of `add`, with means along the dimensions `axes`."""

    def __init__(self, batches: int, *, axes: Collection[int] = ()) -> None:
        self._share = max(_KEPT_VALUES // max(batches, 1), 256)
        self._ends: list[tuple[float, float]] = []
        self._kept: list[Tensor] = []
        self._sums: dict[int, Tensor | float] = dict.fromkeys(sorted(axes), 0.0)
        self._elements = 0

    def add(self, x: Tensor) -> None:
        """Adds one batch; every value must be finite."""
        if not x.numel():
            return
        low, high = torch.aminmax(x)
        self._ends.append((float(low), float(high)))
        stride = (x.numel() // self._share) | 1  # odd: not aligned with rows of a power of two
        self._kept.append(x.detach().flatten()[::stride].to(torch.float32))
        self._elements += x.numel()
        for axis, total in self._sums.items():
            others = [i for i in range(x.ndim) if i != axis]
            self._sums[axis] = total + (x.double().sum(others) if others else x.double())

    def finish(self) -> Statistics | None:
        """The statistics; None if nothing was added."""
        if not self._ends:
            return None
        sums = {axis: torch.as_tensor(total) for axis, total in self._sums.items()}
        means = {axis: total * (len(total) / self._elements) for axis, total in sums.items()}
        return Statistics(tuple(self._ends), torch.cat(self._kept), means)


def min_max(statistics: Statistics) -> Range:
    """The range from the smallest to the largest value."""
    return Range.of(statistics.low, statistics.high)


def moving_average(statistics: Statistics, *, momentum: float) -> Range:
    """Exponential mean of the ends of the batches; the first batch is the start value."""
    low, high = statistics.batches[0]
    for batch_low, batch_high in statistics.batches[1:]:
        low = momentum * low + (1 - momentum) * batch_low
        high = momentum * high + (1 - momentum) * batch_high
    return Range.of(low, high)


def percentile(statistics: Statistics, *, coverage: float) -> Range:
    """The range with the middle share `coverage` of the values."""
    ordered = statistics.sample.sort().values
    outside = (1 - coverage) / 2
    last = len(ordered) - 1
    low, high = (float(ordered[round(last * at)]) for at in (outside, 1 - outside))
    return Range.of(low, high)


def mse(statistics: Statistics, *, levels: int, candidates: int) -> Range:
    """The range inside the full one with the least squared error of rounding and clipping together.

    Measured on a histogram, for each end separately, at `candidates` positions in turn, until neither moves. A step
    of width d costs d^2 / 12 for each value inside, and nothing for a zero, which is exact in every encoding.
    """
    full = min_max(statistics)
    if not full.width:
        return full
    sample = statistics.sample.double() / full.width
    low, high = full.low / full.width, full.high / full.width
    counts = torch.histc(sample, _BINS, low, high)
    centres = low + (torch.arange(_BINS, dtype=torch.float64) + 0.5) * (high - low) / _BINS
    is_rounded = centres.abs() >= 0.5 / _BINS

    def errors(lows: Tensor, highs: Tensor) -> Tensor:
        clipped = centres - torch.minimum(torch.maximum(centres, lows[:, None]), highs[:, None])
        steps = ((highs - lows) / (levels - 1))[:, None]
        inside = torch.where((clipped == 0) & is_rounded, steps**2 / 12, 0.0)
        return ((clipped**2 + inside) * counts).sum(1)

    shares = torch.arange(1, candidates + 1, dtype=torch.float64) / candidates
    ends = (low, high)
    for _ in range(_MSE_ROUNDS):
        before = ends
        lows = shares * low
        ends = (float(lows[errors(lows, torch.full_like(lows, ends[1])).argmin()]), ends[1])
        highs = shares * high
        ends = (ends[0], float(highs[errors(torch.full_like(highs, ends[0]), highs).argmin()]))
        if ends == before:
            break
    return Range.of(ends[0] * full.width, ends[1] * full.width)


def entropy(statistics: Statistics, *, levels: int, candidates: int) -> Range:
    """The range inside the full one whose quantization loses the least information about the values."""
    full = min_max(statistics)
    return Range.of(
        *clip_by_divergence(
            statistics.sample, low=full.low, high=full.high, levels=levels, candidates=candidates
        )
    )


def aciq(statistics: Statistics, *, levels: int) -> Range:
    """The analytic clip of the distribution that fits the values, within the range of the values."""
    full = min_max(statistics)
    low, high = clip_activations(statistics.sample, levels=levels)
    return Range.of(max(low, full.low), min(high, full.high))


def choose_range(statistics: Statistics, observer: Observer, *, levels: int) -> Range:
    """The range that the spec's observer chooses."""
    match observer:
        case MinMax():
            return min_max(statistics)
        case MovingAverage(momentum=momentum):
            return moving_average(statistics, momentum=momentum)
        case Percentile(coverage=coverage):
            return percentile(statistics, coverage=coverage)
        case MseSearch(candidates=candidates):
            return mse(statistics, levels=levels, candidates=candidates)
        case Entropy(candidates=candidates):
            return entropy(statistics, levels=levels, candidates=candidates)
        case Aciq():
            return aciq(statistics, levels=levels)
        case OwnObserver():
            return _own_range(statistics, observer, levels=levels)


def _own_range(statistics: Statistics, observer: OwnObserver, *, levels: int) -> Range:
    """The range that an observer of a package chooses; PassError if the observer cannot be used."""
    try:
        function = OBSERVERS.load(observer.kind)
    except PluginError as err:
        raise PassError(err.message) from err
    chosen = function(statistics, observer, levels=levels) if callable(function) else None
    if not isinstance(chosen, Range):
        raise PassError(f'observer "{observer.kind}" gives a {type(chosen).__name__}, not a `Range`')
    return Range.of(chosen.low, chosen.high)
