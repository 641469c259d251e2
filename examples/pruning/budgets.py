"""ResNet-8 at budgets of multiply-accumulates and of Cortex-M4 cycles: accuracies, costs as predicted and as counted.

    python examples/pruning/budgets.py [75 50 35] [--of macs cycles] [--epochs 15] [--samples N]
    python examples/pruning/budgets.py --show

For each budget: pruned only, repaired without training, fine-tuned with the whole network as teacher, then int8 C on a
simulated Cortex-M4. Each budget is a file in build/pruning, written when it is done; one that is there is not computed
again. The tables are of all that are there.
"""

import argparse
import json
import time
from dataclasses import dataclass
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
CALIBRATION = 256
UNTRAINED = (  # ic.yaml without its fine-tuning
    "passes=[{pass: clean}, {pass: prune, score: l2, budget: {macs: 50 %}, multiple: 4, samples: 256, "
    "compensation: [least_squares, batchnorm]}, {pass: fuse}, {pass: quantize, samples: 256}, "
    "{pass: remove_dead_channels}]"
)


@dataclass(frozen=True, slots=True)
class Run:
    """One budget: a share of a resource, and how it is trained for."""

    resource: str
    percent: int
    epochs: int
    samples: int | None

    @property
    def name(self) -> str:
        """The name of its file."""
        few = "" if self.samples is None else f"_{self.samples}_samples"
        return f"{self.resource}_{self.percent}_epochs_{self.epochs}{few}"

    @property
    def overrides(self) -> list[str]:
        """What differs from the spec."""
        found = [] if self.epochs else [UNTRAINED]
        found.append(f"passes[1].budget={{{self.resource}: {self.percent} %}}")
        if self.epochs:
            found += [f"passes[2].epochs={self.epochs}", f"passes[2].warmup={min(1, self.epochs - 1)}"]
        if self.samples is not None:
            found.append(f"data.calibration.samples={self.samples}")
        return found


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("budgets", nargs="*", type=int, default=[75, 50, 35], help="percent")
    parser.add_argument("--of", nargs="*", choices=("macs", "cycles"), default=["macs", "cycles"])
    parser.add_argument("--epochs", type=int, default=15, help="of fine-tuning; 0 for none")
    parser.add_argument("--samples", type=int, help="training samples; all when left out")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--show", action="store_true", help="only show what is there")
    options = parser.parse_args(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    runs = [
        Run(of, percent, options.epochs, options.samples) for of in options.of for percent in options.budgets
    ]
    for one in () if options.show else runs:
        file = options.output / f"{one.name}.json"
        if not file.exists():
            started = time.process_time()
            found = measured(one, options.output / one.name)
            file.write_text(json.dumps(found, indent=1) + "\n")
            print(f"{one.name}: {time.process_time() - started:.0f} CPU s", flush=True)
    show([json.loads(file.read_text()) for file in sorted(options.output.glob("*_epochs_*.json"))])


def measured(one: Run, directory: Path) -> dict[str, object]:
    """Accuracy at each step of one compilation, and costs as predicted and as counted."""
    with Progress() as progress:
        compiled = compile_model(SPEC, overrides=one.overrides, progress=progress)
    compiled.write(directory)
    stages = {stage.name: stage.graph for stage in compiled.stages}
    steps = {
        "whole": compiled.session.captured,
        "pruned": pruned_only(compiled, directory / "passes" / "1.prune.plan.json"),
        "repaired": stages["prune"],
        **({"fine-tuned": stages["finetune"]} if one.epochs else {}),
        "int8": compiled.graph,
    }
    assert compiled.c is not None and compiled.session.evaluation is not None
    counts = execute(directory, compiled.session.evaluation.first(1), on="cortex-m4", progress=silent).counts
    assert counts is not None
    predicted = compiled.c.prediction
    return {
        "budget": f"{one.percent} % of {one.resource}",
        "macs": {name: graph.macs for name, graph in steps.items()},
        "correct": {name: accuracies(graph) for name, graph in steps.items()},
        "predicted": {
            "instructions": predicted.instructions,
            "cycles": predicted.cycles,
            "arena": predicted.arena_bytes,
            "flash": predicted.flash_bytes,
        },
        "counted": {
            "instructions": counts.instructions,
            "cycles": counts.cycles,
            "arena": compiled.c.plan.arena_bytes,
            "flash": counts.footprint.flash,
        },
    }


def show(results: list[dict[str, dict[str, object]]]) -> None:
    """Two tables: correct answers of each step, and costs predicted, counted, and their ratio."""
    answers = [
        (str(result["budget"]), step, f"{result['macs'][step]:,}", *map(str, sets.values()))
        for result in results
        for step, sets in result["correct"].items()
    ]
    print(text_table(("budget", "step", "MACs", *SETS), answers), "\n")
    costs = [
        (str(result["budget"]), name, f"{predicted:,}", f"{counted:,}", f"{predicted / counted:.3f}")
        for result in results
        for name, predicted, counted in pairs(result)
    ]
    print(text_table(("budget", "cost", "predicted", "counted", "ratio"), costs))


def pairs(result: dict[str, dict[str, object]]) -> list[tuple[str, int, int]]:
    """Name, prediction and count of each cost."""
    return [(name, int(str(n)), int(str(result["counted"][name]))) for name, n in result["predicted"].items()]


def pruned_only(compiled: Compiled, plan: Path) -> Graph:
    """The graph that the same pruning gives without repairs."""
    before, options = compiled.stages[0].graph, compiled.session.spec.passes[1]
    replayed = options.model_copy(update={"compensation": (), "budget": None, "plan": plan})
    samples = compiled.session.calibration.first(CALIBRATION)
    return find_pass("prune")(before, replayed, Context([(x,) for x in samples.inputs[0].split(1)])).graph


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
