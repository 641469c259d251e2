"""Encodings of activations: one for all values that data movement joins, chosen from calibration statistics."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from ...ir import DType, Encoding, Graph, Node, Value
from ...ir.affine import Affine, affine_inputs
from ...ir.ops.activation import Elementwise
from ...ir.ops.base import Quantized
from ...ir.ops.binary import Add, Sub
from ...ir.ops.norm import StatisticsNorm
from ...ir.ops.pad import Pad
from ...ir.ops.recurrent import Recurrent
from ...ir.ops.recurrent_form import cell_encoding
from ..calibration.observers import Range, Statistics, choose_range
from ..report import Table
from ..weighted_layers import Clamped, is_layer
from .concat_groups import join_moved
from .groups import UnionFind
from .layer_precisions import NARROW_BITS, Precisions, group_bits
from .quantization_plan import Plan
from .range_encodings import activation_encoding, natural_encoding, to_float32

_OUTLIER = 1000.0  # times the 99.9th percentile
_APART = 2.0  # widths of the range: the encoding of values nearer to zero represents zero
_NEAREST_ZERO = 2 * 255  # steps; with a smaller limit, an encoding without zero has no advantage
_FARTHEST_ZERO = 1 << 16
_LARGEST_WEIGHT = 127


@dataclass(frozen=True)
class ActivationEncodings:
    """Encoding of each value that is to be an integer, and the means of its channels.

    `outliers` contains the names of groups with values far beyond nearly all others.
    `narrow` contains the nodes that compute on 8 bits only; `narrow_encodings` are the encodings in which they read
    values of 16-bit groups.
    """

    groups: UnionFind
    by_group: Mapping[str, Encoding]
    statistics: Mapping[str, Statistics]
    table: Table
    warnings: tuple[str, ...]
    narrow: frozenset[str] = frozenset()
    outliers: tuple[str, ...] = ()
    narrow_encodings: Mapping[str, Encoding] = field(default_factory=dict)

    def of(self, value: Value) -> Encoding:
        """Encoding of a value."""
        return self.by_group[self.groups.find(value.name)]

    def read_by(self, node: Node, value: Value) -> Encoding:
        """Encoding in which a computing node reads a value."""
        wide = self.of(value)
        is_narrow = node.outputs[0].name in self.narrow
        return self.narrow_encodings.get(self.groups.find(value.name), wide) if is_narrow else wide

    def mean(self, value: Value, axis: int) -> Tensor:
        """Mean of the calibration data at each index of dimension `axis`."""
        return self.statistics[value.name].means[axis]


def choose_encodings(
    graph: Graph,
    plan: Plan,
    statistics: Mapping[str, Statistics],
    precisions: Precisions,
    *,
    rests: Collection[str] = (),
) -> ActivationEncodings:
    """Encodings of all groups, one each; an input whose data are multiples of a step keeps that step.

    An operator with a fixed result encoding determines the encoding of its group. The encoding of values far from zero
        need not represent zero, unless an operator pads them. The operand of a concat may keep a finer encoding, and is
    rescaled for the concat only (`concat_groups`). `rests` are values that may be zero throughout, without a warning.
    """
    imposed = _imposed(graph, plan, statistics, lambda name: NARROW_BITS)
    groups = join_moved(graph, plan, statistics, imposed)
    bits_of = group_bits(graph, plan, groups, precisions)
    members: dict[str, list[str]] = {}
    for name in statistics:
        members.setdefault(groups.find(name), []).append(name)
    put_in = _put_in(graph, plan, groups)
    fixed: dict[str, Encoding] = {}
    by_bits = _imposed(
        graph, plan, statistics, lambda name: max(bits_of.by_group[groups.find(name)], NARROW_BITS)
    )
    for name, imposed_on_one in by_bits.items():
        group = groups.find(name)
        fixed[group] = max(fixed.get(group, imposed_on_one), imposed_on_one, key=lambda e: e.scale[0])
    farthest = _farthest_zeros(graph, groups)
    farthest |= {groups.find(value.name): 0 for value, _ in plan.states}  # which may start with zeros
    chains = affine_inputs(graph)
    inputs = {v.name for v in graph.inputs} | chains.keys()
    chosen, narrow, rows, outliers, warnings = {}, {}, [], [], list(bits_of.warnings)
    for group, names in members.items():
        seen = Statistics.joined([statistics[name] for name in names])
        bits = bits_of.by_group[group]
        limit = farthest.get(group, _FARTHEST_ZERO) if bits <= NARROW_BITS and group not in put_in else 0
        centre = _centre(seen) if limit > _NEAREST_ZERO else 0.0
        around = choose_range(seen.shifted(-centre), precisions.options.observer, levels=1 << bits)
        covered = around.shifted(centre)
        natural = (
            natural_encoding(seen, bits=bits) if inputs.intersection(names) and group not in put_in else None
        )
        exact = next(
            (g for name in names if name in chains and (g := _own_encoding(chains[name], bits))), None
        )
        if (
            exact is not None
            and (exact.holds_zero or abs(exact.zero_point[0]) <= limit)
            and group not in put_in
        ):
            natural = exact
        for added in put_in.get(group, ()):
            covered = covered.union(added)
        encoding = fixed.get(group) or natural or activation_encoding(covered, bits=bits, farthest=limit)
        chosen[group] = encoding
        if encoding.bits > NARROW_BITS:
            narrow[group] = activation_encoding(covered, bits=NARROW_BITS)
        rows.append(
            (group, len(names), encoding.bits, seen.low, seen.high, encoding.scale[0], encoding.zero_point[0])
        )
        warnings += [] if group in rests else _warnings(_place(graph, group), seen)
        outliers += [group] if _has_outliers(seen) else []
    columns = ("group", "values", "bits", "low", "high", "scale", "zero_point")
    table = Table("quantization_parameters", columns, tuple(rows))
    return ActivationEncodings(
        groups, chosen, statistics, table, tuple(warnings), bits_of.narrow, tuple(outliers), narrow
    )


def _own_encoding(chain: Affine, bits: int) -> Encoding | None:
    """Encoding of a chain on an integer input; None for reals, and if the bits cannot represent it."""
    dtype, scale = chain.input.type.dtype, to_float32(chain.scale)
    if chain.scale <= 0 or chain.nodes[-1].output.type.dtype is not DType.F32:
        return None
    low = {(DType.U8, 8): -128, (DType.I8, 8): 0, (DType.I16, 16): 0}.get((dtype, bits))
    zero = None if low is None else round(low - chain.offset / chain.scale)
    return None if zero is None or abs(zero) > _FARTHEST_ZERO else Encoding((scale,), (zero,), bits)


def _centre(seen: Statistics) -> float:
    """Middle of values that are so far from zero that representing zero would cost precision; else 0."""
    width, distance = seen.high - seen.low, max(seen.low, -seen.high)
    return (seen.low + seen.high) / 2 if width and distance > width * _APART else 0.0


def _farthest_zeros(graph: Graph, groups: UnionFind) -> dict[str, int]:
    """Largest zero point of each group that a reader limits; 0 if the encoding must represent zero.

    Padding adds zeros to the values, and the result of a function, such as a ReLU or a tanh, can be zero. A
    layer adds as many zero points as it has weights in a row; a product of two activations, or a mean, has no such
    bound.
    """
    found: dict[str, int] = {}

    def limit(value: Value, farthest: int) -> None:
        group = groups.find(value.name)
        found[group] = min(found.get(group, _FARTHEST_ZERO), farthest)

    for node in graph.nodes:
        if isinstance(node.op, Elementwise) or (isinstance(node.op, Clamped) and node.op.clamp is not None):
            limit(node.output, 0)
        if any(getattr(node.op, "padding", ())) and not (is_layer(node.op) and node.op.out_axis == 1):
            limit(node.operand("x"), 0)
        elif is_layer(node.op):
            weight, channels = (
                node.operand("weight").type,
                node.output.type.shape[node.op.channel_axis(node.output.type)],
            )
            limit(
                node.operand("x"), (1 << 30) // (_LARGEST_WEIGHT * max(weight.numel // max(channels, 1), 1))
            )
        elif (
            not isinstance(node.op, Elementwise | Add | Sub | Pad | StatisticsNorm)
            and node.op.quantized is Quantized.COMPUTE
        ):
            for value in node.operands:
                limit(value, 0)
    return found


def _put_in(graph: Graph, plan: Plan, groups: UnionFind) -> dict[str, list[Range]]:
    """Ranges of constants that data movement joins to activations, and of padding values, by group."""
    found: dict[str, list[Range]] = {}
    for node in graph.nodes:
        if node.outputs[0].name not in plan.moving:
            continue
        for value in node.operands:
            if graph.is_constant(value) and value.type.dtype.is_floating and value.type.numel:
                low, high = graph.tensor(value).aminmax()
                group = groups.find(node.output.name)
                found.setdefault(group, []).append(Range.of(float(low), float(high)))
        if isinstance(node.op, Pad) and node.op.value:
            number = node.op.value
            found.setdefault(groups.find(node.output.name), []).append(Range.of(number, number))
    return found


def _imposed(
    graph: Graph, plan: Plan, statistics: Mapping[str, Statistics], bits: Callable[[str], int]
) -> dict[str, Encoding]:
    """Encodings that operators impose on their results; `bits` returns the width of a result."""
    imposed: dict[str, Encoding | None] = {}
    for node in graph.nodes:
        name = node.outputs[0].name
        if name not in plan.computing or name not in statistics:
            continue
        if isinstance(node.op, Recurrent):
            imposed |= _imposed_on_states(graph, node, node.op, statistics)
        else:
            imposed[name] = node.op.result_encoding(statistics[name].high, bits=bits(name))
    return {name: encoding for name, encoding in imposed.items() if encoding is not None}


def _imposed_on_states(
    graph: Graph, node: Node, op: Recurrent, statistics: Mapping[str, Statistics]
) -> dict[str, Encoding | None]:
    """Encodings of the results of a recurrent layer; None for states if a first state exceeds 1 in magnitude."""

    def largest(value: Value | None) -> float:
        if value is None:
            return 0.0
        if graph.is_constant(value):
            return float(graph.tensor(value).abs().max())
        return _largest(statistics[value.name])

    y, last, *cell = node.outputs
    first, *first_cell = op.states_of(node.inputs)
    unit = op.result_encoding(1.0) if largest(first) <= 1.0 else None
    cells = (max(largest(first_cell[0]), largest(value)) for value in cell)
    return {
        y.name: unit,
        last.name: unit,
        **{v.name: cell_encoding(c) for v, c in zip(cell, cells, strict=True)},
    }


def _place(graph: Graph, name: str) -> str:
    """A value with its place in the user's code, for a note."""
    node = graph.producers.get(name)
    source = "" if node is None else str(node.source)
    return f"%{name} ({source})" if source else f"%{name}"


def _warnings(place: str, seen: Statistics) -> list[str]:
    largest = _largest(seen)
    if not largest:
        return [
            f"{place}: calibration saw zeros only, so that its scale is arbitrary: add data where it is not zero"
        ]
    if _has_outliers(seen):
        return [
            f"{place}: the largest value seen, {largest:.4g}, is {largest / _typical(seen):.2g} times what 99.9 % of "
            "the values stay below"
        ]
    return []


def _has_outliers(seen: Statistics) -> bool:
    return _largest(seen) > _OUTLIER * _typical(seen) > 0


def _largest(seen: Statistics) -> float:
    return max(abs(seen.low), abs(seen.high))


def _typical(seen: Statistics) -> float:
    """99.9th percentile of the magnitudes."""
    ordered = seen.sample.abs().sort().values
    return float(ordered[round(0.999 * (len(ordered) - 1))])
