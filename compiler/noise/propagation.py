"""Sources and propagation of the quantization noise of an integer graph.

A node's own noise is the noise that it adds to exact operands, rounded to their encodings:

    e = integer node(operands, integer weights) - float node(operands, float weights)

A node that only moves integers adds none. The float graph is the integer graph over reals: the same nodes, the float
weights, nothing rounded. In it the noise of some nodes alone is added, and the following nodes are computed again.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from ...ir import Graph, Node, Params, Value, call_integer, rebatch, run_integer
from ...ir.ops.quantize import Dequantize, Quantize, Requantize
from ...passes.sensitivity.replay import Replay
from ..data import Samples, batches, join, own_batch, run_samples
from .ratios import Powers, decibel, power

_SAMPLES = 16
_ELEMENTS = 1 << 24  # limit of the elements of all values of the samples together
_HUGE = 1e300
_NEGLIGIBLE = 0.1  # share of the noise of the worst node


@dataclass(frozen=True)
class Piece:
    """Samples that run as one batch: the integer graph for them, its values as reals, and the exact values."""

    graph: Graph
    inputs: Sequence[Tensor]
    samples: int
    actual: Mapping[str, Tensor]
    exact: Replay


@dataclass(frozen=True)
class Source:
    """A value whose own noise reaches the targets; `loads` is its noise there, relative to the allowed noise."""

    name: str
    loads: Mapping[str, float]

    @property
    def burdened(self) -> str:
        """The target with the largest load."""
        return max(self.loads, key=self.loads.__getitem__)

    @property
    def load(self) -> float:
        """The largest load."""
        return self.loads[self.burdened]


class Propagation:
    """An integer graph and its float graph, on a few samples."""

    def __init__(
        self, reference: Graph, integer: Graph, floats: Mapping[str, Tensor], samples: Samples
    ) -> None:
        """`reference` computes the relevant outputs; `floats` are the constants as reals, by name."""
        elements = sum(v.type.numel for v in integer.results)
        few, self._indices = _spread(
            samples, integer, most=min(_SAMPLES, max(1, _ELEMENTS // max(elements, 1)))
        )
        self.graph, self.floats = integer, floats
        self.pieces = tuple(
            _piece(graph, inputs, floats, rows_of(few, inputs))
            for graph, inputs in batches(integer, few, interpreter=run_integer)
        )
        self._batch = own_batch(self.pieces[0].graph.inputs, few)
        with torch.no_grad():
            self._expected = run_samples(reference, few)

    def ratio(self, name: str) -> float:
        """Ratio of a value, with the noise of all earlier nodes."""
        return self.powers(name).snr_db

    def powers(self, name: str) -> Powers:
        """Powers of a value and of its noise."""
        parts = (
            Powers.of(p.exact.value(name), p.actual[name], samples=p.samples)
            for p in self.pieces
            if name in p.actual
        )
        return Powers.joined(parts)

    def output_powers(self) -> tuple[Powers, ...]:
        """Powers of each output and of its noise."""
        return self._against_reference([_outputs(p.graph, p.inputs, p.actual) for p in self.pieces])

    def powers_in(
        self, integer: Graph, targets: Collection[str], *, without: Collection[int] = ()
    ) -> dict[str, Powers]:
        """Powers in another integer graph of the same network, for the values in `targets` that it has.

        Samples at the indices `without` are excluded, if a value can be split into samples and others remain.
        """
        runs = [_actual(_sized(integer, piece), piece.inputs) for piece in self.pieces]
        found = {
            name: Powers.joined(
                Powers.of(piece.exact.value(name), actual[there], samples=piece.samples)
                for piece, actual in zip(self.pieces, runs, strict=True)
            )
            for name in targets
            for there in [name if name in runs[0] else origin_of(self.graph, name)]
            if all(there in actual for actual in runs)
        }
        outputs = [
            _outputs(integer, piece.inputs, actual) for piece, actual in zip(self.pieces, runs, strict=True)
        ]
        powers = self._against_reference(outputs)
        own = zip(self.graph.outputs, powers, strict=True)
        found |= {value.name: power for value, power in own if value.name in targets}
        rows = [row for row, index in enumerate(self._indices) if index in without]
        if not rows or len(rows) == len(self._indices):
            return found
        return {
            name: power.without(rows) if len(power.signal) == len(self._indices) else power
            for name, power in found.items()
        }

    def _against_reference(self, outputs: Sequence[Sequence[Tensor]]) -> tuple[Powers, ...]:
        joined = join(outputs, self._batch)
        count = sum(piece.samples for piece in self.pieces)
        return tuple(Powers.of(x, y, samples=count) for x, y in zip(self._expected, joined, strict=True))

    def arrived(self, errors: Sequence[Mapping[str, Tensor]]) -> list[Powers]:
        """Powers of each output, with `errors` added to values of each piece and nothing else rounded."""
        parts: list[list[Powers]] = [[] for _ in self.graph.outputs]
        for piece, error in zip(self.pieces, errors, strict=True):
            changed = piece.exact.shifted(error)
            for found, value in zip(parts, piece.graph.outputs, strict=True):
                exact = piece.exact.value(value.name)
                found.append(Powers.of(exact, changed.get(value.name, exact), samples=piece.samples))
        return [Powers.joined(found) for found in parts]

    def whole_noise(self, name: str) -> list[Mapping[str, Tensor]]:
        """The total noise of one value, for `arrived`."""
        return [{name: _finite(p.actual[name] - p.exact.value(name))} for p in self.pieces]

    @cached_property
    def own_noise(self) -> tuple[Mapping[str, Tensor], ...]:
        """The noise that each node adds itself, by result value; for each piece."""
        return tuple(
            {name: noise for node in p.graph.nodes for name, noise in own_noise(node, p).items()}
            for p in self.pieces
        )

    def own_ratio(self, name: str) -> float:
        """Ratio of a value to the noise that its own node adds."""
        signal = sum(power(_finite(piece.exact.value(name))) for piece in self.pieces)
        return decibel(signal, sum(power(made[name]) for made in self.own_noise if name in made))

    def allowed(self, name: str, least_db: float) -> float:
        """Power of the allowed noise of a value; not zero for a value without signal."""
        exact = [piece.exact.value(name) for piece in self.pieces]
        signal = sum(sum(Powers.of(x, x, samples=1).signal) for x in exact)
        return max(signal / 10 ** (least_db / 10), torch.finfo(torch.float64).tiny)

    def sources(self, targets: Mapping[str, float], *, most: int) -> tuple[Source, ...]:
        """The nodes whose own noise affects the targets most, the worst first; `targets` are least ratios in dB.

        Consecutive nodes are tried together, and separately only if their sum matters: the noise of a sequence of
        nodes is about the sum of their noises.
        """
        makers = [v.name for v in self.graph.results if any(v.name in made for made in self.own_noise)]
        allowed = {name: self.allowed(name, least) for name, least in targets.items()}
        found: list[Source] = []
        heap: list[tuple[float, int, int, dict[str, float]]] = []

        def enter(start: int, stop: int) -> None:
            loads = self._loads(makers[start:stop], allowed)
            heapq.heappush(heap, (-max(loads.values()), start, stop, loads))

        if makers:
            enter(0, len(makers))
        while heap and len(found) < most:
            negative, start, stop, loads = heapq.heappop(heap)
            if not negative or (found and -negative < _NEGLIGIBLE * found[0].load):
                break
            if stop - start == 1:
                found.append(Source(makers[start], loads))
                continue
            middle = (start + stop) // 2
            enter(start, middle)
            enter(middle, stop)
        return tuple(found)

    def _loads(self, makers: Collection[str], allowed: Mapping[str, float]) -> dict[str, float]:
        """Noise of these nodes at each target, relative to the allowed noise."""
        noise = dict.fromkeys(allowed, 0.0)
        for piece, made in zip(self.pieces, self.own_noise, strict=True):
            changed = piece.exact.shifted({name: made[name] for name in makers if name in made})
            for name in noise:
                if name in changed:
                    noise[name] += sum(Powers.of(piece.exact.value(name), changed[name], samples=1).noise)
        return {name: min(noise[name] / most, _HUGE) for name, most in allowed.items()}


def own_noise(node: Node, piece: Piece) -> dict[str, Tensor]:
    """Noise that a node adds to exact operands, by result value; empty if none."""
    stored = [_stored(value, piece) for value in node.inputs]
    with torch.no_grad():
        given = call_integer(node, stored)
    found = {}
    for value, x, y in zip(node.outputs, exact_results(node, piece), given, strict=True):
        if x.is_floating_point():
            noise = _finite(_real(value, y) - x)
            if bool(noise.any()):
                found[value.name] = noise
    return found


def exact_results(node: Node, piece: Piece) -> tuple[Tensor, ...]:
    """Float results of a node for exactly quantized operands."""
    operands: list[Tensor | None] = []
    for value in node.inputs:
        real = None if value is None else piece.exact.value(value.name)
        if value is not None and value.type.is_quantized and not piece.graph.is_constant(value):
            stored = _stored(value, piece)
            real = None if stored is None else _real(value, stored)
        operands.append(real)
    with torch.no_grad():
        results = node.op.reference(*operands)
    return results if isinstance(results, tuple) else (results,)


def _stored(value: Value | None, piece: Piece) -> Tensor | None:
    """An exact operand as the integers that represent it."""
    if value is None:
        return None
    grid = value.type.quantization
    if grid is None:
        return piece.exact.value(value.name)
    if piece.graph.is_constant(value):
        return piece.graph.tensor(value).to(torch.int64)
    return grid.quantize(piece.exact.value(value.name))


def origin_of(graph: Graph, name: str) -> str:
    """The value from which conversions made this one."""
    while name in graph.producers and is_conversion(graph.producers[name]):
        name = graph.producers[name].operands[0].name
    return name


def is_conversion(node: Node) -> bool:
    """True if a node only converts its operand to another encoding, or to reals."""
    return isinstance(node.op, Quantize | Dequantize | Requantize)


def float_view(integer: Graph, floats: Mapping[str, Tensor]) -> Graph:
    """The integer graph over reals, with the float constants of the same names; others as the reals that they
    represent.
    """
    params = {
        v.name: floats[v.name]
        if v.name in floats and floats[v.name].shape == v.type.shape
        else _real(v, integer.tensor(v))
        for v in integer.constants
    }

    def real(value: Value) -> Value:
        return replace(value, type=value.type.real())

    nodes = tuple(node.with_values(real) for node in integer.nodes)
    inputs, outputs = tuple(map(real, integer.inputs)), tuple(map(real, integer.outputs))
    return Graph(inputs, outputs, nodes, Params(params), integer.output_names)


def rows_of(samples: Samples, inputs: Sequence[Tensor]) -> int:
    """Number of samples in the inputs of one run; 1 if the first dimension of some input is not the batch."""
    leads = bool(inputs) and all(samples.axis(i) == 0 and x.ndim for i, x in enumerate(inputs))
    return len(inputs[0]) if leads else 1


def _piece(graph: Graph, inputs: Sequence[Tensor], floats: Mapping[str, Tensor], samples: int) -> Piece:
    exact = Replay(float_view(graph, floats), inputs)
    return Piece(graph, inputs, samples, _actual(graph, inputs), exact)


def _actual(graph: Graph, inputs: Sequence[Tensor]) -> dict[str, Tensor]:
    """All values of an integer run, as reals."""
    found: dict[str, Tensor] = {}
    run_integer(graph, inputs, observe=lambda value, x: found.update({value.name: _real(value, x)}))
    return found


def _outputs(graph: Graph, inputs: Sequence[Tensor], actual: Mapping[str, Tensor]) -> list[Tensor]:
    """The outputs as reals, some of which may be inputs or constants."""
    given = {v.name: x for v, x in zip(graph.inputs, inputs, strict=True)}
    constants = {v.name: _real(v, graph.tensor(v)) for v in graph.outputs if graph.is_constant(v)}
    return [{**given, **constants, **actual}[v.name] for v in graph.outputs]


def _sized(integer: Graph, piece: Piece) -> Graph:
    """Another graph of the network, for the batch of the piece."""
    is_own = integer.inputs == piece.graph.inputs
    return integer if is_own else rebatch(integer, piece.graph.inputs[0].type.shape[0])


def _real(value: Value, tensor: Tensor) -> Tensor:
    grid = value.type.quantization
    return tensor if grid is None else grid.dequantize(tensor)


def _finite(tensor: Tensor) -> Tensor:
    return torch.where(tensor.isfinite(), tensor, 0.0) if tensor.is_floating_point() else tensor


def _spread(samples: Samples, graph: Graph, *, most: int) -> tuple[Samples, list[int]]:
    """Samples of at most this many runs, evenly spread over all, and their indices."""
    calls = samples.calls(graph.inputs)
    count = min(most, calls)
    chosen = [i * calls // count for i in range(count)]
    inputs = []
    for index, (x, value) in enumerate(zip(samples.inputs, graph.inputs, strict=True)):
        axis = samples.axis(index)
        own = 1 if axis is None else value.type.shape[axis]
        inputs.append(x[torch.tensor(_rows(chosen, own), dtype=torch.int64)])
    few = replace(samples, inputs=tuple(inputs), labels=None)
    return few, _rows(chosen, own_batch(graph.inputs, samples))


def _rows(calls: Sequence[int], size: int) -> list[int]:
    """The rows of these calls, `size` rows each."""
    return [call * size + row for call in calls for row in range(size)]
