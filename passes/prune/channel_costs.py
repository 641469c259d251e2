"""Costs of a graph as polynomials in the numbers of kept channels, and in free bit widths of layers.

size(axis) = fixed + sum over groups g of per_unit[axis, g] * kept[g]
cost       = sum over terms of coefficient * product of the sizes of its axes * [the layer of the term has its bits]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations_with_replacement, product
from math import prod
from types import MappingProxyType

import numpy as np

from ...ir import Node, TensorType, Value
from ...ir.coupling import STAYS, Coupling

Bits = Mapping[str, int]
"""Bit widths of the weights of layers."""
NO_BITS: Bits = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Term:
    """A coefficient times the sizes of up to two axes, or of one axis twice; counted if a layer has these bits
    (`when`).
    """

    coefficient: float
    axes: tuple[int, ...]
    when: tuple[str, int] | None = None


@dataclass(frozen=True)
class Costs:
    """Terms of each cost, and the sizes of axes in them, for all numbers of kept units per group.

    `widths` has the allowed weight bits of each layer with free bit widths.
    """

    terms: Mapping[str, tuple[Term, ...]]
    fixed: Mapping[int, int]  # channels of each axis that are always kept
    per_unit: Mapping[int, Mapping[int, int]]  # channels of each axis per unit of each group
    widths: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def size(self, axis: int, kept: np.ndarray) -> int:
        """Channels of an axis with `kept[g]` units of group g."""
        return self.fixed[axis] + sum(n * int(kept[g]) for g, n in self.per_unit[axis].items())

    def evaluate(self, name: str, kept: np.ndarray, bits: Bits = NO_BITS) -> float:
        """A cost with `kept[g]` units of group g, and these bits for layers with free bit widths."""
        sizes = self._matrix @ kept + self._constant
        coefficients, first, second = self._arrays[name]
        amounts = coefficients * sizes[first] * sizes[second]
        conditions = self._conditions[name]
        if conditions:
            amounts[[at for at, (layer, width) in conditions.items() if bits[layer] != width]] = 0.0
        return float(amounts.sum())

    @cached_property
    def _rows(self) -> Mapping[int, int]:
        return {axis: row for row, axis in enumerate(self.fixed, start=1)}  # row 0 is the constant 1

    @cached_property
    def _constant(self) -> np.ndarray:
        return np.array([1, *self.fixed.values()], dtype=np.float64)

    @cached_property
    def _matrix(self) -> np.ndarray:
        groups = 1 + max((g for held in self.per_unit.values() for g in held), default=-1)
        matrix = np.zeros((len(self.fixed) + 1, groups))
        for axis, held in self.per_unit.items():
            for group, count in held.items():
                matrix[self._rows[axis], group] = count
        return matrix

    @cached_property
    def _arrays(self) -> Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
        return {name: self._array(terms) for name, terms in self.terms.items()}

    @cached_property
    def _conditions(self) -> Mapping[str, Mapping[int, tuple[str, int]]]:
        return {
            name: {at: term.when for at, term in enumerate(terms) if term.when is not None}
            for name, terms in self.terms.items()
        }

    def _array(self, terms: Sequence[Term]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        rows = [[*(self._rows[axis] for axis in term.axes), 0, 0][:2] for term in terms]
        first, second = np.array(rows, dtype=np.int64).reshape(-1, 2).T
        return np.array([term.coefficient for term in terms]), first, second


def costs_of(coupling: Coupling) -> Costs:
    """The costs `macs` and `params` of the coupled graph."""
    graph = coupling.graph
    macs = [term for node in graph.nodes if node.macs for term in _node_terms(coupling, node)]
    params = [element_term(coupling, value) for value in graph.constants]
    axes = sorted({axis for term in (*macs, *params) for axis in term.axes})
    held = {axis: _held(coupling, axis) for axis in axes}
    terms = {"macs": tuple(macs), "params": tuple(params)}
    return Costs(
        terms, {axis: fixed for axis, (fixed, _) in held.items()}, {a: h for a, (_, h) in held.items()}
    )


def with_terms(costs: Costs, coupling: Coupling, terms: Mapping[str, Sequence[Term]]) -> Costs:
    """The costs and more of them."""
    axes = {axis for found in terms.values() for term in found for axis in term.axes} - costs.fixed.keys()
    held = {axis: _held(coupling, axis) for axis in sorted(axes)}
    return Costs(
        {**costs.terms, **{name: tuple(found) for name, found in terms.items()}},
        {**costs.fixed, **{axis: fixed for axis, (fixed, _) in held.items()}},
        {**costs.per_unit, **{axis: per_unit for axis, (_, per_unit) in held.items()}},
        costs.widths,
    )


def layer_terms(coupling: Coupling) -> dict[str, list[Term]]:
    """Multiply-accumulates by module path."""
    found: dict[str, list[Term]] = {}
    for node in coupling.graph.nodes:
        if node.macs:
            found.setdefault(node.source.module, []).extend(_node_terms(coupling, node))
    return found


def _held(coupling: Coupling, axis: int) -> tuple[int, dict[int, int]]:
    units = coupling.on_axis(axis)
    moving = units[units != STAYS]
    present, counts = np.unique(moving, return_counts=True)
    per_group = dict(zip(coupling.groups[present].tolist(), counts.tolist(), strict=True))
    return len(units) - len(moving), per_group


def _shrinks(coupling: Coupling, axis: int) -> bool:
    return bool((coupling.on_axis(axis) != STAYS).any())


def element_term(coupling: Coupling, value: Value) -> Term:
    """Elements of a value."""
    axes = coupling.axes(value)
    moving = tuple(axis for axis in axes if _shrinks(coupling, axis))
    if len(moving) > 2:  # the cut of a third dimension is ignored: the cost is then an upper bound
        moving = moving[:2]
    coefficient = value.type.numel / max(1, prod(len(coupling.on_axis(axis)) for axis in moving))
    return Term(coefficient, moving)


def _node_terms(coupling: Coupling, node: Node) -> list[Term]:
    """The operator's own count as a polynomial of degree two, fitted at small sizes of the axes."""
    values = [*node.operands, *node.outputs]
    axes = sorted({a for v in values for a in coupling.axes(v) if _shrinks(coupling, a)})
    if not axes:
        return [Term(node.macs, ())]
    powers = [p for degree in range(3) for p in combinations_with_replacement(axes, degree)]
    points = list(product((1, 2, 3), repeat=len(axes))) if len(axes) <= 4 else _spread(len(axes), len(powers))
    at = [dict(zip(axes, sizes, strict=True)) for sizes in points]
    table = np.array(
        [[prod(sizes[axis] for axis in power) for power in powers] for sizes in at], dtype=np.float64
    )
    counted = np.array([_macs(coupling, node, sizes) for sizes in at], dtype=np.float64)
    coefficients = np.linalg.lstsq(table, counted, rcond=None)[0].round(3)
    return [Term(float(c), power) for c, power in zip(coefficients, powers, strict=True) if c]


def _spread(axes: int, unknowns: int) -> list[tuple[int, ...]]:
    """Random small sizes, several times as many as unknowns."""
    drawn = np.random.default_rng(0).integers(1, 4, size=(4 * unknowns, axes))
    return [tuple(row) for row in drawn.tolist()]


def _macs(coupling: Coupling, node: Node, sizes: Mapping[int, int]) -> int:
    def resized(value: Value) -> TensorType:
        pairs = zip(coupling.axes(value), value.type.shape, strict=True)
        return value.type.with_shape(tuple(sizes.get(axis, n) for axis, n in pairs))

    operands = [None if v is None else resized(v) for v in node.inputs]
    return node.op.macs(operands, [resized(v) for v in node.outputs])
