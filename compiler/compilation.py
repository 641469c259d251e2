"""Compilation of a spec, a module or a graph: runs the passes and backends, measures, and makes the report and the
lock.

Every stage refuses invalid input before the next one starts; files are written only after the last stage.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from inspect import signature
from pathlib import Path
from types import NoneType
from typing import Any, overload

import torch
from torch import nn

from ..backends.c import CArtifact
from ..backends.torch_module import TorchArtifact
from ..ir import Graph
from ..passes import Context, Cost
from ..passes.progress_callback import Progress, silent
from ..passes.quantize.quantization import OUTLIERS
from ..passes.workers import ALONE, Workers
from ..specs import ArrayOrigin, Evaluation, FileSource, FolderSource, Loaded, Spec, SpecError
from ..specs.errors import near_miss
from ..specs.options import FinetuneOptions, QuantizeOptions, WeightOnlyOptions
from ..specs.root_error import ArgumentError, expect, shown
from .arrays import Arrays
from .data import run_samples
from .described import DataOf, Described, Inputs, Machine, Step, Written, describe
from .emission import check_backends, emit_backends, first_calls
from .errors import Problem, UserError
from .execution import Execution
from .file_contents import Files
from .interface import INTERFACE_FILE, Interface
from .lock import LOCK_FILE, Lock, check_lock, make_lock, read_lock
from .network import Data, load_compiled, samples_of
from .noise import Advised, Findings, along_sequences, examine, examine_stored
from .output import publish
from .pareto import ram_points
from .pipeline import HOST, OnStage, match_selectors, open_session, pass_context, run_passes
from .report import Noise, RamPoint, Report, noise_problems, render_html
from .session import Session, Stage, final_graph, window_graph
from .streamed import streamed_session
from .summary import make_report
from .target_cost import TargetCost

REPORT_JSON, REPORT_HTML = "report.json", "report.html"
QUANTIZE, FINETUNE = QuantizeOptions.pass_name(), FinetuneOptions.pass_name()
WEIGHT_ONLY = WeightOnlyOptions.pass_name()
_NOISE_CALLS = 16
REFERENCE = "reference"


@dataclass(frozen=True)
class Compiled:
    """A finished compilation."""

    session: Session
    stages: tuple[Stage, ...]
    c: CArtifact | None
    torch: TorchArtifact | None
    report: Report
    files: Files
    described: Described | None = None

    @property
    def spec(self) -> Spec:
        """The spec; `compiled.spec.to_yaml()` is its text."""
        return self.session.spec

    @property
    def graph(self) -> Graph:
        """The graph after the last pass."""
        return final_graph(self.session, self.stages)

    def write(self, directory: str | Path) -> None:
        """Writes all files; the directory appears complete or not at all. UserError if it cannot be written."""
        expect(directory, (str, Path), "write(directory)", "the path of a directory")
        publish(Path(directory), self.files, inputs=self.session.loaded.read_files())

    def write_spec(self, folder: str | Path) -> Path:
        """Writes a model that was given in Python as a spec with weights and data, and returns the path of the spec.

        Compiling it gives the same code if the class of the model can be imported and needs no arguments. Otherwise,
        and for a compilation that began with a spec file, UserError.
        """
        expect(folder, (str, Path), "write_spec(folder)", "the path of a directory")
        if self.described is None:
            fact = "the compilation began with a spec file"
            raise UserError(Problem("O313", str(folder), fact, f"use {self.session.loaded.path}"))
        return self.described.write(Path(folder))

    def run(self, data: Data, *, on: str | Path = "host", progress: Progress = silent) -> Execution:
        """Runs arrays [n, ...] or the samples of an npz file, with the spec's `data.transform`.

        `on` is `host` (the C on this machine), a target or a target file (the C on its simulated core), `torch` (the
        emitted module), `integer` (the integer interpreter) or `reference` (the captured float graph).
        """
        if str(on) == REFERENCE:
            if any(stage.frames for stage in self.stages):
                fact = "is the float network, which takes windows, but the compiled network takes new frames"
                raise UserError(Problem("R405", "on reference", fact, "compile without `stream`"))
            interface = Interface.model_validate_json(self.files[INTERFACE_FILE])
            outputs = tuple(run_samples(self.session.captured, samples_of(interface, data)))
            return Execution(outputs, outputs)
        with tempfile.TemporaryDirectory(prefix="fxpress-compiled-") as folder:
            publish(Path(folder) / "out", self.files)
            network = replace(load_compiled(Path(folder) / "out"), name="the compiled network")
            return network.run(data, on=on, progress=progress)


@overload
def compile_model(
    source: str | Path | Loaded,
    /,
    *,
    overrides: Sequence[str] = (),
    model: nn.Module | None = None,
    locked: str | Path | None = None,
    progress: Progress = silent,
    on_stage: OnStage | None = None,
    enforce_budget: bool = True,
    limit_seconds: float | None = None,
    workers: Workers = ALONE,
) -> Compiled: ...
@overload
def compile_model(
    source: nn.Module | Graph,
    /,
    *,
    inputs: Inputs | None = None,
    calibration: DataOf | None = None,
    evaluation: DataOf | None = None,
    passes: Sequence[Step] = (),
    target: Machine = "host",
    outputs: Written = "torch",
    origin: str | None = None,
    dynamic: Mapping[str, Mapping[int, str]] | None = None,
    dimensions: Mapping[str, Mapping[str, int]] | None = None,
    overrides: Sequence[str] = (),
    locked: str | Path | None = None,
    progress: Progress = silent,
    on_stage: OnStage | None = None,
    enforce_budget: bool = True,
    limit_seconds: float | None = None,
    workers: Workers = ALONE,
) -> Compiled: ...
def compile_model(
    source: str | Path | Loaded | nn.Module | Graph,
    /,
    *,
    overrides: Sequence[str] = (),
    model: nn.Module | None = None,
    locked: str | Path | None = None,
    progress: Progress = silent,
    on_stage: OnStage | None = None,
    enforce_budget: bool = True,
    limit_seconds: float | None = None,
    workers: Workers = ALONE,
    **description: Any,  # Any: see the second overload
) -> Compiled:
    """Compiles a spec file, a module or a graph; nothing is written until `Compiled.write`.

            compile_model("net.yaml", overrides=["passes[1].samples=64"])
    compile_model(net, inputs=x, calibration=images, passes=["fuse", "quantize"], target="cortex-m4f", outputs="c")

    For a module, `inputs` are example inputs with the shapes that `forward` takes; `calibration` and `evaluation` are
    arrays [n, ...] by input, with labels under `labels`, or an npz file. Passes, target and outputs are names, or
    their sections of a spec. `origin` is the name of the model in a spec, `file.py:name`, if it is not the module's
    class.

    `model` replaces the module that `model.source` of a spec file names. `locked` is the lock of an earlier
    compilation: any difference from it is refused. A network that is too large for the target is refused unless
    `enforce_budget` is off. `workers` is the number of processes that share the work on samples. Raises
    ArgumentError, SpecError, CaptureError or UserError, with all problems found.
    """
    _check_arguments(source, description, model, locked, progress, on_stage, limit_seconds)
    if isinstance(source, str | Path | Loaded):
        described = None
        session = open_session(source, overrides=overrides, model=model, limit_seconds=limit_seconds)
    else:
        described = describe(source, overrides=overrides, **description)
        session = open_session(
            described.loaded, model=source, arrays=described.arrays, limit_seconds=limit_seconds
        )
    stages = run_passes(session, progress=progress, on_stage=on_stage, workers=workers)
    graph = final_graph(session, stages)
    streamed = streamed_session(session, stages)
    check_backends(streamed, graph, enforce_budget=enforce_budget)
    findings = _examine(session, stages, progress)
    if findings is not None and enforce_budget:
        _refuse_noise(session, findings.noise)
    artifacts = emit_backends(streamed, graph)
    c, points = session.spec.outputs.c, tuple[RamPoint, ...]()
    if c is not None and c.pareto is not None:
        points = ram_points(streamed, graph, artifacts.c, "outputs.c.pareto", progress)
    report = make_report(session, stages, artifacts, findings, points)
    files = artifacts.files | {
        **{
            f"passes/{index}.{name}": content
            for index, stage in enumerate(stages)
            for name, content in stage.report.files.items()
        },
        REPORT_JSON: (report.model_dump_json(indent=2) + "\n").encode(),
        REPORT_HTML: render_html(report, pictures=_pictures(stages)).encode(),
    }
    lock = _lock(session, described.arrays if described else {}, files)
    if locked is not None:
        check_lock(read_lock(Path(locked)), lock, Path(locked))
    files |= {LOCK_FILE: lock.to_bytes()}
    return Compiled(session, stages, artifacts.c, artifacts.torch, report, files, described)


def _check_arguments(
    source: object,
    description: Mapping[str, object],
    model: object,
    locked: object,
    progress: object,
    on_stage: object,
    limit_seconds: object,
) -> None:
    """ArgumentError for a source of the wrong class, for unknown arguments, and for arguments that exclude each
    other.
    """
    what, hint = "a module, a graph or the path of a spec", ""
    if isinstance(source, type):
        hint = f"pass an instance, as in {source.__name__}()"
    expect(source, (str, Path, Loaded, nn.Module, Graph), "compile_model(source)", what, hint)
    known = [p.name for p in signature(describe).parameters.values() if p.kind is p.KEYWORD_ONLY]
    own = [p.name for p in signature(compile_model).parameters.values() if p.kind is p.KEYWORD_ONLY]
    unknown = next((name for name in description if name not in known), None)
    if unknown:
        hint = near_miss(unknown, dict.fromkeys((*known, *own)))
        raise ArgumentError(f"compile_model({unknown}=...)", "no such argument", hint)
    is_spec = isinstance(source, str | Path | Loaded)
    if is_spec and description:
        call = f"compile_model({', '.join(f'{name}=...' for name in description)})"
        raise ArgumentError(call, "a spec file says this", "use `overrides`")
    if model is not None:
        call = "compile_model(model=...)"
        if not is_spec:
            raise ArgumentError(
                call, "replaces the model of a spec file, but no spec file is given", "remove it"
            )
        expect(model, nn.Module, call, "a torch.nn.Module")
    if not callable(progress):
        what = f"expects a function of label, done and total, got {shown(progress)}"
        raise ArgumentError("compile_model(progress=...)", what)
    if on_stage is not None and not callable(on_stage):
        what = f"expects a function of a `Stage`, got {shown(on_stage)}"
        raise ArgumentError("compile_model(on_stage=...)", what)
    expect(locked, (str, Path, NoneType), "compile_model(locked=...)", "the path of a lock file")
    expect(limit_seconds, (int, float, NoneType), "compile_model(limit_seconds=...)", "a number of seconds")


def _pictures(stages: Sequence[Stage]) -> dict[int, list[str]]:
    """The charts that each pass made, by its index."""
    return {
        index: [content.decode() for name, content in stage.report.files.items() if name.endswith(".svg")]
        for index, stage in enumerate(stages)
    }


@torch.inference_mode(False)  # trial changes may include training
def _examine(session: Session, stages: Sequence[Stage], progress: Progress) -> Findings | None:
    """Noise of the integer graph against the float graph; None without integers, or if training follows
    quantization.
    """
    names = [stage.name for stage in stages]
    if WEIGHT_ONLY in names:
        return _examine_stored(session, stages, names.index(WEIGHT_ONLY), progress)
    if QUANTIZE not in names or session.calibration is None:
        return None
    index = names.index(QUANTIZE)
    if FINETUNE in names[index:]:
        return None
    options = session.spec.passes[index]
    assert isinstance(options, QuantizeOptions)
    before = stages[index - 1] if index else None
    reference = session.captured if before is None else before.graph
    context = pass_context(session, index, progress)
    rest = session.spec.passes[index + 1 :]

    def price(graph: Graph, changed: QuantizeOptions, around: Context) -> Cost | None:
        if session.target.isa == HOST or session.spec.outputs.c is None:
            return None
        return TargetCost(session.target, session.spec.outputs.c, [changed, *rest], around).predict(graph)

    def accepts(settings: Mapping[str, str]) -> bool:
        paths = [name if "." in name else f"passes[{index}].{name}" for name in settings]
        try:
            loaded = session.loaded.with_overrides(map("=".join, zip(paths, settings.values(), strict=True)))
            match_selectors(loaded, session.captured)
        except SpecError:
            return False
        return True

    calibration = session.spec.data.calibration
    integer = stages[index].graph
    found = examine(
        reference,
        integer,
        options,
        context,
        session.calibration,
        spec=Advised(price, accepts, () if calibration is None else calibration.exclude),
        has_outliers=any(table.name == OUTLIERS for table in stages[index].report.tables),
    )
    if session.sequences is None:
        return found
    noise = along_sequences(found.noise, reference, integer, options, context, session.sequences)
    return replace(found, noise=noise)


def _examine_stored(session: Session, stages: Sequence[Stage], index: int, progress: Progress) -> Findings:
    """Noise of stored weights, on samples, or without samples on the inputs for tracing."""
    options = session.spec.passes[index]
    assert isinstance(options, WeightOnlyOptions)
    reference = stages[index - 1].graph if index else session.captured
    count = 1 if session.is_folder else _NOISE_CALLS
    calls = first_calls(reference, session.calibration or session.evaluation, count)
    is_final = session.is_folder or any(stage.name == FINETUNE for stage in stages[index:])
    context = pass_context(session, index, progress)
    return examine_stored(
        reference, window_graph(session, stages), calls, None if is_final else options, context
    )


def _refuse_noise(session: Session, noise: Noise) -> None:
    """UserError if an output or a layer is below the limit `min_snr` and the spec makes that an error."""
    for index, options in enumerate(session.spec.passes):
        if isinstance(options, QuantizeOptions) and options.on_low_snr == "error" and noise.is_low:
            raise UserError(
                Problem("P604", f"passes[{index}] ({QUANTIZE})", fact, hint)
                for fact, hint in noise_problems(noise)
            )


def _lock(session: Session, arrays: Mapping[str, Arrays], files: Files) -> Lock:
    spec = session.spec
    roles: dict[str, ArrayOrigin | FolderSource | None] = {
        "weights": None if session.own_model else spec.model.weights,
        "calibration": spec.data.calibration.origin if spec.data.calibration else None,
        "evaluation": spec.data.evaluation.origin if spec.data.evaluation else None,
        "model": None if session.own_model else spec.model.source,
        "metric": _own_metric(spec.data.evaluation),
    }
    named = {
        role: origin.path if isinstance(origin, FileSource) else origin for role, origin in roles.items()
    }
    if isinstance(model := named.pop("model"), FolderSource):
        named |= {f"model/{path.name}": path for path in model.files}
    else:
        named["model"] = model
    read: dict[str, Path | bytes] = {role: path for role, path in named.items() if isinstance(path, Path)}
    read |= dict(session.loaded.pass_files())
    read |= {role: found.to_npz() for role, found in arrays.items()}
    return make_lock(session.loaded.canonical_text(), read, files)


def _own_metric(evaluation: Evaluation | None) -> FileSource | None:
    """The file of a user's metric."""
    found = evaluation.metric if evaluation else None
    return found if isinstance(found, FileSource) else None
