"""Execution of a spec: loads the model and the data, captures, matches selectors, runs the passes in order."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence, Set
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..ir import DType, Graph, Params, ShapeError, TensorType, Value, run, verify
from ..ir.interpret import sizes_of_call
from ..ir.sizes import dimensions_of
from ..ir.symbolic import resized
from ..ir.text import type_text
from ..passes import CalibrationError, Context, Pass, PassError, UnknownPassError, find_pass
from ..passes.progress_callback import Progress, silent
from ..passes.workers import ALONE, Workers
from ..specs import (
    ArrayOrigin,
    Calibration,
    Dataset,
    FolderSource,
    Input,
    Loaded,
    Model,
    Spec,
    Transform,
    layer_matches,
    load_spec,
)
from ..specs.options import QuantizeOptions, Teacher
from ..specs.root_error import expect
from .arguments import Binding, bind_inputs
from .arrays import Arrays
from .data import Column, Samples, own_batch, read_samples, unrolled, unseen_notes
from .errors import Problem, UserError, first_line, is_out_of_memory
from .frontend.capture import capture
from .frontend.decompose import for_c
from .frontend.sources import portable
from .frontend.widths import width_notes
from .gguf_tokenizer import tokenizer_notes
from .isolation import USER_CODE_RAISES
from .loading import check_weights, example_input, find_source, load_source, load_weights
from .metric import find_metric
from .model_caches import add_caches, cache_divergence, prompt_notes, with_caches
from .model_folder import LoadedModel, load_folder
from .operators import load_operators
from .session import Session, Stage
from .target_cost import SAMPLES, TargetCost
from .time_limit import time_limit

HOST = "host"  # the instruction set of this machine, whose costs are not predicted
_EXAMPLES = 16  # number of calls from which the example for capture is chosen
OnStage = Callable[[Stage], None]


@torch.inference_mode(False)
def open_session(
    spec: str | Path | Loaded,
    *,
    overrides: Sequence[str] = (),
    model: nn.Module | Graph | None = None,
    arrays: Mapping[str, Arrays] = {},
    limit_seconds: float | None = None,
) -> Session:
    """Loads the model, weights and data of a spec; captures the model; matches the layer selectors.

    `model` replaces the module of `model.source`; `arrays` replace the file or source of `data.calibration` and
    `data.evaluation`, by key. Construction of the model, of the samples, and tracing may take `limit_seconds` each.
    """
    expect(
        spec, (str, Path, Loaded), "open_session(spec)", "the path of a spec, or the result of `load_spec`"
    )
    loaded = spec.with_overrides(overrides) if isinstance(spec, Loaded) else load_spec(spec, overrides)
    folder, place = loaded.path.parent, str(loaded.spec.model.source)
    _find_passes(loaded)
    load_operators()
    given, params, notes = model is not None, Params(), list[str]()
    if model is None:
        with time_limit(limit_seconds, place, "construction of the model"):
            loaded, made = _loaded_model(loaded)
        model, params, notes = made.module, made.params, [*made.notes]
    described = loaded.spec.model
    if isinstance(model, Graph):
        call = Binding(tuple(v.name for v in model.inputs))
    else:
        if described.dtype is not None and not params:
            model = deepcopy(model).to(getattr(torch, described.dtype))
        notes += check_weights(model, place, params)
        call = bind_inputs(model, list(described.inputs), place)
    names, data = call.names, loaded.spec.data
    try:
        calibration, evaluation = _read_data(loaded.spec, names, arrays, limit_seconds)
    except UserError:
        # the data do not fit `model.inputs`: if the model does not fit it either, the model is reported
        _captured(model, call, _examples(loaded.spec, names, None), described, params, check=False)
        raise
    examples = _examples(loaded.spec, names, calibration or evaluation)
    with time_limit(limit_seconds, place, "tracing of the model"):
        captured, trainable = _captured(model, call, examples, described, params)
    traced = portable(captured, folder)
    graph = traced if loaded.spec.outputs.c is None else for_c(traced)
    check_states(graph, described.state, place)
    match_selectors(loaded, graph)
    check_sizes(graph, {"data.calibration": calibration, "data.evaluation": evaluation})
    notes += width_notes(traced, graph)
    notes += _check_results(graph, [s for s in (calibration, evaluation) if s is not None], examples, place)
    if not given and described.cache is not None and described.cache.bits is not None:
        assert isinstance(model, nn.Module)
        notes += _cache_notes(loaded, model, params, graph, calibration or evaluation)
    if calibration and any(isinstance(step, QuantizeOptions) for step in loaded.spec.passes):
        notes += one_size_notes(graph, calibration)
        if evaluation:
            notes += unseen_notes(graph.inputs, calibration, evaluation)
    sequences = None
    if calibration:
        sequences = calibration if calibration.states else None
        calibration = unrolled(graph, calibration)
        graph = graph.with_examples(
            _common_sizes(graph, calibration)
        )  # passes run the model on these samples
    return Session(
        loaded,
        graph,
        calibration,
        evaluation,
        find_metric(
            data.evaluation,
            {name: v.type for name, v in zip(graph.output_names, graph.outputs, strict=True)},
            evaluation,
            batch=own_batch(graph.inputs, evaluation),
            folder=folder,
        )
        if data.evaluation and evaluation
        else None,
        given,
        tuple(notes),
        frozenset(graph.params.keys() - trainable),
        sequences,
    )


def _read_data(
    spec: Spec, names: Sequence[str], arrays: Mapping[str, Arrays], limit_seconds: float | None
) -> tuple[Samples | None, Samples | None]:
    """The samples for calibration and for evaluation."""
    calibration = evaluation = None
    data = spec.data
    if data.calibration:
        origin = arrays.get("calibration", data.calibration.origin)
        with time_limit(limit_seconds, str(origin), "construction of the samples"):
            calibration = _calibration(spec, names, data.calibration, origin)
    if data.evaluation:
        origin = arrays.get("evaluation", data.evaluation.origin)
        with time_limit(limit_seconds, str(origin), "construction of the samples"):
            evaluation = _samples(spec, names, data.evaluation, origin, limit=data.evaluation.samples)
    return calibration, evaluation


def _loaded_model(loaded: Loaded) -> tuple[Loaded, LoadedModel]:
    """The model of the spec, and the spec with the caches of a language model among inputs and outputs."""
    described = loaded.spec.model
    if not isinstance(described.source, FolderSource):
        model = load_source(described.source, described.args, folder=loaded.path.parent)
        if described.weights is not None:
            load_weights(model, described.weights)
        return loaded, LoadedModel(model, Params())
    found = load_folder(described.source, dtype=described.dtype and getattr(torch, described.dtype))
    if described.cache is not None:
        loaded = with_caches(loaded, add_caches(found.module, described.source, described.cache))
    return loaded, replace(
        found, notes=(*found.notes, *tokenizer_notes(loaded.spec), *prompt_notes(loaded.spec))
    )


def _captured(
    model: nn.Module | Graph,
    call: Binding,
    examples: Sequence[Tensor],
    described: Model,
    params: Params,
    *,
    check: bool = True,
) -> tuple[Graph, Set[str]]:
    """The graph of a model, and its trainable constants; for a given graph, all constants.

    `params` has the elements of parameters on the meta device.
    """
    if isinstance(model, Graph):
        return verify(model), model.params.keys()
    arguments = call.arguments(examples)
    captured = capture(
        model,
        *arguments,
        params=params,
        input_names=call.names,
        output_names=described.outputs if check else (),
        dynamic=described.dynamic,
        ranges=described.ranges,
        check=check,
    )
    return captured.graph, captured.trainable


def _cache_notes(
    loaded: Loaded, model: nn.Module, params: Params, graph: Graph, samples: Samples | None
) -> list[str]:
    """A note on the divergence of caches of few bits from float caches, if there are samples."""
    source, options = loaded.spec.model.source, loaded.spec.model.cache
    assert isinstance(source, FolderSource) and options is not None
    if samples is None:
        return []
    options = options.model_copy(update={"bits": None})
    spec = with_caches(loaded, add_caches(model, source, options)).spec
    call = bind_inputs(model, list(spec.model.inputs), str(source))
    floats, _ = _captured(model, call, _examples(spec, call.names, None), spec.model, params)
    return [cache_divergence(graph, floats, samples)]


def check_sizes(graph: Graph, data: Mapping[str, Samples | None]) -> None:
    """UserError for samples whose sizes are outside the ranges of the graph's dimensions."""
    problems = []
    for place, samples in data.items():
        if samples is None or not graph.dimensions or samples.states:
            continue
        try:
            sizes_of_call(graph, samples.call(graph.inputs, 0))
        except ShapeError as err:
            problems.append(Problem("D103", place, err.message, "give other samples, or another `max`"))
    if problems:
        raise UserError(problems)


