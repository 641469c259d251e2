"""Verification of a cut: the smaller graph against the whole graph with pruned channels masked, and texts of
refusals.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...ir import Graph, run
from ...ir.coupling import Coupling, Kept
from ...ir.cutting import deviation, deviation_from_masked

TOLERANCE = 1e-4  # float32 rounding through a deep network, relative to its largest output
VALUE_TOLERANCE = 1e-2  # the same for all intermediate values, some of which are differences of large ones


@dataclass(frozen=True, slots=True)
class Verified:
    """Max error of `outputs` and of all `values` against the masked graph, and `change` of outputs by pruning."""

    outputs: float
    values: float
    change: float


def verify_cut(kept: Kept, cut: Graph, samples: Sequence[Sequence[Tensor]]) -> Verified:
    """Compares the cut graph with the masked graph, value by value; AssertionError for more than rounding."""
    found = Verified(0.0, 0.0, 0.0)
    with torch.no_grad():
        for inputs in samples:
            outputs, values = deviation_from_masked(kept, cut, inputs)
            change = deviation(run(cut, inputs), run(kept.coupling.graph, inputs))
            found = Verified(
                max(found.outputs, outputs), max(found.values, values), max(found.change, change)
            )
    assert found.outputs <= TOLERANCE, f"outputs differ from those of the masked graph by {found.outputs:.1e}"
    assert found.values <= VALUE_TOLERANCE, (
        f"values differ from those of the masked graph by {found.values:.1e}"
    )
    return found


def why_nothing_goes(coupling: Coupling) -> str:
    """Refusals, or else the reasons that keep the first two dimensions of the weights."""
    weights = [value for value in coupling.graph.constants if value.type.rank > 1]
    held = [coupling.reason(value, dimension) for value in weights for dimension in (0, 1)]
    reasons = coupling.refusals or tuple(dict.fromkeys(reason for reason in held if reason is not None))
    return "; ".join(str(reason) for reason in reasons[:3]) or "there are no weights"
