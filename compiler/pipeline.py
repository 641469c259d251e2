"""Runs a spec: load, capture, passes in order, backends, measured figures, report.

Every stage refuses bad input before the next one starts; nothing is written before the last one is done.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..backends.c import CArtifact
from ..backends.torch_module import TorchArtifact
from ..ir import DType, Graph, TensorType, Value, run
from ..ir.text import type_text
from ..passes import CalibrationError, Context, Cost, Pass, PassError, UnknownPassError, find_pass
from ..passes.progress import Progress, silent
from ..passes.quantize import OUTLIERS
from ..specs import (
    ArrayOrigin,
    Calibration,
    Dataset,
    Evaluation,
    FileSource,
    Input,
    Loaded,
    Spec,
    SpecError,
    Transform,
    layer_matches,
    load_spec,
)
from ..specs.options import FinetuneOptions, LayerPrecision, QuantizeOptions
from .arguments import bind_inputs
from .data import Column, Samples, own_batch, read_samples, unrolled, unseen_notes
from .emission import check_backends, emit_backends
from .errors import Problem, UserError, first_line, is_out_of_memory
from .frontend.capture import capture
from .frontend.decompose import for_c
from .frontend.sources import portable
from .frontend.widths import width_notes
from .isolation import USER_CODE_RAISES
from .loading import check_weights, example_input, find_source, load_source, load_weights
from .lock import LOCK_FILE, Lock, check_lock, make_lock, read_lock
from .metric import find_metric
from .noise import Advised, Findings, examine
from .output import publish
from .report import Noise, Report, noise_problems, render_html
from .session import Session, Stage, final_graph
from .summary import make_report
from .target_cost import SAMPLES, TargetCost
from .time_limit import time_limit

REPORT_JSON, REPORT_HTML = "report.json", "report.html"
QUANTIZE, FINETUNE = QuantizeOptions.pass_name(), FinetuneOptions.pass_name()
HOST = "host"  # the instruction set of this machine, whose costs nobody predicts
_EXAMPLES = 16  # calls among which the example for capture is chosen
OnStage = Callable[[Stage], None]


@dataclass(frozen=True)
class Compiled:
    """A finished compilation."""

    session: Session
    stages: tuple[Stage, ...]
    c: CArtifact | None
    torch: TorchArtifact | None
    report: Report
    files: Mapping[str, bytes]

    @property
    def graph(self) -> Graph:
        """The graph after the last pass."""
        return final_graph(self.session, self.stages)

    def write(self, directory: str | Path) -> None:
        """Write all files; the directory appears whole or not at all. UserError where it cannot be written."""
        publish(Path(directory), self.files, inputs=self.session.loaded.read_files())


def compile_model(
    spec: str | Path,
    *,
    overrides: Sequence[str] = (),
    model: nn.Module | None = None,
    locked: Path | None = None,
    progress: Progress = silent,
    on_stage: OnStage | None = None,
    enforce_budget: bool = True,
    limit_seconds: float | None = None,
) -> Compiled:
    """Compile what a spec file describes; nothing is written until `Compiled.write`.

    `overrides` are like `passes[1].samples=64`. `model` stands in for what `model.source` names. `locked` is the
    lock of an earlier compilation: whatever differs from it is refused. A network that is too large for the
    target is refused unless `enforce_budget` is off. Raises SpecError, CaptureError or UserError, each with all
    problems found.
    """
    session = open_session(spec, overrides=overrides, model=model, limit_seconds=limit_seconds)
    stages = run_passes(session, progress=progress, on_stage=on_stage)
    graph = final_graph(session, stages)
    check_backends(session, graph, enforce_budget=enforce_budget)
    findings = _examine(session, stages, progress)
    if findings is not None and enforce_budget:
        _refuse_noise(session, findings.noise)
    artifacts = emit_backends(session, graph)
    report = make_report(session, stages, artifacts, findings)
    files = {
        **artifacts.files,
        **{
            f"passes/{index}.{name}": content
            for index, stage in enumerate(stages)
            for name, content in stage.report.files.items()
        },
        REPORT_JSON: (report.model_dump_json(indent=2) + "\n").encode(),
        REPORT_HTML: render_html(report, pictures=_pictures(stages)).encode(),
    }
    lock = _lock(session, files)
    if locked is not None:
        check_lock(read_lock(locked), lock, locked)
    files[LOCK_FILE] = lock.to_bytes()
    return Compiled(session, stages, artifacts.c, artifacts.torch, report, files)


def _pictures(stages: Sequence[Stage]) -> dict[int, list[str]]:
    """The pictures that each pass made, by its index."""
    return {
        index: [content.decode() for name, content in stage.report.files.items() if name.endswith(".svg")]
        for index, stage in enumerate(stages)
    }


@torch.inference_mode(False)
def open_session(
    spec: str | Path,
    *,
    overrides: Sequence[str] = (),
    model: nn.Module | None = None,
    limit_seconds: float | None = None,
) -> Session:
    """Load what a spec names: model, weights, data; capture the model; match the layer selectors.

    Making the model, making the samples and tracing the model may take `limit_seconds` each.
    """
    loaded = load_spec(spec, overrides)
    described = loaded.spec.model
    place = str(described.source)
    _find_passes(loaded)
    given = model is not None
    if model is None:
        with time_limit(limit_seconds, place, "making the model"):
            model = load_source(described.source, described.args, folder=Path(spec).parent)
        if described.weights is not None:
            load_weights(model, described.weights)
    if described.dtype is not None:
        model = deepcopy(model).to(getattr(torch, described.dtype))
    notes = check_weights(model, place)
    call = bind_inputs(model, list(described.inputs), place)
    names = call.names
    data = loaded.spec.data
    try:
        calibration = evaluation = None
        if data.calibration:
            with time_limit(limit_seconds, str(data.calibration.origin), "making the samples"):
                calibration = _calibration(loaded.spec, names, data.calibration)
        if data.evaluation:
            with time_limit(limit_seconds, str(data.evaluation.origin), "making the samples"):
                evaluation = _samples(loaded.spec, names, data.evaluation, limit=data.evaluation.samples)
    except UserError:
        # data do not fit what `model.inputs` says: where the model does not either, that is the fault
        capture(model, *call.arguments(_examples(loaded.spec, names, None)), input_names=names, check=False)
        raise
    examples = _examples(loaded.spec, names, calibration or evaluation)
    with time_limit(limit_seconds, place, "tracing the model"):
        captured = capture(
            model, *call.arguments(examples), input_names=names, output_names=described.outputs
        )
    traced = portable(captured.graph, Path(spec).parent)
    graph = traced if loaded.spec.outputs.c is None else for_c(traced)
    check_states(graph, described.state, place)
    _match_selectors(loaded, graph)
    notes += width_notes(traced, graph)
    notes += _check_results(graph, [s for s in (calibration, evaluation) if s is not None], examples, place)
    if calibration and evaluation and any(isinstance(step, QuantizeOptions) for step in loaded.spec.passes):
        notes += unseen_notes(graph.inputs, calibration, evaluation)
    folder = Path(spec).parent
    return Session(
        loaded,
        graph,
        unrolled(graph, calibration) if calibration else None,
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
        frozenset(graph.params.keys() - captured.trainable),
    )


def check_states(graph: Graph, states: Mapping[str, str], place: str) -> None:
    """UserError unless each state continues an output that exists and has the input's type."""
    inputs = {v.name: v.type for v in graph.inputs}
    outputs = dict(zip(graph.output_names, (v.type for v in graph.outputs), strict=True))
    known = f"there are {', '.join(outputs)}; `model.outputs` gives other names"
    problems = [
        Problem("M106", place, f"state {name} continues the output {output}, which does not exist", known)
        if output not in outputs
        else Problem(
            "M106",
            place,
            f"state {name} is {type_text(inputs[name])}, the output {output} {type_text(outputs[output])}",
            "a state has one shape and one type",
        )
        for name, output in states.items()
        if outputs.get(output) != inputs[name]
    ]
    if problems:
        raise UserError(problems)


