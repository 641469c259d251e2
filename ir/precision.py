"""Bit widths that passes choose for layers. They are part of the graph, for the passes that run afterwards."""

from __future__ import annotations

from dataclasses import dataclass

from .encoding import INTEGER_BITS
from .errors import ShapeError

FLOAT_BITS = 32
"""Weights of a layer that stays in floating point."""


@dataclass(frozen=True, slots=True)
class Precision:
    """Storage bits of a layer's weights and of the values that it reads; None leaves the choice to later passes."""

    weights: int | None = None
    activations: int | None = None

    def __post_init__(self) -> None:
        for bits in (self.weights, self.activations):
            if bits is not None and bits not in INTEGER_BITS:
                raise ShapeError(f"{bits} storage bits; the choices are {', '.join(map(str, INTEGER_BITS))}")
        if self.weights is None and self.activations is None:
            raise ShapeError("a precision needs bits of weights, of activations, or of both")
