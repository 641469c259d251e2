"""ResNet-8 at several budgets of multiply-accumulates: accuracy at each step, and cost as predicted and as counted.

    python examples/pruning/budgets.py [75 50 35] [--epochs 10]

For each budget: pruned only, repaired without training, fine-tuned with the whole network as teacher, then int8 C on a
simulated Cortex-M4. Table on standard output, rows in build/pruning/budgets.json.
"""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fxpress.compiler import compile_model
from fxpress.compiler.execution import execute
from fxpress.compiler.pipeline import Compiled
from fxpress.compiler.progress import Progress
from fxpress.compiler.table import text_table
from fxpress.ir import Graph, rebatch, run, run_integer
from fxpress.passes import Context, find_pass

HERE = Path(__file__).resolve().parent
SPEC = HERE / "ic.yaml"
DATA = HERE.parents[2] / "shared" / "data"
OUTPUT = HERE.parents[1] / "build" / "pruning"
SETS = {"dev": "ic01_eval_dev.npz", "lossless": "cifar10_lossless_calib.npz"}
COLUMNS = ("step", "MACs", *SETS, "instructions (predicted)", "arena B", "flash B (predicted)")
CALIBRATION = 256


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("budgets", nargs="*", type=int, default=[75, 50, 35], help="percent of the MACs")
    parser.add_argument("--epochs", type=int, default=10)
    options = parser.parse_args()
    OUTPUT.mkdir(parents=True, exist_ok=True)
    rows = []
    for budget in options.budgets:
        started = time.time()
        overrides = [f"passes[1].budget.macs={budget} %", f"passes[2].epochs={options.epochs}"]
        with Progress() as progress:
            compiled = compile_model(SPEC, overrides=overrides, progress=progress)
        rows += measured(compiled, budget)
        print(f"{budget} % in {time.time() - started:.0f} s", flush=True)
    print(text_table(COLUMNS, [tuple(str(row.get(column, "")) for column in COLUMNS) for row in rows]))
    (OUTPUT / "budgets.json").write_text(json.dumps(rows, indent=1) + "\n")


def measured(compiled: Compiled, budget: int) -> list[dict[str, str | int]]:
    """A row for each step of one compilation."""
    whole = compiled.session.captured
    stages = {stage.name: stage.graph for stage in compiled.stages}
    steps = {
        "whole network": whole,
        f"{budget} %: pruned": pruned_only(compiled),
        f"{budget} %: repaired": stages["prune"],
        f"{budget} %: fine-tuned": stages["finetune"],
        f"{budget} %: int8": compiled.graph,
    }
    rows = [{"step": name, "MACs": f"{graph.macs:,}", **accuracies(graph)} for name, graph in steps.items()]
    directory = OUTPUT / f"ic{budget}"
    compiled.write(directory)
    counts = execute(directory, compiled.session.evaluation.first(2), on="cortex-m4", progress=silent).counts
    predicted = round(sum(step.implementation.cost.instructions for step in compiled.c.program.steps))
    resources = {resource.name: resource.used for resource in compiled.report.resources}
    rows[-1] |= {
        "instructions (predicted)": f"{counts.instructions:,} ({predicted:,})",
        "arena B": f"{resources['arena']:,}",
        "flash B (predicted)": f"{counts.footprint.flash:,} ({resources['flash']:,})",
    }
    return rows


def pruned_only(compiled: Compiled) -> Graph:
    """The graph that the same pruning gives without repairs."""
    before, options = compiled.stages[0].graph, compiled.session.spec.passes[1]
    samples = compiled.session.calibration.first(CALIBRATION)
    context = Context([(x,) for x in samples.inputs[0].split(1)])
    return find_pass("prune")(before, options.model_copy(update={"compensation": ()}), context).graph


def accuracies(graph: Graph) -> dict[str, str]:
    """Correct answers on each set."""
    found = {}
    for name, file in SETS.items():
        with np.load(DATA / file) as arrays:
            x = torch.from_numpy(arrays["x"]).permute(0, 3, 1, 2).float().contiguous()
            labels = torch.from_numpy(arrays["y"].astype(np.int64))
        answers = logits(graph, x).argmax(1)
        found[name] = f"{int((answers == labels).sum())}/{len(labels)}"
    return found


def logits(graph: Graph, x: Tensor) -> Tensor:
    """Outputs for all samples, of the integer graph where it is one."""
    interpret = run_integer if any(v.type.is_quantized for v in graph.constants) else run
    with torch.no_grad():
        return interpret(rebatch(graph, len(x)), [x])[0]


def silent(label: str, done: int, total: int) -> None:
    """Progress that nobody watches."""


if __name__ == "__main__":
    main()
