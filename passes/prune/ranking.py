"""Ranking of the units of each group by score, and the minimum number to keep."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ...ir.coupling import STAYS, Coupling
from ...specs.options import PruneOptions


@dataclass(frozen=True, slots=True)
class Droppable:
    """Groups that may lose all units together; `rest` is the share of a sum's energy without their branch."""

    groups: tuple[int, ...]
    rest: float


@dataclass(frozen=True)
class Ranked:
    """The units of each group, the most valuable first, and the minimum number of kept ones."""

    units: tuple[np.ndarray, ...]
    values: tuple[np.ndarray, ...]  # scores of those units
    least: np.ndarray
    weights: np.ndarray  # number of weights that depend on each group
    multiple: int
    droppable: tuple[Droppable, ...] = ()

    @property
    def fewest(self) -> np.ndarray:
        """Minimum number of kept units of each group."""
        gone = [group for drop in self.droppable for group in drop.groups]
        return np.where(np.isin(np.arange(len(self.units)), gone), 0, self.least)

    @property
    def sizes(self) -> np.ndarray:
        """Units of each group."""
        return np.array([len(units) for units in self.units], dtype=np.int64)

    def rounded(self, kept: np.ndarray) -> np.ndarray:
        """Numbers of units within the limits of each group, up to the next multiple."""
        whole = -(-np.ceil(kept - 1e-9).astype(np.int64) // self.multiple) * self.multiple
        return np.clip(whole, self.least, self.sizes)

    def removed(self, kept: np.ndarray) -> np.ndarray:
        """Units to remove if `kept[g]` units of group g are kept."""
        gone = np.zeros(int(self.sizes.sum()), dtype=bool)
        for units, count in zip(self.units, kept, strict=True):
            gone[units[count:]] = True
        return gone


def rank(
    coupling: Coupling,
    scores: np.ndarray,
    held: np.ndarray,
    options: PruneOptions,
    *,
    droppable: tuple[Droppable, ...] = (),
) -> Ranked:
    """Sorts the units of each group; units in `held` are kept unless their whole branch is removed."""
    groups = coupling.groups
    order = np.lexsort((np.arange(len(scores)), -scores, ~held, groups))
    starts = np.flatnonzero(np.diff(groups[order], prepend=-1))
    units = np.split(order, starts[1:]) if len(order) else []
    least = [max(1, int(np.ceil(options.floor * len(u) - 1e-9)), int(held[u].sum())) for u in units]
    weights = np.zeros(len(units))
    for value, _, member in coupling.members:
        if value.type.rank > 1:
            weights[np.unique(groups[member[member != STAYS]])] += 1
    limits = np.array(least, dtype=np.int64), np.maximum(weights, 1)
    ranked = Ranked(tuple(units), tuple(scores[u] for u in units), *limits, options.multiple, droppable)
    return replace(ranked, least=ranked.rounded(ranked.least))
