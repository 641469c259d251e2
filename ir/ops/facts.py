"""Facts about operators that passes and backends use, each declared by its operator.

Names are those of operands; `op.facts` depends on the attributes if the fact does. Tests check every declaration
against `reference` in both directions: a declared fact holds for all examples, and a fact that is not declared is
refuted by an example.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from math import inf
from types import MappingProxyType

Bounds = tuple[float, float]

FURTHER = "*"
"""Name of the operands of a `*` parameter, which accepts any number of operands."""
EVERYTHING: Bounds = (-inf, inf)


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Mathematical properties of an operator on reals.

    commutative       its two operands can be exchanged
    monotone          operands: the result does not decrease where any of them increase
    piecewise_linear  sets of operands in which the result is piecewise linear while all others are constant
    homogeneous       positively homogeneous: all operands times s > 0 give the result times s
    poles             operands near whose zero the result is unbounded
    whole             the result is a whole number: a small error of the operand can become an error of one
    selects           each element of the result is an element of an operand
    bounds            ends between which every result lies
    neutral           operand and number: where that operand is the number, the result equals the other operand
    """

    commutative: bool = False
    monotone: tuple[str, ...] = ()
    piecewise_linear: tuple[tuple[str, ...], ...] = ()
    homogeneous: bool = False
    poles: tuple[str, ...] = ()
    whole: bool = False
    selects: bool = False
    bounds: Bounds = EVERYTHING
    neutral: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))

    def is_monotone_in(self, operands: Collection[str]) -> bool:
        """True if the result is monotone in all of these operands."""
        return set(operands) <= set(self.monotone)

    def is_piecewise_linear_in(self, operands: Collection[str]) -> bool:
        """True if the result is piecewise linear in these operands together."""
        return any(set(operands) <= set(joint) for joint in self.piecewise_linear)


def scales(bounds: Bounds | None) -> bool:
    """True if a clamp to these bounds is positively homogeneous: each end is zero or infinite."""
    return bounds is None or (bounds[0] in (-inf, 0.0) and bounds[1] in (0.0, inf))