@torch.inference_mode(False)  # passes train, whatever mode the caller is in
def run_passes(
    session: Session,
    *,
    before: Collection[str] = (),
    progress: Progress = silent,
    on_stage: OnStage | None = None,
) -> tuple[Stage, ...]:
    """The passes of the spec, in order; UserError with the pass and what to do when one cannot go on.

    The first pass whose name is in `before`, and what comes after it, does not run.
    """
    graph, stages = session.captured, []
    layers: dict[str, LayerPrecision] = {}
    passes = _find_passes(session.loaded)
    for index, (found, options) in enumerate(zip(passes, session.spec.passes, strict=True)):
        if found.name in before:
            break
        try:
            result = found(graph, options, _context(session, index, layers, progress))
        except CalibrationError as err:
            calibration = session.spec.data.calibration
            place = str(calibration.origin) if calibration else "data.calibration"
            raise UserError(Problem("D107", place, str(err), "see `data.calibration`")) from err
        except PassError as err:
            raise UserError(Problem("P601", f"passes[{index}] ({found.name})", str(err))) from err
        except USER_CODE_RAISES as err:
            if is_out_of_memory(err) or _is_own(found):
                raise
            fact = f"raises {first_line(err)}"
            advice = "tell the package that brings this pass"
            raise UserError(Problem("P605", f"passes[{index}] ({found.name})", fact, advice)) from err
        graph, layers = result.graph, layers | dict(result.layers)
        stages.append(Stage(found.name, graph, result.report, layers))
        if on_stage is not None:
            on_stage(stages[-1])
    return tuple(stages)


