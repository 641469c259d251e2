"""Allocation of kept units to groups: uniform, by global ranking, or by an exact integer program.

All three meet all limits together: polynomials in the numbers of kept units (`channel_costs`), and the predicted cost
of the cut network on the target (`budget`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from ...specs.options import PruneOptions
from ..assign_bits.bit_costs import BYTE
from ..errors import PassError
from .bit_choices import BYTES, NO_BIT_CHOICES, BitChoices
from .budget import Device, allocate_on_device
from .channel_costs import NO_BITS, Bits, Costs
from .channel_program import ROUNDING, LogShare, Utility, solve
from .ranking import Ranked


@dataclass(frozen=True, slots=True)
class Spent:
    """One resource: amount of the whole network, amount after the cut, and limit."""

    resource: str
    before: float
    after: float
    limit: float


@dataclass(frozen=True)
class Allocation:
    """Kept units of each group, their cost as shares of the whole, and the proven optimality gap.

    `rounds` is the number of solved programs for costs on the target; `bits` are those of layers with free bit
    widths.
    """

    kept: np.ndarray
    shares: Mapping[str, float]
    gap: float | None = None
    spent: tuple[Spent, ...] = ()
    rounds: int | None = None
    bits: Bits = field(default_factory=dict)


def allocate(
    ranked: Ranked,
    costs: Costs,
    options: PruneOptions,
    *,
    device: Device | None = None,
    utility: Utility | None = None,
    choices: BitChoices = NO_BIT_CHOICES,
) -> Allocation:
    """Units to keep within the budget, with the bits of the layers in `choices`; PassError with the nearest feasible
    one.

    A uniform share of channels is applied as given, independent of `keep`. `utility` is the objective of the integer
    program.
    """
    meter = _Meter(ranked, costs, options, device, choices)
    bits: Bits = NO_BITS
    gap = rounds = None
    if options.allocation == "uniform" and set(meter.limits) == {"channels"} and device is None:
        kept = ranked.rounded(np.floor(meter.limits["channels"] * ranked.sizes + 1e-9))
        return Allocation(kept, meter.shares(kept), spent=meter.spent(kept))
    meter.check_feasible()
    if options.allocation == "uniform":
        kept = _uniform(ranked, meter.fits)
    elif options.allocation == "global":
        kept = _global(ranked, meter.fits)
    else:
        utility = utility or LogShare(ranked)
        if device is None:
            solution = solve(ranked, costs, meter.absolute, utility)
        else:
            solution, rounds = allocate_on_device(ranked, costs, meter.absolute, utility, device)
        kept, bits, gap = solution.kept, solution.bits, solution.gap
    return Allocation(kept, meter.shares(kept, bits), gap, meter.spent(kept, bits), rounds, bits)


class _Meter:
    """Costs as shares of those of the whole graph, and on the target if it has limits.

    The whole graph has weights of 8 bits if bit widths are free.
    """

    def __init__(
        self,
        ranked: Ranked,
        costs: Costs,
        options: PruneOptions,
        device: Device | None,
        choices: BitChoices,
    ) -> None:
        self._ranked, self._costs, self._device, self._choices = ranked, costs, device, choices
        self._names = [name for name in costs.terms if name != ROUNDING]
        eights = choices.uniform(BYTE)
        self.whole = {name: max(costs.evaluate(name, ranked.sizes, eights), 1.0) for name in self._names}
        self.whole["channels"] = float(max(ranked.sizes.sum(), 1))
        if choices.layers:
            self.whole[BYTES] = float(sum(layer.weight_bytes(BYTE) for layer in choices.layers))
        self.limits = _shares(options, self.whole)

    @property
    def absolute(self) -> dict[str, float]:
        """The limits in units of the costs."""
        return {name: limit * self.whole[name] for name, limit in self.limits.items()}

    def shares(self, kept: np.ndarray, bits: Bits = NO_BITS) -> dict[str, float]:
        """Each cost with `kept` units and these bits for layers with free bit widths."""
        shares = {name: self._costs.evaluate(name, kept, bits) / self.whole[name] for name in self._names}
        return {**shares, "channels": float(kept.sum()) / self.whole["channels"]}

    def fits(self, kept: np.ndarray) -> bool:
        """True if every limit holds."""
        shares = self.shares(kept)
        if any(shares[name] > limit + 1e-9 for name, limit in self.limits.items()):
            return False
        return self._device is None or self._device.fits(kept)

    def spent(self, kept: np.ndarray, bits: Bits = NO_BITS) -> tuple[Spent, ...]:
        """Every limited resource."""
        shares = self.shares(kept, bits)
        rows = [
            Spent(name, self.whole[name], shares[name] * self.whole[name], limit * self.whole[name])
            for name, limit in self.limits.items()
        ]
        if self._device is not None:
            whole = self._device.measure(self._ranked.sizes, self._choices.uniform(BYTE))
            left = self._device.measure(kept, bits)
            rows += [
                Spent(name, whole[name], left[name], limit) for name, limit in self._device.limits.items()
            ]
        return tuple(rows)

    def check_feasible(self) -> None:
        """PassError if even the smallest network, with the fewest bits, exceeds a limit."""
        fewest = self._ranked.fewest
        least = self.shares(fewest, self._choices.uniform(0))
        missed = [
            f"{name}: at least {100 * least[name]:.1f} % are kept, the budget is {100 * limit:.1f} %"
            for name, limit in self.limits.items()
            if least[name] > limit + 1e-9
        ]
        if self._device is not None:
            missed += self._device.missed(fewest)
        if missed:
            advice = "lower `floor` or `multiple`, keep fewer layers, or raise the budget"
            raise PassError(f"no channels meet the budget ({'; '.join(missed)}); {advice}")


def _shares(options: PruneOptions, whole: Mapping[str, float]) -> dict[str, float]:
    """The limits of the budget on polynomials, as shares of the whole network's costs."""
    budget = options.budget
    assert budget is not None
    given = {"macs": budget.macs, "params": budget.params, "channels": budget.channels}
    shares = {name: share for name, share in given.items() if share is not None}
    if budget.weights is not None:
        most = budget.weights
        shares[BYTES] = most if isinstance(most, float) else most / whole[BYTES]
    return shares


def _uniform(ranked: Ranked, fits: Callable[[np.ndarray], bool]) -> np.ndarray:
    """The largest uniform share of every group that fits."""
    low, high = 0.0, 1.0
    for _ in range(40):
        share = (low + high) / 2
        if fits(ranked.rounded(np.floor(share * ranked.sizes))):
            low = share
        else:
            high = share
    return ranked.rounded(np.floor(low * ranked.sizes))


def _global(ranked: Ranked, fits: Callable[[np.ndarray], bool]) -> np.ndarray:
    """The highest score threshold below which units are removed, in any group, such that the budget is met."""
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
