"""How many units of each group stay: uniformly, by global ranking, or by an exact integer program.

All three keep to every limit at once: polynomials in the numbers of units that stay (`prune_cost`), and what the cut
network is predicted to take on the target (`prune_budget`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from ...specs.options import PruneOptions
from ..errors import PassError
from .budget import Device, allocate_on_device
from .cost import Costs
from .program import solve
from .ranking import Ranked


@dataclass(frozen=True, slots=True)
class Spent:
    """One resource: what the whole network takes, what is left after the cut, and what it may take."""

    resource: str
    before: float
    after: float
    limit: float


@dataclass(frozen=True)
class Allocation:
    """Units that stay of each group, what they cost as shares of the whole, and how good the answer is proven.

    `rounds` says how often the program was solved, where costs on the target had to be met.
    """

    kept: np.ndarray
    shares: Mapping[str, float]
    gap: float | None = None
    spent: tuple[Spent, ...] = ()
    rounds: int | None = None


def allocate(
    ranked: Ranked, costs: Costs, options: PruneOptions, *, device: Device | None = None
) -> Allocation:
    """Units to keep within the budget; PassError with the nearest that is feasible.

    A uniform share of channels alone is taken as it stands, whatever `keep` holds back.
    """
    meter = _Meter(ranked, costs, _shares(options), device)
    gap = rounds = None
    if options.allocation == "uniform" and set(meter.limits) == {"channels"} and device is None:
        kept = ranked.rounded(np.floor(meter.limits["channels"] * ranked.sizes + 1e-9))
        return Allocation(kept, meter.shares(kept), spent=meter.spent(kept))
    meter.check_feasible()
    if options.allocation == "uniform":
        kept = _uniform(ranked, meter.fits)
    elif options.allocation == "global":
        kept = _global(ranked, meter.fits)
    elif device is None:
        solution = solve(ranked, costs, meter.absolute)
        kept, gap = solution.kept, solution.gap
    else:
        solution, rounds = allocate_on_device(ranked, costs, meter.absolute, device)
        kept, gap = solution.kept, solution.gap
    return Allocation(kept, meter.shares(kept), gap, meter.spent(kept), rounds)


def _shares(options: PruneOptions) -> dict[str, float]:
    """The limits of the budget that are shares of polynomials."""
    budget = options.budget
    assert budget is not None
    given = {"macs": budget.macs, "params": budget.params, "channels": budget.channels}
    return {name: share for name, share in given.items() if share is not None}


class _Meter:
    """Costs as shares of those of the whole graph, and on the target where there are limits of it."""

    def __init__(
        self, ranked: Ranked, costs: Costs, limits: Mapping[str, float], device: Device | None
    ) -> None:
        self._ranked, self._costs, self._device = ranked, costs, device
        self.limits = limits
        self.whole = {name: max(costs.evaluate(name, ranked.sizes), 1.0) for name in costs.terms}
        self.whole["channels"] = float(max(ranked.sizes.sum(), 1))

    @property
    def absolute(self) -> dict[str, float]:
        """The limits in units of the costs."""
        return {name: limit * self.whole[name] for name, limit in self.limits.items()}

    def shares(self, kept: np.ndarray) -> dict[str, float]:
        """Each cost when `kept` units stay."""
        shares = {name: self._costs.evaluate(name, kept) / self.whole[name] for name in self._costs.terms}
        return {**shares, "channels": float(kept.sum()) / self.whole["channels"]}

    def fits(self, kept: np.ndarray) -> bool:
        """Whether every limit holds."""
        shares = self.shares(kept)
        if any(shares[name] > limit + 1e-9 for name, limit in self.limits.items()):
            return False
        return self._device is None or self._device.fits(kept)

    def spent(self, kept: np.ndarray) -> tuple[Spent, ...]:
        """Every limited resource."""
        shares = self.shares(kept)
        rows = [
            Spent(name, self.whole[name], shares[name] * self.whole[name], limit * self.whole[name])
            for name, limit in self.limits.items()
        ]
        if self._device is not None:
            whole, left = self._device.measure(self._ranked.sizes), self._device.measure(kept)
            rows += [
                Spent(name, whole[name], left[name], limit) for name, limit in self._device.limits.items()
            ]
        return tuple(rows)

    def check_feasible(self) -> None:
        """PassError when even the least that may stay is too much."""
        fewest = self._ranked.fewest
        least = self.shares(fewest)
        missed = [
            f"{name}: at least {100 * least[name]:.1f} % stay, the budget is {100 * limit:.1f} %"
            for name, limit in self.limits.items()
            if least[name] > limit + 1e-9
        ]
        if self._device is not None:
            missed += self._device.missed(fewest)
        if missed:
            advice = "lower `floor` or `multiple`, keep fewer layers, or raise the budget"
            raise PassError(f"no channels meet the budget ({'; '.join(missed)}); {advice}")


def _uniform(ranked: Ranked, fits: Callable[[np.ndarray], bool]) -> np.ndarray:
    """The largest share of every group that fits."""
    low, high = 0.0, 1.0
    for _ in range(40):
        share = (low + high) / 2
        if fits(ranked.rounded(np.floor(share * ranked.sizes))):
            low = share
        else:
            high = share
    return ranked.rounded(np.floor(low * ranked.sizes))


def _global(ranked: Ranked, fits: Callable[[np.ndarray], bool]) -> np.ndarray:
    """The highest threshold of score under which units go, wherever they are, until the budget is met."""
    scores = np.unique(np.concatenate([np.zeros(1), *ranked.values]))

    def kept_above(index: int) -> np.ndarray:
        threshold = scores[index] if index < len(scores) else np.inf
        return ranked.rounded(np.array([(values >= threshold).sum() for values in ranked.values]))

    low, high = 0, len(scores)
    while low < high:
        middle = (low + high) // 2
        if fits(kept_above(middle)):
            high = middle
        else:
            low = middle + 1
    return kept_above(low)
