"""Reasons for the noise that a node adds: its encoding, its values, its weights and its neighbours."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from ...ir import Encoding, Graph, Node, Value, run
from ...ir.ops.base import Quantized
from ...passes.weighted_layers import is_layer
from ..data import Samples, batches
from .propagation import Piece, Propagation, Source, exact_results, float_view, rows_of
from .ratios import decibel, power, rows

_MAIN = 0.5  # share of a node's noise above which a cause is reported as a reason
_PART = 0.25  # share above which a cause is reported in addition to a reason
_WIDE = 4.0  # ratio to the own range that counts as wide
_NEVER = 100.0  # ratio to all other magnitudes: such a constant means "never" or "always"
_COARSE = 4.0  # steps of the encoding: smaller typical values have few distinct codes
_AMPLIFIED_DB = 6.0
_NEAR = 8  # nodes between a value and the division that it feeds


class Kind(Enum):
    """Reasons, in the order in which they are tested."""

    WEIGHTS = "weights"
    SATURATION = "saturation"
    NEVER = "never"
    OUTLIER = "outlier"
    SHARED = "shared encoding"
    FIXED = "fixed encoding"
    DIVISION = "division"
    INTEGER_FORM = "integer form"
    RANGE = "range"


@dataclass(frozen=True)
class Reason:
    """A reason as a clause, with the calibration sample (by index) and the constant that cause it."""

    kind: Kind
    text: str
    sample: int | None = None
    constant: str | None = None


@dataclass(frozen=True)
class Extent:
    """Smallest and largest value in each calibration sample."""

    lows: tuple[float, ...]
    highs: tuple[float, ...]

    def width(self, *, without: int | None = None) -> float:
        """Width of the range of all samples but one, including zero."""
        kept = [i for i in range(len(self.lows)) if i != without]
        return max(0.0, *(self.highs[i] for i in kept)) - min(0.0, *(self.lows[i] for i in kept))

    @property
    def outlier(self) -> int | None:
        """The single sample without which the range is much narrower."""
        if len(self.lows) < 3:
            return None
        worst = min(range(len(self.lows)), key=lambda i: self.width(without=i))
        return worst if self.width() >= _WIDE * self.width(without=worst) > 0 else None


def extents(
    integer: Graph, floats: Mapping[str, Tensor], samples: Samples, names: Sequence[str]
) -> dict[str, Extent]:
    """Extents of values of the exact network, over all calibration samples."""
    lows: dict[str, list[float]] = {name: [] for name in names}
    highs: dict[str, list[float]] = {name: [] for name in names}

    def observe(count: int, value: Value, tensor: Tensor) -> None:
        if value.name in lows and tensor.numel():
            cut = tensor.nan_to_num(0.0, 0.0, 0.0).reshape(rows(tensor, count), -1)
            lows[value.name] += cut.amin(1).tolist()
            highs[value.name] += cut.amax(1).tolist()

    with torch.no_grad():
        for sized, inputs in batches(integer, samples):
            count = rows_of(samples, inputs)
            view = float_view(sized, floats)
            run(view, inputs, observe=lambda value, tensor, count=count: observe(count, value, tensor))  # type: ignore[misc]
    return {name: Extent(tuple(lows[name]), tuple(highs[name])) for name in names if lows[name]}


def grid_mates(graph: Graph, name: str) -> tuple[str, ...]:
    """Values that share the encoding of a value because data movement joins them, including the value itself."""
    grid = _value(graph, name).type.quantization
    found, waiting = {name}, [name]
    while waiting:
        at = waiting.pop()
        nodes = [*graph.users.get(at, ()), *([graph.producers[at]] if at in graph.producers else [])]
        for node in nodes:
            if node.op.quantized is not Quantized.MOVE:
                continue
            for value in (*node.operands, *node.outputs):
                is_mate = value.type.quantization == grid and not graph.is_constant(value)
                if is_mate and value.name not in found:
                    found.add(value.name)
                    waiting.append(value.name)
    return tuple(v.name for v in graph.results if v.name in found)


def reasons_of(
    propagation: Propagation,
    source: Source,
    seen: Mapping[str, Extent],
    *,
    target_snr_db: float,
    observer: str,
    positions: Sequence[int],
) -> tuple[Reason, ...]:
    """The reasons for the noise that a node adds, at least one. `positions` are those of samples in their file."""
    node = propagation.graph.producers[source.name]
    grid = _value(propagation.graph, source.name).type.quantization
    if grid is None:
        return (Reason(Kind.INTEGER_FORM, f"{node.op.name} gives other results than in float"),)
    facts = _Facts(propagation, node, grid, source.name, seen, target_snr_db, observer, positions)
    found = [reason for look in _LOOKS for reason in look(facts)]
    if all(reason.kind in _PARTIAL for reason in found) and _is_coarse(facts):
        found.append(_range(facts))
    return tuple(found) or (_range(facts),)


@dataclass(frozen=True)
class _Facts:
    propagation: Propagation
    node: Node
    grid: Encoding
    name: str
    seen: Mapping[str, Extent]
    target_snr_db: float
    observer: str
    positions: Sequence[int]

    @property
    def graph(self) -> Graph:
        return self.propagation.graph

    @property
    def pieces(self) -> tuple[Piece, ...]:
        return self.propagation.pieces

    @property
    def step(self) -> float:
        return self.grid.scale[0]

    @property
    def ends(self) -> tuple[float, float]:
        zero = self.grid.zero_point[0]
        return (self.grid.qmin - zero) * self.step, (self.grid.qmax - zero) * self.step

    @property
    def covers(self) -> str:
        low, high = self.ends
        return f"{low:.4g} to {high:.4g}"

    @property
    def noises(self) -> list[Tensor]:
        return [made[self.name] for made in self.propagation.own_noise if self.name in made]

    @property
    def noise(self) -> float:
        return sum(map(power, self.noises))

    @property
    def exact(self) -> Tensor:
        """The finite elements of all samples."""
        values = torch.cat([piece.exact.value(self.name).flatten() for piece in self.pieces])
        return values[values.isfinite()]

    @property
    def typical(self) -> float:
        """Median magnitude of the nonzero elements."""
        magnitudes = self.exact[self.exact != 0].abs()
        return float(magnitudes.median()) if len(magnitudes) else 0.0


def _weights(facts: _Facts) -> Iterator[Reason]:
    """Rounding of the weights causes much of the noise."""
    if not is_layer(facts.node.op):
        return
    weight = facts.node.operand("weight")
    if weight.type.quantization is None:
        return
    rounded = 0.0
    for piece in facts.pieces:
        (result,) = exact_results(piece.graph.producers[facts.name], piece)
        rounded += power(facts.grid.dequantize(facts.grid.quantize(result)) - result)
    share = 1 - rounded / facts.noise
    if share >= _PART:
        q = weight.type.quantization
        scales = "one scale for the whole weight" if q.axis is None else "a scale for each output channel"
        text = (
            f"its weights of {q.bits} bits with {scales} cause {100 * share:.0f} % of the noise that it adds"
        )
        yield Reason(Kind.WEIGHTS, text)


def _saturation(facts: _Facts) -> Iterator[Reason]:
    low, high = facts.ends
    outside, largest = 0.0, 0.0
    for piece, noise in zip(facts.pieces, facts.noises, strict=False):
        exact = piece.exact.value(facts.name)
        is_outside = (exact < low - facts.step / 2) | (exact > high + facts.step / 2)
        outside += power(noise * is_outside)
        largest = max(largest, float(exact.abs().nan_to_num(0.0, 0.0, 0.0).max()))
    if outside >= _MAIN * facts.noise:
        text = f"values up to {largest:.4g} saturate: the observer {facts.observer} covers {facts.covers}"
        yield Reason(Kind.SATURATION, text)


def _never(facts: _Facts) -> Iterator[Reason]:
    """A constant far beyond all other values, such as in masks, determines the range."""
    for value in _constants_near(facts.graph, facts.name):
        constant = facts.pieces[0].exact.value(value.name)
        if not constant.is_floating_point() or not constant.numel():
            continue
        finite = constant[constant.isfinite()]
        largest = float(finite.abs().max()) if len(finite) else 0.0
        magnitudes = facts.exact.abs()
        others = magnitudes[magnitudes < largest / 2]
        rest = float(others.max()) if len(others) else 0.0
        reaches = 2 * max(map(abs, facts.ends)) >= largest
        if largest and reaches and largest >= _NEVER * max(rest, facts.typical * (rest == 0)) and len(others):
            extreme = float(finite[finite.abs().argmax()])
            text = (
                f"%{value.name} contains {extreme:.4g} as a mask: steps of {facts.step:.3g} remain for values up to "
                f"{rest:.3g}"
            )
            yield Reason(Kind.NEVER, text, constant=value.name)
            return


def _outlier(facts: _Facts) -> Iterator[Reason]:
    extent = facts.seen.get(facts.name)
    worst = None if extent is None else extent.outlier
    if extent is not None and worst is not None:
        text = (
            f"calibration sample {facts.positions[worst]} alone extends the range from "
            f"{extent.width(without=worst):.4g} to {extent.width():.4g}"
        )
        yield Reason(Kind.OUTLIER, text, sample=worst)


def _shared(facts: _Facts) -> Iterator[Reason]:
    """The range is that of a wider value with the same encoding."""
    extent = facts.seen.get(facts.name)
    others = {n: facts.seen[n].width() for n in grid_mates(facts.graph, facts.name) if n in facts.seen}
    widest = max(others, key=others.__getitem__, default=facts.name)
    if extent is not None and extent.width() and others.get(widest, 0.0) >= _WIDE * extent.width():
        text = (
            f"shares its encoding with %{widest}, whose range is {others[widest] / extent.width():.3g} times as wide "
            f"({others[widest]:.4g} to {extent.width():.4g})"
        )
        yield Reason(Kind.SHARED, text)


def _fixed(facts: _Facts) -> Iterator[Reason]:
    op = facts.node.op
    if op.result_encoding(facts.ends[1]) is not None and facts.typical < _COARSE * facts.step:
        text = f"{op.name} has a fixed step of {facts.step:.3g}; half of its values are below {facts.typical:.3g}"
        yield Reason(Kind.FIXED, text)


def _division(facts: _Facts) -> Iterator[Reason]:
    """A function with a pole reads the value, and noise near the pole grows."""
    pole = _pole_behind(facts.graph, facts.name)
    own = facts.propagation.own_ratio(facts.name)
    if pole is not None and own >= facts.target_snr_db + _AMPLIFIED_DB:
        smallest = facts.exact.abs()
        least = float(smallest.min()) if len(smallest) else 0.0
        text = (
            f"feeds {pole.op.name} %{pole.outputs[0].name}, which amplifies noise of small values: the smallest is "
            f"{least:.3g}, in steps of {facts.step:.3g}"
        )
        yield Reason(Kind.DIVISION, text)


def _integer_form(facts: _Facts) -> Iterator[Reason]:
    """More than rounding of the exact result: the approximation of the integer form."""
    if is_layer(facts.node.op):
        return
    rounded = 0.0
    for piece in facts.pieces:
        exact = piece.exact.value(facts.name).nan_to_num(0.0)
        rounded += power(facts.grid.dequantize(facts.grid.quantize(exact)) - exact)
    if rounded and rounded < (1 - _MAIN) * facts.noise / 2:
        yield Reason(
            Kind.INTEGER_FORM,
            f"the integer form of {facts.node.op.name} is {decibel(facts.noise, rounded):.0f} dB coarser than its "
            "encoding",
        )


def _is_coarse(facts: _Facts) -> bool:
    """True if typical values are below a step of the range without its worst sample."""
    extent = facts.seen.get(facts.name)
    narrower = (
        1.0
        if extent is None or extent.outlier is None
        else extent.width(without=extent.outlier) / extent.width()
    )
    return facts.typical < narrower * facts.step


def _range(facts: _Facts) -> Reason:
    """The general case: the range compared with typical values."""
    steps = facts.typical / facts.step
    text = (
        f"its encoding covers {facts.covers} in steps of {facts.step:.3g}; half of its values are below "
        f"{facts.typical:.3g}, which is {steps:.2g} steps"
    )
    return Reason(Kind.RANGE, text)


_PARTIAL = {Kind.WEIGHTS, Kind.OUTLIER}
_LOOKS = (_weights, _saturation, _never, _outlier, _shared, _fixed, _division, _integer_form)


def _value(graph: Graph, name: str) -> Value:
    return next(v for v in graph.producers[name].outputs if v.name == name)


def _constants_near(graph: Graph, name: str) -> Iterator[Value]:
    """Constants that elementwise arithmetic or data movement combines with a value; those of layers are weights."""
    waiting, passed = [name], {name}
    while waiting and len(passed) <= _NEAR:
        node = graph.producers.get(waiting.pop(0))
        if node is None or node.macs:
            continue
        for value in node.operands:
            if graph.is_constant(value):
                yield value
            elif value.name not in passed:
                passed.add(value.name)
                waiting.append(value.name)


def _pole_behind(graph: Graph, name: str) -> Node | None:
    """The first function with a pole that reads a value, with only arithmetic without weights in between."""
    waiting, passed = [name], {name}
    while waiting and len(passed) <= _NEAR:
        at = waiting.pop(0)
        for node in graph.users.get(at, ()):
            named = zip(node.operand_names, node.operands, strict=True)
            if any(value.name == at and operand in node.op.facts.poles for operand, value in named):
                return node
            if node.macs:
                continue
            for value in node.outputs:
                if value.name not in passed:
                    passed.add(value.name)
                    waiting.append(value.name)
    return None