def one_size_notes(graph: Graph, calibration: Samples) -> list[str]:
    """A note on dimensions other than batches: calibration samples have one size, calls have any.

    Ranges of activations are those of that size. A sum over a longer sequence, for example, can exceed them.
    """
    if calibration.states:
        return []
    named = [
        f"{name} = {size} (calls: {graph.dimensions[name].span})"
        for name, size in _common_sizes(graph, calibration).items()
    ]
    advice = "evaluate at another size, with `data.evaluation`, before it is used there"
    what = "all calibration samples have the size"
    return [f"{what} {', '.join(named)}, and ranges of integers are chosen for it: {advice}"] if named else []


def _common_sizes(graph: Graph, samples: Samples) -> dict[str, int]:
    """Sizes of all samples in dimensions of the graph other than batches, by name."""
    if not graph.dimensions:
        return {}
    batches = {
        d.name
        for index, value in enumerate(graph.inputs)
        if (axis := samples.axis(index)) is not None
        for d in dimensions_of(value.type.shape[axis]).values()
    }
    sizes = sizes_of_call(graph, samples.call(graph.inputs, 0))
    return {name: sizes[name] for name in graph.dimensions if name not in batches}


def check_states(graph: Graph, states: Mapping[str, str], place: str) -> None:
    """UserError unless each state continues an existing output with the input's type."""
    inputs = {v.name: v.type for v in graph.inputs}
    outputs = dict(zip(graph.output_names, (v.type for v in graph.outputs), strict=True))
    known = f"there are {', '.join(outputs)}; `model.outputs` renames them"
    problems = [
        Problem("M106", place, f"state {name} continues the output {output}, which does not exist", known)
        if output not in outputs
        else Problem(
            "M106",
            place,
            f"state {name} is {type_text(inputs[name])}, the output {output} {type_text(outputs[output])}",
            "both ends of a state need the same shape and type",
        )
        for name, output in states.items()
        if outputs.get(output) != inputs[name]
    ]
    if problems:
        raise UserError(problems)


