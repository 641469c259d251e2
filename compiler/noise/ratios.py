"""Signal-to-noise ratios over samples."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

_DEVIATIONS = 3.0  # standard deviations of a count


@dataclass(frozen=True)
class Powers:
    """Sums of squares of a signal and of its noise, sample by sample.

    For integers each element counts 1, and each different element is noise of 1.
    """

    signal: tuple[float, ...] = ()
    noise: tuple[float, ...] = ()
    counts: bool = False  # True for integers, which are counted

    @staticmethod
    def of(reference: Tensor, actual: Tensor, *, samples: int) -> Powers:
        """Powers of tensors with this many samples along the first dimension.

        A tensor that cannot be split counts as one sample. Elements that are not finite in the reference are
        excluded.
        """
        counts = not reference.is_floating_point()
        if counts:
            signal, noise = torch.ones_like(reference, dtype=torch.float64), (reference != actual).double()
        else:
            finite = reference.isfinite()
            signal = torch.where(finite, reference, 0.0).double().square()
            noise = torch.where(finite, actual - reference, 0.0).double().square().nan_to_num(math.inf)
        parts = rows(reference, samples)
        return Powers(_sums(signal, parts), _sums(noise, parts), counts)

    @staticmethod
    def joined(parts: Iterable[Powers]) -> Powers:
        """Powers over the samples of all parts."""
        found = list(parts)
        signal = tuple(s for part in found for s in part.signal)
        noise = tuple(n for part in found for n in part.noise)
        return Powers(signal, noise, any(part.counts for part in found))

    def without(self, rows: Collection[int]) -> Powers:
        """Powers of all samples except these rows."""
        kept = [index for index in range(len(self.signal)) if index not in rows]
        return Powers(tuple(self.signal[i] for i in kept), tuple(self.noise[i] for i in kept), self.counts)

    def is_below(self, least_db: float) -> bool:
        """True if the ratio is lower; for integers, if more differ than by chance for the allowed number."""
        if not self.counts:
            return self.snr_db < least_db
        allowed = sum(self.signal) / 10 ** (least_db / 10)
        return sum(self.noise) > allowed + _DEVIATIONS * math.sqrt(allowed)

    @property
    def snr_db(self) -> float:
        """The lesser of the ratio over all samples and the ratio without the sample of largest signal.

        One sample far larger than all others would otherwise hide the loss of the others. Infinite without noise,
        minus infinite for noise without signal.
        """
        ratio = decibel(sum(self.signal), sum(self.noise))
        if self.counts or len(self.signal) < 2:
            return ratio
        largest = max(range(len(self.signal)), key=self.signal.__getitem__)
        rest = [i for i in range(len(self.signal)) if i != largest]
        signal, noise = (sum(powers[i] for i in rest) for powers in (self.signal, self.noise))
        return min(ratio, decibel(signal, noise)) if signal else ratio


def rows(tensor: Tensor, samples: int) -> int:
    """Number of samples along the first dimension of a tensor: all, or else 1."""
    return samples if tensor.numel() and tensor.ndim and tensor.shape[0] % samples == 0 else 1


def _sums(squares: Tensor, parts: int) -> tuple[float, ...]:
    return tuple(squares.reshape(parts, -1).sum(1).tolist())


def decibel(signal: float, noise: float) -> float:
    """10 log10 of signal over noise power."""
    if not noise:
        return math.inf
    return 10 * math.log10(signal / noise) if signal and math.isfinite(noise) else -math.inf


def finite(ratio: float) -> float | None:
    """A ratio for the report, which has no infinities."""
    return ratio if math.isfinite(ratio) else None


def power(tensor: Tensor) -> float:
    """Sum of squares."""
    return float(tensor.double().square().sum())
