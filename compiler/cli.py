"""The command line. Commands that need no torch start without it: importing torch takes seconds, `check` half a
second.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from io import TextIOWrapper
from pathlib import Path

from ..specs import PASSES, SpecError, check_spec, json_schema, list_targets, load_target
from ..specs import Problem as SpecProblem
from ..specs.options.assign_bits import SENSITIVITY_OWN
from ..specs.plugins import SENSITIVITY_METHODS
from .codes import explain_code
from .crash import write_reproducer
from .errors import Problem, UserError, first_line, is_out_of_memory, shorten
from .methods import explain_method
from .table import text_table

_DIGITS = 18  # of numbers in arguments, so that they fit torch's integers
OK, INTERNAL_ERROR, USER_ERROR, INTERRUPTED = 0, 1, 2, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command. Exit status: 0 success, 1 internal error, 2 errors that the user can correct, 130 interrupted."""
    if isinstance(
        sys.stdout, TextIOWrapper
    ):  # a name in a graph or a path may have characters that the terminal cannot show
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        status = _run(_parser().parse_args(arguments))
        _flush_output()
    except KeyboardInterrupt:
        _say("stopped; nothing was written")
        return INTERRUPTED
    except BrokenPipeError:
        _discard_output()
        return OK
    except Exception as err:
        _discard_output()
        problems = _users_problems(err)
        if problems:
            count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
            _say(f"{err if isinstance(err, SpecError) else _lines(problems)}\n{count}; nothing was written")
            return USER_ERROR
        # an internal error: the user gets a file to report, not a traceback
        command = sys.argv if arguments is None else ["fxpress", *arguments]
        _say(f"internal error: {first_line(err)}\n{write_reproducer(err, command)}")
        return INTERNAL_ERROR
    return status


def _run(options: argparse.Namespace) -> int:
    try:
        status: int = options.command(options) or OK
    except SystemExit as err:
        fact = f"the user's code ended the program: sys.exit({err.code})"
        raise UserError(
            Problem("M107", "", fact, "remove the call, or put it below `if __name__ == '__main__':`")
        ) from err
    return status


def _users_problems(err: Exception) -> Sequence[SpecProblem | Problem]:
    """Problems that the user can fix; empty for an internal error."""
    if isinstance(err, SpecError | UserError):
        return err.problems
    if is_out_of_memory(err):
        advice = "use fewer calibration samples or a larger machine"
        return [Problem("O310", "memory", f"out of memory: {first_line(err)}", advice)]
    if isinstance(err, UnicodeEncodeError):
        shown = ascii(err.object[max(0, err.start - 40) : err.end + 20])
        return [
            Problem("O311", shown, "contains a character that UTF-8 cannot encode", "choose another name")
        ]
    if isinstance(err, OSError):
        place = "output" if err.filename is None else shorten(str(err.filename))
        return [
            Problem("O309", place, f"cannot be used: {err.strerror or err}", "check the path, and the disk")
        ]
    return ()


def _lines(problems: Sequence[SpecProblem | Problem]) -> str:
    return "\n".join(map(str, problems))


def _say(text: str) -> None:
    """Prints to standard error; if it is closed or full, only the exit status reports the error."""
    with contextlib.suppress(OSError, ValueError):
        print(text, file=sys.stderr)


