"""The pass `stream`: rewrites a network over a window of frames to one that takes the new frames and a state.

    plan        time track of every value, and how far back it is read (`stream_plan`)
    emit        each node on its new elements, with a ring for earlier elements that its readers need (`streamed_graph`)
    check       neighbouring windows against one call each (`induction`)

A value moves towards the start of the window by hop / step elements between calls, where step is the product of the
strides before it; values that do not only move, such as those that depend on padding or on the whole window, are
refused.
"""

from __future__ import annotations

from collections.abc import Mapping

from ...ir import Graph
from ...specs.options import StreamOptions
from ..base import Context, PassResult, register
from ..report import Cell, Decision, PassReport, Table
from .induction import check_streamed
from .stream_plan import StreamPlan, make_plan
from .streamed_graph import Streamed, make_streamed
from .time_track import StreamError

_SAMPLES = 8


@register(StreamOptions)
def stream(graph: Graph, options: StreamOptions, context: Context) -> PassResult:
    """The network of one call: outputs are equal from the first call for which all their frames were seen."""
    axes = time_axes(graph, options)
    _check_inputs(graph, axes, options.hop, context)
    plan = make_plan(graph, axes, options.hop)
    streamed = make_streamed(graph, plan)
    checked = check_streamed(graph, streamed, axes, options.hop, context.calibration[:_SAMPLES])
    report = _report(graph, axes, plan, streamed, checked)
    return PassResult(streamed.graph, report, state=streamed.state, frames=axes)


def time_axes(graph: Graph, options: StreamOptions) -> dict[str, int]:
    """The time axis of each input that has one; StreamError for unknown names, and dimensions that do not exist."""
    types = {value.name: value.type for value in graph.inputs}
    known = ", ".join(types)
    if isinstance(options.axis, Mapping):
        axes = dict(options.axis)
    elif len(types) > 1:
        hint = f"write it by name, as {{{next(iter(types))}: 2}}"
        raise StreamError([f"`axis` is a single number, but the inputs are {known}; {hint}"])
    else:
        axes = dict.fromkeys(types, options.axis)
    refusals = [
        f"`axis` names {name}, which is not an input; there are {known}"
        if name not in types
        else f"the input {name} has no dimension {axis}: its shape is {list(types[name].shape)}"
        for name, axis in axes.items()
        if name not in types or axis >= types[name].rank
    ]
    if refusals or not axes:
        raise StreamError(refusals or ["`axis` names no input"])
    return axes


def _check_inputs(graph: Graph, axes: Mapping[str, int], hop: int, context: Context) -> None:
    refusals = []
    if context.state:
        refusals.append(f"the model has states already: {', '.join(context.state)}")
    if graph.dimensions:
        refusals.append(
            f"the dimensions {', '.join(graph.dimensions)} are dynamic, but a window has a fixed size"
        )
    frames = {name: int(v.type.shape[axes[name]]) for v in graph.inputs if (name := v.name) in axes}
    if len(set(frames.values())) > 1:
        refusals.append(f"the inputs have windows of different lengths: {frames}")
    refusals += [
        f"the hop {hop} is longer than the window of {n} frames" for n in {*frames.values()} if hop > n
    ]
    if refusals:
        raise StreamError(refusals)


def _report(
    graph: Graph, axes: Mapping[str, int], plan: StreamPlan, streamed: Streamed, checked: str
) -> PassReport:
    name, axis = next(iter(axes.items()))
    frames = next(value.type.shape[axis] for value in graph.inputs if value.name == name)
    spans = [plan.spans[v.name] for v in graph.outputs if v.name in plan.spans]
    for value in graph.outputs:
        track = plan.tracks.get(value.name)
        if track is not None:
            first = track.count - max(plan.hop // track.step, 1)
            spans.append(plan.span(value, max(first, 0), track.count))
    field = frames - min(span.oldest for span in spans)
    delay = frames - 1 - max(span.newest for span in spans)
    first_call = -(-field // plan.hop)
    states = tuple(
        (
            ring.state,
            ring.value.name,
            graph.source(ring.value).module,
            ring.stop - ring.start,
            ring.type.storage_bytes,
        )
        for ring in streamed.rings
    )
    state_bytes = sum(ring.type.storage_bytes for ring in streamed.rings)
    row: tuple[Cell, ...] = (
        frames,
        plan.hop,
        field,
        delay,
        first_call,
        state_bytes,
        streamed.graph.macs,
        graph.macs,
    )
    columns = (
        "window_frames",
        "hop_frames",
        "receptive_field_frames",
        "delay_frames",
        "equal_from_call",
        "state_bytes",
        "macs_per_call",
        "macs_of_window",
    )
    behind = f", except for the last {delay}" if delay else ""
    summary = (
        f"a call takes {plan.hop} of {frames} frames: {streamed.graph.macs:,} multiply-accumulates, {graph.macs:,} for "
        f"a window; {state_bytes:,} B of states in {len(streamed.rings)} rings, which start with zeros. Outputs depend "
        f"on the last {field} frames{behind}: from call {first_call} on they equal those of the window network; "
        f"{checked}"
    )
    decisions = tuple(
        Decision(
            "ring",
            ring.value.name,
            graph.source(ring.value),
            True,
            f"{ring.stop - ring.start} earlier elements are read again",
        )
        for ring in streamed.rings
    )
    return PassReport(
        "stream",
        decisions,
        (
            Table("stream", columns, (row,)),
            Table("states", ("state", "value", "module", "elements", "bytes"), states),
        ),
        (summary,),
    )
