"""Methods of compression, each beside the baseline that its paper compares with, on small real networks.

    python benchmarks/methods.py [NAME ...] [--on validation]        # all by default

A row compiles `examples/methods/NAME.yaml` and its baseline, the same spec with the overrides given here, with three
seeds. `reproduced` says whether the difference has the direction of the paper and is outside the spread of the seeds:
more than the sum of both standard deviations. Recipes were chosen with `--on validation`. Table on standard output and,
when all rows ran on the evaluation set, benchmarks/results/methods.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from fxpress.compiler import compile_model, text_table

ROOT = Path(__file__).resolve().parent.parent
METHODS = ROOT / "examples" / "methods"
RESULTS = ROOT / "benchmarks" / "results" / "methods.json"
SEEDS = (0, 1, 2)
COLUMNS = ("method", "network", "baseline", "result", "spread", "reproduced", "seconds")


@dataclass(frozen=True)
class Method:
    """A spec, its source, and the overrides that make its baseline."""

    name: str
    network: str
    source: str
    baseline: tuple[str, ...]
    baseline_is: str


ONE_SHOT = ("passes[1].schedule=cubic",)
ALL = (
    Method(
        "han_connections", "LeNet-300-100", "Han et al., NeurIPS 2015", ("passes[1].steps=1",), "one shot"
    ),
    Method("dynamic_network_surgery", "LeNet-300-100", "Guo et al., NeurIPS 2016", ONE_SHOT, "one shot"),
    Method("learned_thresholds", "LeNet-300-100", "Kusupati et al., ICML 2020", ONE_SHOT, "one shot"),
)


@dataclass(frozen=True)
class Row:
    """Accuracies in percent, means over the seeds; `spread` is the sum of both standard deviations."""

    method: str
    network: str
    data: str
    baseline_is: str
    baseline: float
    result: float
    spread: float
    reproduced: bool
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
    known = {method.name: method for method in ALL}
    if unknown := [name for name in options.names if name not in known]:
        print(f"no method {unknown[0]}; there are {', '.join(known)}")
        return 2
    torch.set_num_threads(1)
    subprocess.run([sys.executable, str(METHODS / "train.py")], check=True)
    rows = []
    for name in options.names or known:
        rows.append(row_of(known[name], options.on))
        print(text_table(COLUMNS, [_cells(rows[-1])]), flush=True)
    print(text_table(COLUMNS, [_cells(row) for row in rows]))
    if not options.names and options.on == "evaluation":
        RESULTS.write_text(json.dumps({"methods": [asdict(row) for row in rows]}, indent=1) + "\n")
    return 0


def row_of(method: Method, on: str) -> Row:
    """The row of a method, over all seeds."""
    started = time.process_time()
    result = [accuracy(method, (), seed, on) for seed in SEEDS]
    baseline = [accuracy(method, method.baseline, seed, on) for seed in SEEDS]
    spread = statistics.stdev(result) + statistics.stdev(baseline)
    means = statistics.mean(baseline), statistics.mean(result)
    return Row(
        method.name,
        method.network,
        "Fashion-MNIST",
        method.baseline_is,
        round(means[0], 2),
        round(means[1], 2),
        round(spread, 2),
        means[1] - means[0] > spread,
        round(time.process_time() - started, 1),
        method.source,
    )


def accuracy(method: Method, changes: Sequence[str], seed: int, on: str) -> float:
    """Share of right answers of the compiled network, in percent."""
    data = f"data.evaluation.source={METHODS / 'images.py'}:{on}"
    overrides = [*changes, data, f"passes[1].finetune.seed={seed}"]
    report = compile_model(METHODS / f"{method.name}.yaml", overrides=overrides).report
    return report.measurements[-1].value


def _cells(row: Row) -> tuple[str, ...]:
    points = f"{row.result - row.baseline:+.2f}"
    return (
        row.method,
        row.network,
        f"{row.baseline:.2f} ({row.baseline_is})",
        f"{row.result:.2f} ({points})",
        f"{row.spread:.2f}",
        "yes" if row.reproduced else "no",
        f"{row.seconds:.0f}",
    )


if __name__ == "__main__":
    sys.exit(main())