def _is_own(found: Pass[Any]) -> bool:  # Any: each pass has its own options
    """Whether a pass is of fxpress, not of another package."""
    return found.function.__module__.partition(".")[0] == __name__.partition(".")[0]


def _context(
    session: Session, index: int, layers: Mapping[str, LayerPrecision], progress: Progress
) -> Context:
    """Context of the pass with this index."""
    options, rest = session.spec.passes[index], session.spec.passes[index + 1 :]
    folder = session.loaded.path.parent
    context = Context(
        original=session.captured,
        layers=layers,
        selects=layer_matches,
        load=lambda source: find_source(source, folder=folder),
        progress=progress,
        state=session.spec.model.state,
    )
    limit = getattr(options, "samples", None)  # an option that only passes with calibration have
    if limit is None and options.trains and session.calibration is not None:
        limit = len(session.calibration)
    context = _with_samples(context, session, limit)
    if session.target.isa == HOST:
        return context
    few = _with_samples(context, session, SAMPLES)
    return replace(context, cost=TargetCost(session.target, session.spec.outputs.c, rest, few))


@torch.inference_mode(False)  # changes that are tried may learn
def _examine(session: Session, stages: Sequence[Stage], progress: Progress) -> Findings | None:
    """The noise of the integers against the float graph; None without integers, or where they were trained after."""
    names = [stage.name for stage in stages]
    if QUANTIZE not in names or session.calibration is None:
        return None
    index = names.index(QUANTIZE)
    if FINETUNE in names[index:]:
        return None
    options = session.spec.passes[index]
    assert isinstance(options, QuantizeOptions)
    before = stages[index - 1] if index else None
    reference = session.captured if before is None else before.graph
    context = _context(session, index, {} if before is None else before.layers, progress)
    rest = session.spec.passes[index + 1 :]

    def price(graph: Graph, changed: QuantizeOptions, around: Context) -> Cost | None:
        if session.target.isa == HOST or session.spec.outputs.c is None:
            return None
        return TargetCost(session.target, session.spec.outputs.c, [changed, *rest], around).predict(graph)

    def accepts(settings: Mapping[str, str]) -> bool:
        paths = [name if "." in name else f"passes[{index}].{name}" for name in settings]
        try:
            loaded = session.loaded.with_overrides(map("=".join, zip(paths, settings.values(), strict=True)))
            _match_selectors(loaded, session.captured)
        except SpecError:
            return False
        return True

    calibration = session.spec.data.calibration
    return examine(
        reference,
        stages[index].graph,
        options,
        context,
        session.calibration,
        spec=Advised(price, accepts, () if calibration is None else calibration.exclude),
        has_outliers=any(table.name == OUTLIERS for table in stages[index].report.tables),
    )


def _refuse_noise(session: Session, noise: Noise) -> None:
    """UserError where an output or a layer has less than the least ratio and the spec makes that an error."""
    index, options = next(
        (i, step) for i, step in enumerate(session.spec.passes) if isinstance(step, QuantizeOptions)
    )
    if options.on_low_snr == "error" and noise.is_low:
        raise UserError(
            Problem("P604", f"passes[{index}] ({QUANTIZE})", fact, hint)
            for fact, hint in noise_problems(noise)
        )


def _with_samples(context: Context, session: Session, limit: int | None) -> Context:
    """The context with the first `limit` calibration samples."""
    pieces, labels = calibration_batches(session, limit)
    return replace(context, calibration=pieces, labels=labels)