@torch.inference_mode(False)  # passes train, whatever the caller's gradient mode is
def run_passes(
    session: Session,
    *,
    before: Collection[str] = (),
    progress: Progress = silent,
    on_stage: OnStage | None = None,
    workers: Workers = ALONE,
) -> tuple[Stage, ...]:
    """Runs the passes of the spec in order; UserError with the pass and a remedy if a pass fails.

    The first pass with a name in `before`, and all later passes, are not run.
    """
    expect(session, Session, "run_passes(session)", "what `open_session` gives")
    graph, stages = session.captured, []
    passes = _find_passes(session.loaded)
    for index, (found, options) in enumerate(zip(passes, session.spec.passes, strict=True)):
        if found.name in before:
            break
        try:
            context = replace(pass_context(session, index, progress), workers=workers)
            result = found(graph, options, context)
        except CalibrationError as err:
            calibration = session.spec.data.calibration
            place = str(calibration.origin) if calibration else "data.calibration"
            raise UserError(Problem("D107", place, err.message, "see `data.calibration`")) from err
        except PassError as err:
            raise UserError(Problem("P601", f"passes[{index}] ({found.name})", err.message)) from err
        except USER_CODE_RAISES as err:
            if is_out_of_memory(err) or _is_own(found):
                raise
            fact = f"raises {first_line(err)}"
            advice = "report it to the package that provides this pass"
            raise UserError(Problem("P605", f"passes[{index}] ({found.name})", fact, advice)) from err
        graph = result.graph
        stages.append(Stage(found.name, graph, result.report, result.state, result.frames))
        if on_stage is not None:
            on_stage(stages[-1])
    return tuple(stages)


def _is_own(found: Pass[Any]) -> bool:  # Any: each pass has its own options
    """True if a pass is part of fxpress, not of another package."""
    return found.function.__module__.partition(".")[0] == __name__.partition(".")[0]


