"""The commands that need torch, each a function of its parsed arguments."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from ..backends.errors import BackendError
from ..ir import dump
from ..ir.encoding import INTEGER_BITS
from ..specs import Evaluation, load_spec
from .arrays import npz_bytes
from .compare import diff_reports, explain_layer, read_report
from .compilation import Compiled, compile_model
from .data import own_batch
from .errors import Problem, UserError, shorten
from .execution import Counts, execute, read_interface
from .init import write_spec
from .metric import COMPARING, find_metric
from .metric import measure as measure_metric
from .network import load_compiled, samples_of
from .operators import operator_table
from .output import check_arrays, check_destination, write_file
from .pareto import ram_points
from .pipeline import OnStage
from .plan import notes_text, plan_text
from .process_group import is_first, process_group
from .progress import Progress
from .report import Measurement, Report, noise_lines, ram_columns, ram_rows
from .sensitivity import measure, table_text
from .session import Stage
from .streamed import streamed_session
from .table import text_table
from .text_generation import GeneratedText, Perplexity, read_text

_TOKENS = 64  # number of generated tokens without the option


def init(options: argparse.Namespace) -> None:
    """Writes a commented spec for a model."""
    layers = write_spec(
        options.model,
        options.input,
        options.weights,
        options.target,
        options.output,
        arguments=options.arg,
        limit_seconds=options.time_limit,
    )
    print(f"wrote {options.output}: {layers} layers; edit it, then run `fxpress check {options.output}`")


def plan(options: argparse.Namespace) -> None:
    """Prints the decisions of a compilation and their predicted cost."""
    with Progress() as progress:
        compiled = compile_model(
            load_spec(options.spec, options.set, overrides_name="--set"),
            limit_seconds=options.time_limit,
            progress=progress,
            enforce_budget=False,
        )
        if options.pareto:
            points = compiled.report.pareto
            if not points:
                session = streamed_session(compiled.session, compiled.stages)
                points = ram_points(session, compiled.graph, compiled.c, "--pareto", progress)
            print(text_table(ram_columns(points), ram_rows(points)))
            return
    print(plan_text(compiled.report, why=options.why))


def compile(options: argparse.Namespace) -> None:  # named as the command
    """Compiles a spec into a directory."""
    loaded = load_spec(options.spec, options.set, overrides_name="--set")
    check_destination(options.output, inputs=loaded.read_files())
    names = [step.pass_name() for step in loaded.spec.passes]
    problems = [
        Problem(
            "R414",
            f"--dump-after {shorten(name)}",
            "is not a pass of the spec",
            f"there are {', '.join(names)}",
        )
        for name in options.dump_after
        if name not in names
    ]
    if problems:
        raise UserError(problems)
    with process_group() as workers, Progress(visible=is_first()) as progress:
        compiled = compile_model(
            loaded,
            limit_seconds=options.time_limit,
            locked=options.locked,
            progress=progress,
            on_stage=_dumper(options.dump_after) if is_first() else None,
            workers=workers,
        )
        if is_first():
            compiled.write(options.output)
    if is_first():
        print(_compiled_text(compiled, options.output))


def sensitivity(options: argparse.Namespace) -> None:
    """Measures the sensitivity of each layer, and prints the table."""
    with Progress(visible=is_first()) as progress:
        table, origin = measure(
            load_spec(options.spec, options.set, overrides_name="--set"),
            method=options.method,
            weight_bits=_widths("--bits", options.bits),
            activation_bits=_widths("--activation-bits", options.activation_bits),
            limit_seconds=options.time_limit,
            samples=options.samples,
            class_axis=options.class_axis,
            output=options.output,
            progress=progress,
        )
    if is_first():
        print(table_text(table))
        if options.output is not None:
            print(f"{'wrote' if origin == 'measured' else 'read from'} {options.output}")


def run(options: argparse.Namespace) -> None:
    """Runs a compiled network on the samples of a file, or generates text with a language model."""
    _check_run(options)
    if options.data is None:
        _run_text_model(options)
        return
    options.on = "host" if options.on is None else options.on
    interface = read_interface(options.directory)
    arrays = _arrays(options.input, [port.name for port in interface.inputs])
    evaluation = _evaluation(options)
    names = [port.name for port in interface.outputs]
    if options.save is not None:
        check_arrays(options.save, names, inputs=[options.data], directory=options.directory)
    samples = samples_of(interface, options.data, arrays=arrays, labels=options.labels, limit=options.samples)
    batch = own_batch(interface.input_values, samples)
    metric = (
        None
        if evaluation is None
        else find_metric(
            evaluation,
            {port.name: port.type for port in interface.outputs},
            samples,
            batch=batch,
            folder=Path.cwd(),
            place=f"--output {shorten(options.output or '')}",
        )
    )
    try:
        with Progress() as progress:
            result = execute(options.directory, samples, on=options.on, progress=progress)
    except BackendError as err:
        raise UserError(Problem("T501", f"--on {options.on}", err.message)) from err
    if options.save is not None:
        write_file(options.save, npz_bytes(dict(zip(names, result.outputs, strict=True))))
    measured = None
    if metric is not None:
        whole = samples.first(samples.calls(interface.input_values) * batch)
        measured = measure_metric(metric, options.on, result.outputs[metric.output], whole)
    print(_run_text(options.on, len(samples), measured, result.counts))


def _check_run(options: argparse.Namespace) -> None:
    """UserError for options of `run` that are only for text if data are given, or the reverse."""
    of_text = {name: getattr(options, name) for name in ("tokens", "temperature", "seed")}
    of_data = {
        name: getattr(options, name)
        for name in ("labels", "metric", "output", "class_axis", "samples", "save")
    }
    of_data["input"] = options.input or None
    is_text, is_sampled = options.data is None, options.data is None and options.perplexity is None
    wrong = [name for name, value in (of_data if is_text else of_text).items() if value is not None]
    wrong += [n for n in ("temperature", "seed") if is_text and not is_sampled and of_text[n] is not None]
    problems = [
        Problem("R421", f"--{name.replace('_', '-')}", f"does not apply to {_given(options)}", "leave it out")
        for name in wrong
    ]
    if is_text and options.on not in (None, "torch"):
        problems.append(
            Problem(
                "R421", f"--on {shorten(options.on)}", "text is generated by the torch module", "leave it out"
            )
        )
    if problems:
        raise UserError(problems)


def _given(options: argparse.Namespace) -> str:
    """The option that defines the input of `run`."""
    names = ("data", "prompt", "prompt_ids", "perplexity")
    return next(f"--{name.replace('_', '-')}" for name in names if getattr(options, name) is not None)


def _run_text_model(options: argparse.Namespace) -> None:
    """Prints the continuation of a prompt, or the perplexity of a text."""
    model = load_compiled(options.directory).text_model
    if options.perplexity is not None:
        ids = model.encode(read_text(options.perplexity))[: options.tokens]
        with Progress() as progress:
            measured = model.perplexity(ids, progress=progress)
        print(_perplexity_text(measured))
        return
    ids = options.prompt_ids if options.prompt is None else model.encode(options.prompt)
    with Progress() as progress:
        generated = model.generate(
            ids,
            tokens=options.tokens or _TOKENS,
            temperature=options.temperature or 0.0,
            seed=options.seed or 0,
            progress=progress,
        )
    print(_generated_text(generated, model.length))


def explain(options: argparse.Namespace) -> None:
    """Prints the meaning of an error code, the origin of a setting, or all facts about a layer."""
    if options.what.is_dir():
        print(explain_layer(read_report(options.what), options.name))
        return
    loaded = load_spec(options.what)
    origin = loaded.origin(options.name)
    settings = [
        s
        for s in loaded.settings()
        if s.path == options.name or s.path.startswith((f"{options.name}.", f"{options.name}["))
    ]
    rows = [(s.path, s.text, str(s.origin), s.description) for s in settings]
    print(text_table(("setting", "value", "from", "meaning"), rows) if rows else f"{options.name}: {origin}")


def diff(options: argparse.Namespace) -> None:
    """Prints the differences between two output directories."""
    print(diff_reports(read_report(options.a), read_report(options.b)) or "no difference")


def ops(_: argparse.Namespace) -> None:
    """Prints every operator and where it can run."""
    print(operator_table())


def _dumper(names: Sequence[str]) -> OnStage | None:
    def show(stage: Stage) -> None:
        if stage.name in names:
            print(f"# after {stage.name}\n{dump(stage.graph)}")

    return show if names else None


def _widths(option: str, text: str) -> tuple[int, ...]:
    """Storage bits, separated by commas."""
    words = [word.strip() for word in text.split(",") if word.strip()]
    if not all(word.isdecimal() and int(word) in INTEGER_BITS[:-1] for word in words):
        choices = ", ".join(map(str, INTEGER_BITS[:-1]))
        raise UserError(Problem("R409", f"{option} {text}", f"is not a list of widths out of {choices}"))
    return tuple(map(int, words))


def _arrays(options: Sequence[str], known: Sequence[str]) -> dict[str, str]:
    """The array of each model input, from options of the form `NAME=ARRAY`."""
    arrays: dict[str, str] = {}
    problems = []
    for text in options:
        name, _, array = text.partition("=")
        place, there = f"--input {shorten(text)}", f"the network takes {', '.join(known)}"
        if not array:
            problems.append(Problem("R408", place, "is not of the form NAME=ARRAY", there))
        elif name not in known:
            problems.append(Problem("R408", place, f"there is no input {shorten(name)!r}", there))
        elif name in arrays:
            problems.append(Problem("R408", place, f"the input {name!r} is given twice", "remove one"))
        arrays[name] = array
    if problems:
        raise UserError(problems)
    return arrays


def _evaluation(options: argparse.Namespace) -> Evaluation | None:
    """The metric that the options of `run` ask for, or None. UserError if they do not fit together."""
    metric = options.metric or ("top1" if options.labels else None)
    advice, problems = "give --labels, or --metric file.py:function", []
    for option, value in (("--output", options.output), ("--class-axis", options.class_axis)):
        if value is not None and metric is None:
            fact = "selects a measured output, but there is no metric"
            problems.append(Problem("R415", f"{option} {shorten(str(value))}", fact, advice))
    if metric in ("top1", "mse") and not options.labels:
        problems.append(Problem("R415", f"--metric {metric}", "needs labels", "give --labels"))
    if metric in COMPARING:
        fact = f"compares with the captured model, which {shorten(str(options.directory))} does not contain"
        problems.append(
            Problem("R415", f"--metric {metric}", fact, "put it under `data.evaluation` of the spec")
        )
    if problems:
        raise UserError(problems)
    if metric is None:
        return None
    named = {"labels": options.labels, "output": options.output, "class_axis": options.class_axis}
    try:
        return Evaluation.model_validate({"file": options.data, "metric": metric, **named})
    except ValidationError as err:
        details = err.errors()[0]
        hint = details.get("ctx", {}).get("hint", "")
        raise UserError(Problem("R415", f"--metric {shorten(metric)}", details["msg"], hint)) from err


def _answers(measured: Measurement) -> str:
    """Number of correct answers, with the total if it is not the number of samples."""
    if measured.correct is None or measured.compared is None:
        return ""
    of = f" of {measured.compared:,}" if measured.compared != measured.samples else ""
    return f" ({measured.correct:{',' if of else ''}}{of})"


def _compiled_text(compiled: Compiled, directory: Path) -> str:
    parts = [
        resource_table(compiled.report),
        "\n".join(noise_lines(compiled.report)),
        notes_text(compiled.report),
        f"wrote {directory}: open {directory / 'report.html'}",
    ]
    return "\n\n".join(part for part in parts if part)


def resource_table(report: Report) -> str:
    """Resources and measurements of a report, for the terminal."""
    rows = [
        (r.name, f"{r.used:,} {r.unit}", "-" if r.available is None else f"{r.available:,} {r.unit}", r.basis)
        for r in report.resources
    ]
    rows += [
        (f"{m.metric}, {m.stage}", m.text, "-", f"{m.samples} samples, output {m.output}")
        for m in report.measurements
    ]
    return text_table(("figure", "value", "available", "basis"), rows)


def _generated_text(generated: GeneratedText, length: int) -> str:
    """Text or token ids, tokens per second of the prompt and of generation, and the reason for an early end."""
    count = len(generated.tokens) - 1
    rows = [("prompt", f"{len(generated.prompt):,} tokens", _rate(len(generated.prompt), generated.first))]
    rows += [("generated", f"{count + 1:,} tokens", _rate(count, generated.rest))]
    shown = ",".join(map(str, generated.tokens)) if generated.text is None else generated.text
    full = f"\nended early: the caches are full ({length:,} tokens)" if generated.is_full else ""
    return f"{shown}\n\n{text_table(('', 'tokens', 'speed'), rows)}{full}"


def _rate(tokens: int, seconds: float) -> str:
    return f"{tokens / seconds:,.1f} tokens/s" if tokens and seconds else "-"


def _perplexity_text(measured: Perplexity) -> str:
    rows = [("perplexity", f"{measured.value:.4g}"), ("predicted tokens", f"{measured.tokens:,}")]
    return text_table(("on torch", ""), [*rows, ("window", f"{measured.window:,} tokens")])


def _run_text(place: str, samples: int, measured: Measurement | None, counts: Counts | None) -> str:
    rows = [("samples", f"{samples:,}")]
    if measured is not None:
        rows.append((f"{measured.metric} of {measured.output}", f"{measured.text}{_answers(measured)}"))
    if counts is not None:
        rows += [
            ("instructions", f"{counts.instructions:,}"),
            ("cycles, estimated", "-" if counts.cycles is None else f"{counts.cycles:,}"),
            ("stack", f"{counts.stack_bytes:,} B"),
            ("flash", f"{counts.footprint.flash:,} B"),
            ("simulator", counts.simulator),
        ]
    return text_table((f"on {place}", ""), rows)
