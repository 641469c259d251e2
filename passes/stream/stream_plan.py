"""Plan of a streamed network: the time track of each value, the reads of each node, and how far back each value is
read.

At each call a value has `hop / step` new elements, its newest clean ones. Further elements that its readers need are
kept between calls. So for a convolution over k frames the last k - 1 elements of its operand are kept; a strided
convolution computes hop / step elements at each call, so the hop is a multiple of the product of strides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import lcm

from ...ir import Graph, Node, Value
from ...ir.along_axis import AxisCall, Gathering, Reading, RefusedError, Sliding, Viewing, Window, read
from .time_track import Span, StreamError, TimeTrack, layer_name


@dataclass(frozen=True)
class StreamPlan:
    """Tracks of the values with a time axis, the readings of the nodes that read one, and the lowest element read.

    `lows[name]` is the first element of the value that any reader needs, so that `track.stop - low` elements are kept
    or new. `spans` are the frames on which the other values depend, if any.
    """

    hop: int
    tracks: Mapping[str, TimeTrack]
    readings: Mapping[str, Reading]
    lows: Mapping[str, int]
    spans: Mapping[str, Span]

    def fresh(self, value: Value) -> int:
        """Number of elements of a value that are computed at each call."""
        track = self.tracks[value.name]
        return min(self.hop // track.step, track.stop - self.lows[value.name])

    def span(self, value: Value, start: int, stop: int) -> Span:
        """The frames on which some elements of a value with a time axis depend."""
        return _span(self.tracks[value.name], start, stop)


def make_plan(graph: Graph, axes: Mapping[str, int], hop: int) -> StreamPlan:
    """The plan for inputs with time on these dimensions; StreamError with all layers that cannot be streamed."""
    forward = _Forward(graph, axes, hop)
    if forward.refusals:
        raise StreamError(forward.refusals)
    backward = _Backward(graph, forward, hop)
    if backward.refusals:
        raise StreamError(backward.refusals)
    return StreamPlan(hop, forward.tracks, forward.readings, backward.lows, forward.spans)


class _Forward:
    """Tracks and readings, node by node; nodes after a refused one are skipped."""

    def __init__(self, graph: Graph, axes: Mapping[str, int], hop: int) -> None:
        self.tracks: dict[str, TimeTrack] = {}
        self.spans: dict[str, Span] = {}
        self.readings: dict[str, Reading] = {}
        self.refusals: list[str] = []
        self._graph, self._hop = graph, hop
        self._lost: set[str] = set()
        self._uneven: list[tuple[Node, int]] = []
        newest = max(value.type.shape[axes[value.name]] for value in graph.inputs if value.name in axes) - 1
        for value in graph.inputs:
            if value.name in axes:
                self._enter(value, TimeTrack.of_input(axes[value.name], value.type.shape[axes[value.name]]))
            else:
                self.spans[value.name] = Span(newest, newest)
        for node in graph.nodes:
            if any(value.name in self._lost for value in node.operands):
                self._lost.update(value.name for value in node.outputs)
                continue
            try:
                self._visit(node)
            except RefusedError as err:
                self.refusals.append(f"{layer_name(node)} {err.message}")
                self._lost.update(value.name for value in node.outputs)
        self.refusals += self._uneven_steps()

    def _enter(self, value: Value, track: TimeTrack) -> None:
        """Adds a value. One with a single element along time has no history: it is new at each call, like a value
        without a time axis.
        """
        if track.count > 1:
            self.tracks[value.name] = track
        else:
            self.spans[value.name] = Span(track.oldest, track.newest)

    def _visit(self, node: Node) -> None:
        found = tuple(None if value is None else self.tracks.get(value.name) for value in node.inputs)
        if not any(found):
            spans = [self.spans[value.name] for value in node.operands if value.name in self.spans]
            if spans:
                self._gathered(node, spans)
            return
        call = AxisCall(self._graph, node, found)
        reading = read(node.op, call)
        match reading:
            case Gathering():
                pass
            case Sliding(axis, windows, _):
                count = node.outputs[0].type.shape[axis]
                track = self._slid(node, axis, count, found, windows)
                if count > 1:
                    self._check_alone(node)
                    self._check_step(node, track)
                    for value in node.outputs:
                        self._enter(value, track)
                else:
                    reading = _at_once(node, found, windows, track, reading)
            case Viewing(axis, windows):
                viewed = next(track for track in found if track is not None)
                for value, window in zip(node.outputs, windows, strict=True):
                    track = self._slid(node, axis, value.type.shape[axis], (viewed,), (window,))
                    self._check_step(node, track)
                    self.tracks[value.name] = track
        if isinstance(reading, Gathering):
            pairs = zip(found, reading.spans, strict=True)
            spans = [_span(track, *ends) for track, ends in pairs if track is not None and ends is not None]
            spans += [self.spans[value.name] for value in node.operands if value.name in self.spans]
            self._gathered(node, spans)
        self.readings[node.outputs[0].name] = reading

    def _gathered(self, node: Node, spans: Sequence[Span]) -> None:
        joined = Span(min(span.oldest for span in spans), max(span.newest for span in spans))
        self.spans.update((value.name, joined) for value in node.outputs)

    def _check_alone(self, node: Node) -> None:
        for value in node.operands:
            if value.name in self.spans:
                raise RefusedError(
                    f"joins frames with %{value.name}, which can differ at each call, and all frames with it"
                )

    def _check_step(self, node: Node, track: TimeTrack) -> None:
        if track.count > 1 and self._hop % track.step:
            self._uneven.append((node, track.step))

    def _uneven_steps(self) -> list[str]:
        """The refusal of the hop, with the first layer that it does not fit and a hop that fits all layers."""
        if not self._uneven:
            return []
        node, step = self._uneven[0]
        needed = lcm(*(step for _, step in self._uneven))
        return [
            f"{layer_name(node)} computes one element from {step} frames, the product of strides, but the hop "
            f"{self._hop} is not a multiple; set `hop: {needed}`"
        ]

    def _slid(
        self,
        node: Node,
        axis: int,
        count: int,
        tracks: Sequence[TimeTrack | None],
        windows: Sequence[Window | None],
    ) -> TimeTrack:
        """The track of a result whose elements read these windows."""
        slid = [
            _through(node, track, window, axis, count)
            for track, window in zip(tracks, windows, strict=True)
            if track is not None and window is not None
        ]
        if len({track.step for track in slid}) > 1:
            raise RefusedError("joins values with different numbers of elements per frame")
        front, end = max(slid, key=lambda t: t.first), min(slid, key=lambda t: t.stop)
        return replace(
            slid[0],
            oldest=min(track.oldest for track in slid),
            newest=max(track.newest for track in slid),
            first=front.first,
            stop=end.stop,
            pads_front=front.pads_front,
            pads_end=end.pads_end,
        )


def _through(node: Node, track: TimeTrack, window: Window, axis: int, count: int) -> TimeTrack:
    """The track of elements that each read a window of one operand."""
    first = max(-((window.start - track.first) // window.stride), 0)
    stop = min((track.stop - window.span - window.start) // window.stride + 1, count)
    adds_front = first > 0 and window.start < 0
    adds_end = stop < count and window.start + (count - 1) * window.stride + window.span > track.count
    return TimeTrack(
        axis,
        count,
        track.step * window.stride,
        track.oldest + track.step * window.start,
        track.newest + track.step * (window.start + window.span - 1),
        first,
        stop,
        node if adds_front else track.pads_front,
        node if adds_end else track.pads_end,
    )


def _span(track: TimeTrack, start: int, stop: int) -> Span:
    return Span(track.step * start + track.oldest, track.step * (stop - 1) + track.newest)


def _at_once(
    node: Node,
    tracks: Sequence[TimeTrack | None],
    windows: Sequence[Window | None],
    result: TimeTrack,
    sliding: Sliding,
) -> Gathering:
    """The reading of a node whose result has one element along time: its window, or with padding all elements."""
    is_clean = (result.first, result.stop) == (0, 1)
    spans = [
        None
        if track is None or window is None
        else (window.start, window.start + window.span)
        if is_clean
        else (0, track.count)
        for track, window in zip(tracks, windows, strict=True)
    ]
    return Gathering(tuple(spans), sliding.resized(1) if is_clean else node.op)


class _Backward:
    """Distance back in time at which each value is read, from the outputs on."""

    def __init__(self, graph: Graph, forward: _Forward, hop: int) -> None:
        self.lows: dict[str, int] = {}
        self.refusals: list[str] = []
        self._tracks, self._hop = forward.tracks, hop
        for name, value in zip(graph.output_names, graph.outputs, strict=True):
            track = self._tracks.get(value.name)
            if track is not None:
                start = max(track.count - max(hop // track.step, 1), 0)
                self._need(value, start, track.count, f"the output {name}")
        for node in reversed(graph.nodes):
            reading = forward.readings.get(node.outputs[0].name)
            if reading is not None:
                self._visit(node, reading)

    def _visit(self, node: Node, reading: Reading) -> None:
        match reading:
            case Gathering(spans, _):
                for value, ends in zip(node.inputs, spans, strict=True):
                    if value is not None and ends is not None and value.name in self._tracks:
                        self._need(value, *ends, layer_name(node))
            case Viewing(_, windows):
                (viewed,) = (value for value in node.operands if value.name in self._tracks)
                for result, window in zip(node.outputs, windows, strict=True):
                    if result.name in self.lows:
                        ends = (self.lows[result.name], self._tracks[result.name].stop)
                        self._need(viewed, *span_of(window, *ends), layer_name(node))
            case Sliding(_, windows, _):
                ends = self._computed(node)
                for value, sliding in zip(node.inputs, windows, strict=True):
                    if value is not None and sliding is not None and value.name in self._tracks:
                        self._need(value, *span_of(sliding, *ends), layer_name(node))

    def _computed(self, node: Node) -> tuple[int, int]:
        """The elements of a node's results that each call computes."""
        tracks = [self._tracks[value.name] for value in node.outputs]
        track = tracks[0]
        low = min(self.lows.get(value.name, track.stop) for value in node.outputs)
        return max(low, track.stop - self._hop // track.step), track.stop

    def _need(self, value: Value, start: int, stop: int, reader: str) -> None:
        track = self._tracks[value.name]
        if start < track.first:
            fact = "which depend on the start of the window"
            if track.pads_front is not None:
                fact = f"which {layer_name(track.pads_front)} pads at the start"
            self.refusals.append(
                f"{reader} reads the first {track.first} elements of %{value.name} in time, {fact}: a stream has no "
                "start"
            )
        elif stop > track.stop:
            layer = "" if track.pads_end is None else f" of {layer_name(track.pads_end)}"
            self.refusals.append(
                f"{reader} reads the last {track.count - track.stop} elements of %{value.name} in time, which depend "
                f"on the padding{layer} after the last frame, as with `same` padding: they change when the next "
                "frame comes; pad only at the start"
            )
        self.lows[value.name] = min(self.lows.get(value.name, start), start)


def span_of(window: Window, start: int, stop: int) -> tuple[int, int]:
    """The elements of an operand that results `start` to `stop` read."""
    last = window.start + (stop - 1) * window.stride
    return window.start + start * window.stride, last + window.span
