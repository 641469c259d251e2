"""The graph of one call of a streamed network, made from the window network and a plan.

The elements of a value that are kept between calls are an input and an output of the graph, a ring that moves on by
the new elements:

    past, new -> concat -> other readers;  its last elements -> past of the next call

Rings of integers store integers. Like all states they are reals at the interface, quantized on entry and dequantized
on exit, which changes none of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ...ir import Builder, Graph, Node, TensorType, Value
from ...ir.along_axis import Gathering, Sliding, Viewing
from ...ir.ops.base import Op
from ...ir.ops.quantize import Dequantize, Quantize
from ...ir.ops.slicing import Concat, Slice
from .stream_plan import StreamPlan, span_of


@dataclass(frozen=True)
class Ring:
    """State of one value: its elements from `start` up to `stop` along `axis`, from the window before the new ones.

    `moves` of them are dropped at each call. `state` is the name of the input, `after` that of the output.
    """

    value: Value
    axis: int
    start: int
    stop: int
    moves: int
    state: str
    after: str

    @property
    def type(self) -> TensorType:
        """The kept elements, as they are stored."""
        shape = self.value.type.shape
        return self.value.type.with_shape(
            (*shape[: self.axis], self.stop - self.start, *shape[self.axis + 1 :])
        )


@dataclass(frozen=True)
class Streamed:
    """The graph of one call and its rings; `output_axes` are the time axes of outputs that have one."""

    graph: Graph
    rings: tuple[Ring, ...]
    output_axes: Mapping[str, int]

    @property
    def state(self) -> dict[str, str]:
        """The output that each state continues, by the name of the input."""
        return {ring.state: ring.after for ring in self.rings}


def make_streamed(graph: Graph, plan: StreamPlan) -> Streamed:
    """The graph that takes `plan.hop` frames and the states in place of a window."""
    return _Emission(graph, plan).streamed()


@dataclass(frozen=True)
class _Available:
    """Elements of a value from index `start` of the window on."""

    value: Value
    start: int


class _Emission:
    def __init__(self, graph: Graph, plan: StreamPlan) -> None:
        self._graph, self._plan = graph, plan
        taken = [value.name for value in graph.results]
        self._builder = Builder(params=graph.params, reserved=taken)
        self._plain: dict[str, Value] = {value.name: value for value in graph.constants}
        self._available: dict[str, _Available] = {}
        self._fresh: dict[str, _Available] = {}
        self._kept: list[tuple[Ring, Value]] = []
        names = {*taken, *graph.output_names, *(value.name for value in (*graph.inputs, *graph.constants))}
        self._names = names

    def streamed(self) -> Streamed:
        for value in self._graph.inputs:
            self._take(value)
        for value in self._graph.inputs:
            if value.name in self._fresh and value.name in self._plan.lows:
                self._keep(value)
        for node in self._graph.nodes:
            self._visit(node)
        outputs = [self._output(value) for value in self._graph.outputs]
        after = [self._real(value) for _, value in self._kept]
        names = (*self._graph.output_names, *(ring.after for ring, _ in self._kept))
        built = self._builder.build([*outputs, *after], output_names=names)
        tracks = self._plan.tracks
        given = zip(self._graph.output_names, self._graph.outputs, strict=True)
        return Streamed(
            built.with_precisions(self._graph.precisions),
            tuple(ring for ring, _ in self._kept),
            {name: tracks[value.name].axis for name, value in given if value.name in tracks},
        )

    def _take(self, value: Value) -> None:
        track = self._plan.tracks.get(value.name)
        if track is None:
            self._plain[value.name] = self._builder.input(value.name, value.type)
            return
        shape = list(value.type.shape)
        shape[track.axis] = self._plan.hop
        taken = self._builder.input(value.name, value.type.with_shape(tuple(shape)))
        self._fresh[value.name] = _Available(taken, track.count - self._plan.hop)

    def _visit(self, node: Node) -> None:
        reading = self._plan.readings.get(node.outputs[0].name)
        for value in node.outputs:
            self._builder.release(value.name)
        match reading:
            case None:
                operands = [value and self._plain[value.name] for value in node.inputs]
                self._enter_plain(node, self._builder.keep(node, operands))
            case Gathering(spans, op):
                operands = [
                    value and (self._plain[value.name] if ends is None else self._elements(value, *ends))
                    for value, ends in zip(node.inputs, spans, strict=True)
                ]
                self._enter_plain(node, self._append(node, op, operands))
            case Viewing(_, windows):
                for value, window in zip(node.outputs, windows, strict=True):
                    self._view(node, value, window.start, window.stride)
            case Sliding():
                self._slide(node, reading)

    def _enter_plain(self, node: Node, results: Sequence[Value]) -> None:
        self._plain.update((old.name, new) for old, new in zip(node.outputs, results, strict=True))

    def _view(self, node: Node, value: Value, start: int, step: int) -> None:
        if value.name not in self._plan.lows:
            return
        (viewed,) = (operand for operand in node.operands if operand.name in self._plan.tracks)
        low, stop = self._plan.lows[value.name], self._plan.tracks[value.name].stop
        first, last = start + low * step, start + (stop - 1) * step + 1
        found = self._elements(viewed, first, last, step=step, name=value.name)
        self._available[value.name] = _Available(found, low)

    def _slide(self, node: Node, reading: Sliding) -> None:
        needed = [value for value in node.outputs if value.name in self._plan.lows]
        if not needed:
            return
        count = max(self._plan.fresh(value) for value in needed)
        stop = self._plan.tracks[needed[0].name].stop
        operands: list[Value | None] = []
        for value, window in zip(node.inputs, reading.windows, strict=True):
            if value is None or window is None:
                operands.append(value and self._plain[value.name])
                continue
            start, end = span_of(window, stop - count, stop)
            if value.name in self._plan.tracks:
                operands.append(self._elements(value, start, end))
            else:
                operands.append(self._repeated(value, node, end - start))
        results = self._append(node, reading.resized(count), operands)
        for old, new in zip(node.outputs, results, strict=True):
            self._fresh[old.name] = _Available(new, stop - count)
            if old.name in self._plan.lows:
                self._keep(old)

    def _repeated(self, value: Value, node: Node, count: int) -> Value:
        """A constant that is equal for all frames, for `count` of them."""
        result, axis = node.outputs[0], self._plan.tracks[node.outputs[0].name].axis
        own = axis - result.type.rank + value.type.rank
        part = self._graph.tensor(value).narrow(own, 0, count)
        return self._builder.derived_constant(value.name, part, quantization=value.type.quantization)

    def _append(self, node: Node, op: Op, operands: Sequence[Value | None]) -> tuple[Value, ...]:
        """The node with another operator on other operands; results keep their encodings."""
        inferred = op.infer(*(value and value.type for value in operands))
        types = [
            new
            if old.quantization is None or new.quantization is not None
            else new.quantized(old.quantization)
            for new, old in zip(inferred, node.output_types, strict=True)
        ]
        names = [value.name for value in node.outputs]
        return self._builder.append(op, operands, types, names=names, source=node.source)

    def _keep(self, value: Value) -> None:
        """Makes all elements of a value that are read available, from its new ones and a ring."""
        track, fresh = self._plan.tracks[value.name], self._fresh[value.name]
        low = self._plan.lows[value.name]
        if low >= fresh.start:
            self._available[value.name] = fresh
            return
        state = self._fresh_name(f"{value.name}_past")
        moves = track.stop - fresh.start
        ring = Ring(value, track.axis, low, fresh.start, moves, state, self._fresh_name(f"{state}_out"))
        source = self._graph.source(value)
        past = self._builder.input(state, ring.type.real())
        if ring.type.quantization is not None:
            past = self._builder.add(
                Quantize(), past, name=f"{state}_q", quantization=ring.type.quantization, source=source
            )
        joined = self._builder.add(
            Concat(track.axis), past, fresh.value, name=f"{value.name}_with_past", source=source
        )
        self._available[value.name] = _Available(joined, low)
        kept = self._builder.add(Slice(track.axis, moves), joined, name=f"{state}_next", source=source)
        self._kept.append((ring, kept))

    def _fresh_name(self, wish: str) -> str:
        name = wish
        while name in self._names:
            name += "_"
        self._names.add(name)
        return name

    def _real(self, value: Value) -> Value:
        if value.type.quantization is None:
            return value
        return self._builder.add(
            Dequantize(), value, name=f"{value.name}_real", source=self._graph.source(value)
        )

    def _elements(self, value: Value, start: int, stop: int, *, step: int = 1, name: str = "") -> Value:
        """Elements of a value from `start` up to `stop`, every `step`-th."""
        found, axis = self._available[value.name], self._plan.tracks[value.name].axis
        size = found.value.type.shape[axis]
        first, last = start - found.start, stop - found.start
        if (first, last, step) == (0, size, 1):
            return found.value
        op = Slice(axis, first, None if last >= size else last, step)
        return self._builder.add(
            op, found.value, name=name or f"{value.name}_read", source=self._graph.source(value)
        )

    def _output(self, value: Value) -> Value:
        track = self._plan.tracks.get(value.name)
        if track is None:
            return self._plain[value.name]
        start = max(track.count - max(self._plan.hop // track.step, 1), 0)
        return self._elements(value, start, track.count)