def pass_context(session: Session, index: int, progress: Progress) -> Context:
    """Context of the pass with this index."""
    options, rest = session.spec.passes[index], session.spec.passes[index + 1 :]
    folder = session.loaded.path.parent
    context = Context(
        original=session.captured,
        selects=layer_matches,
        load=lambda source: find_source(source, folder=folder),
        teacher=lambda teacher: capture_teacher(session, teacher),
        progress=progress,
        state=session.spec.model.state,
    )
    limit = getattr(options, "samples", None)  # an option only of passes with calibration
    if limit is None and options.takes_all_samples and session.calibration is not None:
        limit = len(session.calibration)
    context = _with_samples(context, session, limit)
    if session.target.isa == HOST:
        return context
    few = _with_samples(context, session, SAMPLES)
    return replace(context, cost=TargetCost(session.target, session.spec.outputs.c, rest, few))


def capture_teacher(session: Session, teacher: Teacher) -> Graph:
    """The graph of a teacher with the inputs of the captured model; UserError if it has other inputs."""
    described, place = session.spec.model, str(teacher.source)
    model = load_source(teacher.source, teacher.args, folder=session.loaded.path.parent)
    if teacher.weights is not None:
        load_weights(model, teacher.weights)
    check_weights(model, place, Params())
    call = bind_inputs(model, list(described.inputs), place)
    examples = _examples(session.spec, call.names, session.calibration)
    graph, _ = _captured(
        model, call, examples, described.model_copy(update={"outputs": ()}), Params(), check=True
    )
    inputs = {value.name: value for value in graph.inputs}
    return replace(graph, inputs=tuple(inputs[value.name] for value in session.captured.inputs))


def _with_samples(context: Context, session: Session, limit: int | None) -> Context:
    """The context with the first `limit` calibration samples."""
    pieces, labels = calibration_batches(session, limit)
    return replace(context, calibration=pieces, labels=labels)


def calibration_batches(
    session: Session, limit: int | None
) -> tuple[list[tuple[Tensor, ...]], tuple[Tensor, ...]]:
    """The first `limit` calibration samples in batches of the model's own size, and the labels of each batch.

    The default limit is that of `data.calibration`.
    """
    if session.calibration is None:
        return [], ()
    described = session.spec.data.calibration
    if limit is None and described is not None:
        limit = described.samples
    used, values = session.calibration.first(limit), session.captured.inputs
    size, calls = own_batch(values, used), range(used.calls(values))
    pieces = [tuple(used.call(values, i)) for i in calls]
    labels = () if used.labels is None else tuple(used.labels[i * size : (i + 1) * size] for i in calls)
    return pieces, labels


def _calibration(
    spec: Spec, names: Sequence[str], dataset: Calibration, origin: ArrayOrigin | Arrays
) -> Samples:
    """The calibration samples; for passes that train, all samples of the file unless the spec sets a number."""
    takes_all = not dataset.is_limited and any(options.takes_all_samples for options in spec.passes)
    limit = None if takes_all else dataset.samples
    return _samples(spec, names, dataset, origin, limit=limit, exclude=dataset.exclude)


def _samples(
    spec: Spec,
    names: Sequence[str],
    dataset: Dataset,
    origin: ArrayOrigin | Arrays,
    *,
    limit: int | None,
    exclude: Sequence[int] = (),
) -> Samples:
    model, transforms = spec.model, spec.data.transform
    fed = [name for name in names if name in model.fed]
    columns = [
        Column(
            dataset.array(name),
            _type(model.inputs[name]),
            transforms.get(name, Transform()),
            model.inputs[name].batch,
            model.state.get(name),
            model.inputs[name].dynamic,
        )
        for name in fed
    ]
    samples = read_samples(origin, columns, labels=dataset.labels, limit=limit)
    values = [Value(name, _type(model.inputs[name])) for name in fed]
    count = len(samples) // samples.steps if samples.states else len(samples)
    beyond = [position for position in exclude if position >= count]
    if beyond:
        fact = (
            f"`exclude` names position {beyond[0]} of {count} {'sequences' if samples.states else 'samples'}"
        )
        raise UserError(Problem("D105", str(origin), fact, "positions count from 0"))
    if exclude:
        samples = samples.without(exclude)
    if not samples.calls(values):
        fact = f"{len(samples)} samples are fewer than the {own_batch(values, samples)} that the model takes at once"
        raise UserError(Problem("D105", str(origin), fact, "give more, or compile for a smaller batch"))
    return samples if len(fed) == len(names) else _from_start(spec, names, samples)