def _discard_output() -> None:
    """Redirects a closed standard output to the null device; Python flushes it again at exit."""
    try:
        _flush_output()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _flush_output() -> None:
    if sys.stdout is not None:  # Python's own name for a closed one
        sys.stdout.flush()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fxpress", description="Compile PyTorch models to smaller ones, and to C."
    )
    parser.add_argument("--version", action="version", version=f"fxpress {version('fxpress')}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    init = _command(commands, "init", "write a commented spec for a model", _with_torch("init"))
    init.add_argument("model", metavar="MODEL", help="model.py:Net or package.module:Net")
    init.add_argument(
        "--input",
        action="append",
        default=[],
        metavar="NAME=1x3x32x32",
        help="a model input and its shape, with :int64 after it for a type other than float32, or NAME=scalar",
    )
    init.add_argument(
        "--arg",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an argument of the class or function",
    )
    _time_limit_argument(init)
    init.add_argument("--weights", type=Path, help="safetensors or weights-only .pt file")
    init.add_argument("--target", default="cortex-m4f", help="see `fxpress targets` (default: %(default)s)")
    init.add_argument("-o", "--output", type=Path, default=Path("spec.yaml"), help="default: %(default)s")

    check = _command(commands, "check", "check a spec for errors; needs no model and no data", _check)
    _spec_arguments(check)

    plan = _command(
        commands,
        "plan",
        "print the decisions for each layer, with reasons and predicted cost",
        _with_torch("plan"),
    )
    _spec_arguments(plan)
    plan.add_argument("--why", action="store_true", help="also every decision of every pass")
    plan.add_argument(
        "--pareto",
        choices=("ram,cycles",),
        help="instead, print the cost of the C for decreasing RAM limits, as a table",
    )

    build = _command(commands, "compile", "write C, torch module, report and lock", _with_torch("compile"))
    _spec_arguments(build)
    build.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="directory to write")
    build.add_argument(
        "--locked", type=Path, metavar="LOCK", help="refuse inputs and outputs that differ from this lock"
    )
    build.add_argument(
        "--dump-after", action="append", default=[], metavar="PASS", help="print the graph after a pass"
    )

    sensitivity = _command(
        commands,
        "sensitivity",
        "measure the sensitivity of each layer at each bit width",
        _with_torch("sensitivity"),
    )
    _spec_arguments(sensitivity)
    sensitivity.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help="write the table as JSON; read if up to date"
    )
    sensitivity.add_argument(
        "--method",
        choices=(*SENSITIVITY_OWN, *SENSITIVITY_METHODS.names()),
        default="gauss_newton",
        help="default: %(default)s",
    )
    sensitivity.add_argument(
        "--bits", default="2,4,8", metavar="B,B", help="widths of weights (default: %(default)s)"
    )
    sensitivity.add_argument(
        "--activation-bits", default="", metavar="B,B", help="widths of layers' inputs (default: none)"
    )
    sensitivity.add_argument(
        "--samples", type=_count, metavar="N", help="use only the first N calibration samples"
    )
    sensitivity.add_argument(
        "--class-axis", type=_axis, metavar="N", help="class dimension of the first output"
    )

    _run_arguments(commands)

    explain = _command(
        commands,
        "explain",
        "explain an error code, a method of the literature, a setting of a spec, or a layer of an output",
        _explain,
    )
    explain.add_argument(
        "what",
        type=Path,
        metavar="CODE|method|SPEC|DIR",
        help="an error code, the word `method`, a spec, or an output directory",
    )
    explain.add_argument(
        "name",
        nargs="?",
        help="a method (default: list them), a path in the spec such as passes[1].samples, or a layer of the directory",
    )

    diff = _command(
        commands, "diff", "print the differences between two output directories", _with_torch("diff")
    )
    diff.add_argument("a", type=Path, metavar="A")
    diff.add_argument("b", type=Path, metavar="B")

    _command(commands, "schema", "print the JSON schema of specs, for editors", _schema)
    _command(commands, "targets", "list the targets", _targets)
    _command(commands, "passes", "list the passes and their options", _passes)
    _command(commands, "ops", "list the operators and where each can run", _with_torch("ops"))
    return parser


def _run_arguments(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    run = _command(
        commands, "run", "run a compiled network on data, or generate text with it", _with_torch("run")
    )
    run.add_argument("directory", type=Path, metavar="DIR", help="an output directory of `fxpress compile`")
    run.add_argument(
        "--on",
        metavar="WHERE",
        help="host, torch, integer, or a target whose core can be simulated: a name, or a file (default: host; torch "
        "for text)",
    )
    given = run.add_mutually_exclusive_group(required=True)
    given.add_argument("--data", type=Path, metavar="X.npz", help="samples")
    given.add_argument("--prompt", metavar="TEXT", help="prompt for a language model with caches")
    given.add_argument(
        "--prompt-ids", type=_ids, metavar="N,N", help="prompt as token ids, without a tokenizer"
    )
    given.add_argument(
        "--perplexity", type=Path, metavar="X.txt", help="text file for the perplexity of a language model"
    )
    run.add_argument(
        "--tokens",
        type=_count,
        metavar="N",
        help="generate at most N tokens (default: 64), or measure on the first N",
    )
    run.add_argument(
        "--temperature",
        type=_temperature,
        metavar="T",
        help="sampling temperature (default: 0, the best token)",
    )
    run.add_argument("--seed", type=_seed, metavar="N", help="random seed of sampling (default: 0)")
    run.add_argument(
        "--input", action="append", default=[], metavar="NAME=ARRAY", help="array of a model input"
    )
    run.add_argument("--labels", type=_name, metavar="ARRAY", help="array of labels")
    run.add_argument(
        "--metric",
        type=_name,
        metavar="METRIC",
        help="top1, mse or file.py:function of the output and the labels (default with labels: top1)",
    )
    run.add_argument("--output", type=_name, metavar="NAME", help="output to measure (default: the first)")
    run.add_argument("--class-axis", type=_axis, metavar="N", help="class dimension of the output")
    run.add_argument("--samples", type=_count, metavar="N", help="use only the first N samples")
    run.add_argument("--save", type=Path, metavar="Y.npz", help="write the outputs")


def _count(text: str) -> int:
    """A count of at least one, as an argument."""
    if not text.isdecimal() or not int(text[:18]):
        raise argparse.ArgumentTypeError(f"{shorten(text)!r} is not a whole number of at least 1")
    return int(text[:18])


def _ids(text: str) -> list[int]:
    """Token ids, as an argument."""
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() and len(word) < _DIGITS for word in words):
        raise argparse.ArgumentTypeError(f"{shorten(text)!r} is not a list of token ids such as 1,15,27")
    return list(map(int, words))


