"""Compiles the digits network for a Cortex-M4, runs every form of it on the test images, and prints the results.

python examples/digits/train.py && python examples/digits/demo.py        # or: make demo
"""

import sys
from pathlib import Path

from fxpress.backends import ToolMissingError
from fxpress.compiler import (
    Compiled,
    Execution,
    Progress,
    Samples,
    compile_model,
    correct_answers,
    load_compiled,
    text_table,
)

SPEC = Path(__file__).with_name("digits.yaml")
OUTPUT = Path(__file__).resolve().parents[2] / "build" / "digits" / "out"
FORMS = (
    ("integer", "integer graph"),
    ("host", "C on this machine"),
    ("cortex-m4f", "C on a simulated Cortex-M4"),
)


def main() -> None:
    """Compiles, runs, prints."""
    with Progress() as progress:
        compiled = compile_model(SPEC, progress=progress)
        compiled.write(OUTPUT)
        samples = compiled.session.evaluation
        assert samples is not None and samples.labels is not None
        floats = compiled.run(samples, on="reference").outputs[0]
        runs = {place: _run(compiled, place, samples, progress) for place, _ in FORMS}
    rows = [("float torch", _accuracy(correct_answers(floats, samples.labels), len(samples)))]
    for place, name in FORMS:
        run = runs[place]
        if run is not None:
            rows.append((name, _accuracy(correct_answers(run.outputs[0], samples.labels), len(samples))))
    print(text_table(("accuracy on the test digits", ""), rows), end="\n\n")
    _print_costs(runs["cortex-m4f"])
    print(f"\nC99, golden self-test and CMake file: {OUTPUT}/c\nreport: {OUTPUT}/report.html")


def _run(compiled: Compiled, place: str, samples: Samples, progress: Progress) -> Execution | None:
    try:
        return compiled.run(samples, on=place, progress=progress)
    except ToolMissingError as err:
        print(f"{place} is skipped: {err}", file=sys.stderr)
        return None


def _print_costs(simulated: Execution | None) -> None:
    costs = [("arena", f"{load_compiled(OUTPUT).interface.arena_bytes:,} B")]
    if simulated is not None and simulated.counts is not None:
        counts = simulated.counts
        costs += [
            ("stack", f"{counts.stack_bytes:,} B"),
            ("flash", f"{counts.footprint.flash:,} B"),
            ("instructions", f"{counts.instructions:,}"),
            ("cycles, estimated", f"{counts.cycles:,}"),
        ]
    print(text_table(("on a Cortex-M4", ""), costs))


def _accuracy(correct: int, samples: int) -> str:
    return f"{100 * correct / samples:.2f} % ({correct} of {samples})"


if __name__ == "__main__":
    main()