def _from_start(spec: Spec, names: Sequence[str], samples: Samples) -> Samples:
    """The samples with zeros, which take no memory, for inputs without data: empty caches."""
    fed = dict(zip((name for name in names if name in spec.model.fed), samples.inputs, strict=True))
    types = {name: _type(spec.model.inputs[name]) for name in names if name not in fed}
    empty = {
        name: torch.zeros((), dtype=t.dtype.torch).expand(len(samples), *t.shape) for name, t in types.items()
    }
    axes = tuple(0 if name in fed else None for name in names)
    return replace(samples, inputs=tuple({**fed, **empty}[name] for name in names), axes=axes)


def _examples(spec: Spec, names: Sequence[str], samples: Samples | None) -> tuple[Tensor, ...]:
    """Inputs for tracing: the call with the most different values, so that it is not only padding.

    Data with lengths other than the example's are cut or repeated. States, whose initial values are often zeros, and
    models without data get seeded random numbers.
    """
    types = [_type(spec.model.inputs[name]) for name in names]
    made = [example_input(t.shape, t.dtype.torch) for t in types]
    if samples is None:
        return tuple(made)
    values = [Value(name, type) for name, type in zip(names, types, strict=True)]
    calls = [samples.call(values, i) for i in range(min(samples.calls(values), _EXAMPLES))]
    varied = max(calls, key=lambda call: sum(x.unique().numel() for x in call))
    return tuple(
        made[i] if i in samples.states else resized(x, dict(enumerate(type.shape)))
        for i, (x, type) in enumerate(zip(varied, types, strict=True))
    )


def _type(described: Input) -> TensorType:
    return TensorType(described.shape, DType.of(getattr(torch, described.dtype)))


def _check_results(
    graph: Graph, data: Sequence[Samples], examples: Sequence[Tensor], place: str
) -> list[str]:
    """Notes on outputs that are partly NaN; UserError for data on which the model fails, and for outputs that are all
    NaN.

    The first call on each data set is checked, or all calls if integers may index beyond tables of the model.
    """
    indexes = any(not v.type.dtype.torch.is_floating_point for v in graph.inputs)
    found: dict[str, list[Tensor]] = {}
    for samples in data or [Samples(tuple(x[None] for x in examples), axes=(None,) * len(examples))]:
        count = samples.calls(graph.inputs) if indexes else 1
        for inputs in (samples.call(graph.inputs, i) for i in range(count)):
            try:
                with torch.no_grad():
                    results = run(graph, inputs)
            except (IndexError, RuntimeError) as err:
                fact = f"the model raises {first_line(err)} on the data"
                advice = "are all indexes within its tables?"
                raise UserError(Problem("M123", place, fact, advice)) from err
            for name, result in zip(graph.output_names, results, strict=True):
                found.setdefault(name, []).append(torch.isfinite(result).reshape(-1))
    shares = {n: torch.cat(parts).double().mean().item() for n, parts in found.items() if parts[0].numel()}
    advice = "check the weights, and the result of `data.transform`"
    problems = [
        Problem("M122", place, f"the output {name!r} is NaN or infinite in every element", advice)
        for name, share in shares.items()
        if not share
    ]
    if problems:
        raise UserError(problems)
    return [
        f"the output {name!r} is NaN or infinite in {1 - share:.1%} of its elements"
        for name, share in shares.items()
        if share < 1
    ]


def _find_passes(loaded: Loaded) -> tuple[Pass[Any], ...]:  # Any: each pass has its own options
    """The passes of the spec; UserError for passes that do not exist."""
    problems, found = [], []
    for index, options in enumerate(loaded.spec.passes):
        try:
            found.append(find_pass(options.pass_name()))
        except UnknownPassError as err:
            problems.append(Problem("P600", f"passes[{index}]", err.message))
    if problems:
        raise UserError(problems)
    return tuple(found)


def match_selectors(loaded: Loaded, graph: Graph) -> None:
    layers = [node.source.module for node in graph.nodes if node.source.module]
    loaded.check_layers(layers)