def _seed(text: str) -> int:
    """A random seed, as an argument."""
    if not text.isdecimal() or len(text) >= _DIGITS:
        raise argparse.ArgumentTypeError(f"{shorten(text)!r} is not a whole number from 0")
    return int(text)


def _temperature(text: str) -> float:
    """A temperature of sampling, as an argument."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{shorten(text)!r} is not a number from 0")
    return value


def _axis(text: str) -> int:
    """A dimension, as an argument; negative ones count from the last."""
    if not re.fullmatch("-?[0-8]", text):
        raise argparse.ArgumentTypeError(f"{shorten(text)!r} is not a dimension from -8 to 8")
    return int(text)


def _name(text: str) -> str:
    """The name of an array or an output, as an argument."""
    if not text:
        raise argparse.ArgumentTypeError("must not be empty")
    return text


_Command = Callable[[argparse.Namespace], "int | None"]


def _command(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], name: str, summary: str, run: _Command
) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.")
    parser.set_defaults(command=run)
    return parser


def _spec_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("spec", type=Path, metavar="SPEC", help="a spec file")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override, such as passes[1].samples=64",
    )
    _time_limit_argument(parser)


def _time_limit_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--time-limit",
        type=_count,
        default=120,
        metavar="SECONDS",
        help="for construction of the model, its samples, and tracing, each (default: %(default)s)",
    )


def _with_torch(name: str) -> _Command:
    """A command of `commands`, imported when it runs: the only import inside a function, so that other commands start
    fast.
    """

    def run(options: argparse.Namespace) -> int | None:
        from . import commands  # noqa: PLC0415

        result: int | None = getattr(commands, name)(options)
        return result

    return run


def _check(options: argparse.Namespace) -> None:
    loaded = check_spec(options.spec, options.set, overrides_name="--set")
    names = [step.pass_name() for step in loaded.spec.passes]
    count = f"{len(names)} pass" if len(names) == 1 else f"{len(names)} passes"
    print(f"{options.spec}: OK ({count}: {', '.join(names)}; target {loaded.target.name})")


def _explain(options: argparse.Namespace) -> int | None:
    if str(options.what) == "method":
        print(explain_method(options.name))
        return None
    if options.name is None:
        print(explain_code(str(options.what)))
        return None
    return _with_torch("explain")(options)


def _schema(_: argparse.Namespace) -> None:
    print(json.dumps(json_schema(), indent=2))


def _targets(_: argparse.Namespace) -> None:
    rows = []
    for name in list_targets():
        try:
            target = load_target(name)
        except SpecError as err:  # a package adds this part
            rows.append((name, "-", "-", "-", f"cannot be used: {err.problems[0].message}"))
            continue
        simulated = "yes" if target.simulator else "-"
        rows.append((name, _bytes(target.ram), _bytes(target.flash), simulated, target.description))
    print(text_table(("target", "RAM", "flash", "simulated", "description"), rows))


def _bytes(count: int | None) -> str:
    return "-" if count is None else f"{count // 1024:,} KiB"


def _passes(_: argparse.Namespace) -> None:
    for options in PASSES.values():
        schema = options.model_json_schema()
        print(f"{schema['properties']['pass']['const']}: {schema.get('description', '')}")
        rows = [
            (f"  {name}", json.dumps(field.get("default")), field.get("description", ""))
            for name, field in schema["properties"].items()
            if name != "pass"
        ]
        print(text_table(("  option", "default", "meaning"), rows) if rows else "  no options")
        print()


if __name__ == "__main__":
    sys.exit(main())
