"""Methods of compression, each beside the baseline that its paper compares with, on small real networks.

    python benchmarks/methods.py [NAME ...] [--on validation]        # all by default

A row of the catalogue (compiler/methods/entries) compiles examples/methods/NAME.yaml and its baseline, the same spec
with the overrides of the entry, with three seeds; methods of several compilations are files NAME.py with a function
`measure(variant, seed, on)`. `reproduced` says whether the difference has the direction of the paper and is outside
the spread of the seeds, the sum of both standard deviations; an entry can name the least difference that counts, or,
if it is negative, the largest loss. Recipes were chosen with `--on validation`. Table on standard output; rows of the
evaluation set replace theirs in benchmarks/results/methods.json.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from fxpress.compiler import compile_model, text_table
from fxpress.compiler.methods import Method, load_methods, seeded
from fxpress.specs import load_spec

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples" / "methods"
RESULTS = ROOT / "benchmarks" / "results" / "methods.json"
SEEDS = (0, 1, 2)
COLUMNS = ("method", "network", "metric", "baseline", "result", "spread", "reproduced", "lines", "seconds")


_MEASURED: dict[str, float] = {}
"""Results by spec: several methods have the same baseline."""


@dataclass(frozen=True)
class Row:
    """Values of the metric, means over the seeds; `spread` is the sum of both standard deviations.

    `lines` are those of the row's own spec or script that are neither empty nor comments.
    """

    method: str
    network: str
    data: str
    metric: str
    baseline_is: str
    baseline: float
    result: float
    spread: float
    reproduced: bool
    lines: int
    seconds: float
    source: str


def main() -> int:
    """Run the rows; 1 if one of them cannot."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="rows to run")
    parser.add_argument("--on", choices=("validation", "evaluation"), default="evaluation")
    options = parser.parse_args()
    known = load_methods()
    if unknown := [name for name in options.names if name not in known]:
        print(f"no method {unknown[0]}; there are {', '.join(known)}")
        return 2
    torch.set_num_threads(1)
    chosen = {name: known[name] for name in options.names or known}
    trained = sorted({network for method in chosen.values() for network in method.trained})
    if trained:
        subprocess.run([sys.executable, str(EXAMPLES / "train.py"), *trained], check=True)
    rows = []
    for name, method in chosen.items():
        rows.append(row_of(name, method, options.on))
        print(text_table(COLUMNS, [_cells(rows[-1])]), flush=True)
        if options.on == "evaluation":
            record(rows[-1])
    print(text_table(COLUMNS, [_cells(row) for row in rows]))
    reproduced, lines = sum(row.reproduced for row in rows), statistics.median(row.lines for row in rows)
    print(f"{reproduced} of {len(rows)} effects reproduced; median of {lines:g} lines a row")
    return 0


def row_of(name: str, method: Method, on: str) -> Row:
    """The row of a method, over all seeds."""
    started = time.process_time()
    measure = _own_measure(name) or _spec_measure(name, method)
    result = [measure("method", seed, on) for seed in SEEDS]
    baseline = [measure("baseline", seed, on) for seed in SEEDS]
    spread = statistics.stdev(result) + statistics.stdev(baseline)
    means = statistics.mean(baseline), statistics.mean(result)
    return Row(
        name,
        method.network,
        method.data,
        method.metric,
        method.baseline_is,
        round(means[0], 3),
        round(means[1], 3),
        round(spread, 3),
        is_reproduced(method, *means, spread),
        own_lines(name),
        round(time.process_time() - started, 1),
        method.source,
    )


def own_lines(name: str) -> int:
    """Lines of a row beside passes and networks that several rows share."""
    files = [EXAMPLES / f"{name}{ending}" for ending in (".yaml", ".py")]
    lines = [line.strip() for file in files if file.is_file() for line in file.read_text().splitlines()]
    return sum(bool(line) and not line.startswith("#") for line in lines)


def is_reproduced(method: Method, baseline: float, result: float, spread: float) -> bool:
    """True if the difference counts as the effect of the paper."""
    gain = result - baseline if method.better == "higher" else baseline - result
    if method.margin is not None and method.margin < 0:
        return gain >= method.margin
    return gain > spread and gain >= (method.margin or 0)


def _own_measure(name: str) -> Callable[[str, int, str], float] | None:
    """The function `measure` of a method that has a file of its own."""
    file = EXAMPLES / f"{name}.py"
    found = importlib.util.spec_from_file_location(f"method_{name}", file) if file.is_file() else None
    if found is None or found.loader is None:
        return None
    module = importlib.util.module_from_spec(found)
    sys.path.insert(0, str(EXAMPLES))
    try:
        found.loader.exec_module(module)
    finally:
        sys.path.remove(str(EXAMPLES))
    measure: Callable[[str, int, str], float] = module.measure
    return measure


def _spec_measure(name: str, method: Method) -> Callable[[str, int, str], float]:
    """Compiles the spec of a method, or its baseline."""

    spec = EXAMPLES / f"{name}.yaml"
    data = load_spec(spec).spec.data
    assert data is not None and data.evaluation is not None, f"{spec} has no evaluation data"
    source = str(data.evaluation.source).removesuffix(":evaluation")

    def measure(variant: str, seed: int, on: str) -> float:
        changes: Sequence[str] = method.baseline if variant == "baseline" else ()
        samples = f"data.evaluation.source={source}:{on}"
        overrides = [*changes, samples, *(seeded(setting, seed, EXAMPLES) for setting in method.seeds)]
        key = load_spec(spec, overrides).spec.model_dump_json()
        if key not in _MEASURED:
            _MEASURED[key] = compile_model(spec, overrides=overrides).report.measurements[-1].value
        return _MEASURED[key]

    return measure


def record(row: Row) -> None:
    """Put the row in place of the one of the same method in the results, in the order of names."""
    rows = {found["method"]: found for found in json.loads(RESULTS.read_text())["methods"]}
    rows[row.method] = asdict(row)
    kept = [rows[name] for name in sorted(rows) if name in load_methods()]
    RESULTS.write_text(json.dumps({"methods": kept}, indent=1) + "\n")


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.method,
        row.network,
        row.metric,
        f"{row.baseline:g} ({row.baseline_is})",
        f"{row.result:g} ({row.result - row.baseline:+.3g})",
        f"{row.spread:g}",
        "yes" if row.reproduced else "no",
        str(row.lines),
        f"{row.seconds:.0f}",
    )


if __name__ == "__main__":
    sys.exit(main())