def calibration_batches(
    session: Session, limit: int | None
) -> tuple[list[tuple[Tensor, ...]], tuple[Tensor, ...]]:
    """The first `limit` calibration samples in batches of the model's own size, and the labels of each batch.

    Without a limit they are as many as `data.calibration` says.
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


def _calibration(spec: Spec, names: Sequence[str], dataset: Calibration) -> Samples:
    """The calibration samples: where a pass trains, all that the file has unless the spec says how many."""
    takes_all = not dataset.is_limited and any(options.trains for options in spec.passes)
    limit = None if takes_all else dataset.samples
    return _samples(spec, names, dataset, limit=limit, exclude=dataset.exclude)


def _samples(
    spec: Spec, names: Sequence[str], dataset: Dataset, *, limit: int | None, exclude: Sequence[int] = ()
) -> Samples:
    model, transforms = spec.model, spec.data.transform
    columns = [
        Column(
            dataset.array(name),
            _type(model.inputs[name]),
            transforms.get(name, Transform()),
            model.inputs[name].batch,
            model.state.get(name),
        )
        for name in names
    ]
    samples = read_samples(dataset.origin, columns, labels=dataset.labels, limit=limit)
    values = [Value(name, _type(model.inputs[name])) for name in names]
    count = len(samples) // samples.steps if samples.states else len(samples)
    beyond = [position for position in exclude if position >= count]
    if beyond:
        fact = (
            f"`exclude` names position {beyond[0]} of {count} {'sequences' if samples.states else 'samples'}"
        )
        raise UserError(Problem("D105", str(dataset.origin), fact, "positions count from 0"))
    if exclude:
        samples = samples.without(exclude)
    if not samples.calls(values):
        fact = f"{len(samples)} samples are fewer than the {own_batch(values, samples)} that the model takes at once"
        raise UserError(
            Problem("D105", str(dataset.origin), fact, "give more, or compile for a smaller batch")
        )
    return samples


def _examples(spec: Spec, names: Sequence[str], samples: Samples | None) -> tuple[Tensor, ...]:
    """Inputs to trace with: those of the data with the most different values, so that nothing is all padding.

    A state, whose start is often zeros, and a model without data get seeded numbers.
    """
    types = [_type(spec.model.inputs[name]) for name in names]
    made = [example_input(t.shape, t.dtype.torch) for t in types]
    if samples is None:
        return tuple(made)
    values = [Value(name, type) for name, type in zip(names, types, strict=True)]
    calls = [samples.call(values, i) for i in range(min(samples.calls(values), _EXAMPLES))]
    varied = max(calls, key=lambda call: sum(x.unique().numel() for x in call))
    return tuple(made[i] if i in samples.states else x for i, x in enumerate(varied))


def _type(described: Input) -> TensorType:
    return TensorType(described.shape, DType.of(getattr(torch, described.dtype)))


def _check_results(
    graph: Graph, data: Sequence[Samples], examples: Sequence[Tensor], place: str
) -> list[str]:
    """Notes on outputs that are NaN in part; UserError for data that the model cannot compute on, and for no result.

    The first call on each data set is looked at, or all where integers may index beyond what the model holds.
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
    advice = "check the weights, and what `data.transform` makes of the data"
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
    """The passes of the spec; UserError for those that do not exist."""
    problems, found = [], []
    for index, options in enumerate(loaded.spec.passes):
        try:
            found.append(find_pass(options.pass_name()))
        except UnknownPassError as err:
            problems.append(Problem("P600", f"passes[{index}]", str(err)))
    if problems:
        raise UserError(problems)
    return tuple(found)


def _match_selectors(loaded: Loaded, graph: Graph) -> None:
    layers = [node.source.module for node in graph.nodes if node.source.module]
    loaded.check_layers(layers)


def _lock(session: Session, files: Mapping[str, bytes]) -> Lock:
    spec = session.spec
    roles: dict[str, ArrayOrigin | None] = {
        "weights": None if session.own_model else spec.model.weights,
        "calibration": spec.data.calibration.origin if spec.data.calibration else None,
        "evaluation": spec.data.evaluation.origin if spec.data.evaluation else None,
        "model": None if session.own_model else spec.model.source,
        "metric": _own_metric(spec.data.evaluation),
    }
    named = {
        role: origin.path if isinstance(origin, FileSource) else origin for role, origin in roles.items()
    }
    paths = {role: path for role, path in named.items() if isinstance(path, Path)}
    return make_lock(session.loaded.canonical_text(), paths, files)


def _own_metric(evaluation: Evaluation | None) -> FileSource | None:
    """The file of a metric of the user's."""
    found = evaluation.metric if evaluation else None
    return found if isinstance(found, FileSource) else None
