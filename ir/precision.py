"""Bit widths that passes choose for layers. They are part of the graph, for the passes that run afterwards."""

from __future__ import annotations

from dataclasses import dataclass

from .encoding import INTEGER_BITS
from .errors import ShapeError

FLOAT_BITS = 32
"""Weights of a layer that stays in floating point."""
BINARY_BITS = 1
"""Weights of -1 and 1 times a scale."""


@dataclass(frozen=True, slots=True)
class Precision:
    """Storage bits of a layer's weights and of the values that it reads; None leaves the choice to later passes."""

    weights: int | None = None
    activations: int | None = None

    def __post_init__(self) -> None:
        for bits, choices in (
            (self.weights, (BINARY_BITS, *INTEGER_BITS)),
            (self.activations, INTEGER_BITS),
        ):
            if bits is not None and bits not in choices:
                raise ShapeError(f"{bits} storage bits; the choices are {', '.join(map(str, choices))}")
        if self.weights is None and self.activations is None:
            raise ShapeError("a precision needs bits of weights, of activations, or of both")
