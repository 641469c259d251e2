"""A compilation after the pass `stream`: the network of one call, and windows as sequences of calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch

from ..ir import Graph
from ..specs import Input
from .data import Samples, frames_in_steps, own_batch, place_of_axis
from .errors import Problem, UserError
from .session import Session, Stage, window_graph


def streamed_session(session: Session, stages: Sequence[Stage]) -> Session:
    """The session for the outputs, with a spec of the network of one call; the session itself without `stream`.

    Each sample then is a sequence: a window in calls of new frames. If the hop does not divide the window, the first
    frames of the window are skipped.
    """
    if not stages or not stages[-1].frames:
        return session
    stage, window = stages[-1], window_graph(session, stages)
    model = session.spec.model
    known = dict(model.inputs)
    inputs = {
        value.name: known[value.name].model_copy(update={"shape": value.type.shape})
        if value.name in known
        else Input(
            shape=value.type.shape, dtype=str(value.type.dtype.torch).removeprefix("torch."), batch=None
        )
        for value in stage.graph.inputs
    }
    changed: Mapping[str, object] = {
        "inputs": inputs,
        "outputs": stage.graph.output_names,
        "state": dict(stage.state),
    }
    spec = session.spec.model_copy(update={"model": model.model_copy(update=changed)})
    given = (session.calibration, session.evaluation)
    calibration, evaluation = (None if s is None else _in_calls(window, stage, s) for s in given)
    return replace(
        session,
        loaded=replace(session.loaded, spec=spec),
        calibration=calibration,
        evaluation=evaluation,
        frames=dict(stage.frames),
    )


def _in_calls(window: Graph, stage: Stage, samples: Samples) -> Samples:
    """Samples of the window network as sequences of calls of the streamed one."""
    if own_batch(window.inputs, samples) != 1:
        fact = f"the model takes {own_batch(window.inputs, samples)} windows at once"
        raise UserError(Problem("P601", "stream", fact, "give the model a batch of 1"))
    graph = stage.graph
    hops = {
        name: int(v.type.shape[axis])
        for v in graph.inputs
        if (axis := stage.frames.get(name := v.name)) is not None
    }
    steps = min(
        int(value.type.shape[stage.frames[value.name]]) // hops[value.name]
        for value in window.inputs
        if value.name in hops
    )
    inputs = []
    for index, (value, x) in enumerate(zip(window.inputs, samples.inputs, strict=True)):
        if value.name in hops:
            at = place_of_axis(stage.frames[value.name], samples.axis(index))
            inputs.append(frames_in_steps(x, at, hops[value.name]))
        else:
            inputs.append(x.repeat_interleave(steps, 0))
    states: dict[int, str] = {}
    for index, value in enumerate(graph.inputs):
        if value.name in stage.state:
            states[index] = stage.state[value.name]
            zero = torch.zeros((), dtype=value.type.dtype.torch)
            inputs.append(zero.expand(len(samples), *value.type.shape))
    axes = (*map(samples.axis, range(len(window.inputs))), *[None] * len(states))
    return Samples(tuple(inputs), None, axes, states, steps)
