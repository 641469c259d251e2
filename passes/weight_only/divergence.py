"""Divergence of a changed network from the float network.

classes    KL(p || q) of the class scores' distributions, in nats, mean over positions
values     sum over outputs of |z - y|^2 / |y|^2
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ...ir import Graph, run
from ..calibration.calibrate import Batch, check_samples
from ..progress_callback import Progress
from ..sensitivity.objective import Classes, choose_loss


@dataclass(frozen=True)
class Divergence:
    """Measure for the outputs of a graph: class scores [n, classes] or [n, positions, classes], or values."""

    classes: Classes | None

    @staticmethod
    def of(graph: Graph, *, states: Collection[str] = ()) -> Divergence:
        """The measure for these outputs; PassError if none of them is a floating point value.

        Outputs that are `states`, such as caches, are not compared if there are class scores.
        """
        loss = choose_loss(graph, None)
        is_alone = all(name in states for name in graph.output_names[1:])
        return Divergence(loss if isinstance(loss, Classes) and is_alone else None)

    @property
    def unit(self) -> Literal["nats", "squared error"]:
        """Unit of the numbers; the squared error is relative to the outputs."""
        return "squared error" if self.classes is None else "nats"

    def between(self, expected: Sequence[Tensor], found: Sequence[Tensor]) -> float:
        """Divergence of one call's outputs; NaN if `found` is."""
        if self.classes is None:
            return _relative_error(expected, found)
        z, changed = (self.classes.read(outputs, 1) for outputs in (expected, found))
        return float(self.classes.divergence(z, changed))

    def mean(
        self, reference: Graph, changed: Graph, samples: Sequence[Batch], *, progress: Progress
    ) -> float:
        """Mean divergence over samples, each run in both graphs."""
        check_samples(reference, samples)
        total = 0.0
        with torch.no_grad():
            for index, sample in enumerate(samples):
                total += self.between(run(reference, sample), run(changed, sample))
                progress("divergence", index + 1, len(samples))
        return total / len(samples)


def _relative_error(expected: Sequence[Tensor], found: Sequence[Tensor]) -> float:
    """Squared error over squared size, summed over the floating outputs; for zeros the error itself."""
    total = 0.0
    for y, z in zip(expected, found, strict=True):
        if y.is_floating_point():
            size = float(y.double().square().sum())
            total += float((z.double() - y.double()).square().sum()) / (size or 1.0)
    return total
