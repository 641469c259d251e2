"""Networks at budgets of multiply-accumulates and of Cortex-M4 cycles: accuracies, costs as predicted and as counted.

    python examples/pruning/budgets.py [75 50 35] [--network ic|kws|spoken_digits] [--of macs cycles]
    python examples/pruning/budgets.py --show

For each budget: pruned only, repaired without training, fine-tuned with the whole network as teacher, then int8 C on a
simulated Cortex-M4. `ic` is ResNet-8 on images; `kws` the keyword network, for which there are no words to learn from,
so that it is repaired only; `spoken_digits` its body with a last layer for digits, once `spoken_digits.py` has trained
it. Each budget is a file in build/pruning, written when it is done; one that is there is not computed again. The tables
are of all that are there.
"""

import argparse
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import numpy as np
import torch

from fxpress.compiler import (
    Compiled,
    Progress,
    Samples,
    compile_model,
    correct_answers,
    load_compiled,
    run_samples,
    text_table,
)
from fxpress.ir import Graph, run, run_integer
from fxpress.passes import Context, find_pass

HERE = Path(__file__).resolve().parent
DATA = HERE.parents[2] / "shared" / "data"
OUTPUT = HERE.parents[1] / "build" / "pruning"
LOSSLESS = "cifar10_lossless_calib.npz"
CALIBRATION = 256
EPOCHS = {"ic": 15, "kws": 0, "spoken_digits": 15}
UNTRAINED = (  # the specs without their fine-tuning
    "passes=[{pass: clean}, {pass: prune, score: l2, budget: {macs: 50 %}, multiple: 4, samples: 256, "
    "compensation: [least_squares, batchnorm]}, {pass: fuse}, {pass: quantize, samples: 256}, "
    "{pass: remove_dead_channels}]"
)


@dataclass(frozen=True, slots=True)
class Run:
    """One budget: a fraction of a resource, and its training."""

    network: str
    resource: str
    percent: int
    epochs: int
    samples: int | None

    @property
    def name(self) -> str:
        """The name of its file."""
        few = "" if self.samples is None else f"_{self.samples}_samples"
        return f"{self.network}_{self.resource}_{self.percent}_epochs_{self.epochs}{few}"

    @property
    def overrides(self) -> list[str]:
        """Changes to the spec."""
        found = [] if self.epochs else [UNTRAINED]
        found.append(f"passes[1].budget={{{self.resource}: {self.percent} %}}")
        if self.epochs:
            found += [f"passes[2].epochs={self.epochs}", f"passes[2].warmup={min(1, self.epochs - 1)}"]
        if self.samples is not None:
            found.append(f"data.calibration.samples={self.samples}")
        return found


class Result(TypedDict):
    """Contents of a budget's file: by step MACs and right answers on each set, by cost a prediction and a count."""

    budget: str
    macs: dict[str, int]
    correct: dict[str, dict[str, str]]
    predicted: dict[str, int]
    counted: dict[str, int]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("budgets", nargs="*", type=int, default=[75, 50, 35], help="percent")
    parser.add_argument("--network", choices=tuple(EPOCHS), default="ic")
    parser.add_argument("--of", nargs="*", choices=("macs", "cycles"), default=["macs", "cycles"])
    parser.add_argument("--epochs", type=int, help="of fine-tuning, 0 for none; 15, but 0 for kws")
    parser.add_argument("--samples", type=int, help="training samples; all when left out")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    parser.add_argument("--show", action="store_true", help="only show what is there")
    options = parser.parse_args(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    epochs = EPOCHS[options.network] if options.epochs is None else options.epochs
    runs = [
        Run(options.network, of, percent, epochs, options.samples)
        for of in options.of
        for percent in options.budgets
    ]
    for one in () if options.show else runs:
        file = options.output / f"{one.name}.json"
        if not file.exists():
            started = time.process_time()
            found = measured(one, options.output / one.name)
            file.write_text(json.dumps(found, indent=1) + "\n")
            print(f"{one.name}: {time.process_time() - started:.0f} CPU s", flush=True)
    show([json.loads(file.read_text()) for file in sorted(options.output.glob("*_epochs_*.json"))])


def measured(one: Run, directory: Path) -> Result:
    """Accuracy at each step of one compilation, and costs as predicted and as counted."""
    with Progress() as progress:
        compiled = compile_model(HERE / f"{one.network}.yaml", overrides=one.overrides, progress=progress)
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
    counts = (
        load_compiled(directory)
        .run(compiled.session.evaluation.first(1), on="cortex-m4", progress=silent)
        .counts
    )
    predicted, sets = compiled.c.prediction, evaluation_sets(one.network, compiled)
    assert counts is not None and counts.cycles is not None and predicted.cycles is not None
    return {
        "budget": f"{one.network}, {one.percent} % of {one.resource}",
        "macs": {name: graph.macs for name, graph in steps.items()},
        "correct": {name: accuracies(graph, sets) for name, graph in steps.items()},
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


def show(results: list[Result]) -> None:
    """Two tables: correct answers of each step, and costs predicted, counted, and their ratio."""
    answers = [
        (
            result["budget"],
            step,
            f"{result['macs'][step]:,}",
            ", ".join(f"{n} {c}" for n, c in sets.items()),
        )
        for result in results
        for step, sets in result["correct"].items()
    ]
    print(text_table(("budget", "step", "MACs", "right answers"), answers), "\n")
    costs = [
        (result["budget"], name, f"{predicted:,}", f"{counted:,}", f"{predicted / counted:.3f}")
        for result in results
        for name, predicted, counted in pairs(result)
    ]
    print(text_table(("budget", "cost", "predicted", "counted", "ratio"), costs))


def pairs(result: Result) -> list[tuple[str, int, int]]:
    """Name, prediction and count of each cost."""
    return [(name, n, result["counted"][name]) for name, n in result["predicted"].items()]


def pruned_only(compiled: Compiled, plan: Path) -> Graph:
    """The graph after the same pruning without repairs."""
    before, options = compiled.stages[0].graph, compiled.session.spec.passes[1]
    replayed = options.model_copy(update={"compensation": (), "budget": None, "plan": plan})
    assert compiled.session.calibration is not None
    samples = compiled.session.calibration.first(CALIBRATION)
    return find_pass("prune")(before, replayed, Context([(x,) for x in samples.inputs[0].split(1)])).graph


def evaluation_sets(network: str, compiled: Compiled) -> dict[str, Samples]:
    """The evaluation set of the spec, and for images one more that nothing here learns from."""
    assert compiled.session.evaluation is not None
    found = {"test" if network == "spoken_digits" else "dev": compiled.session.evaluation}
    if network == "ic":
        with np.load(DATA / LOSSLESS) as arrays:
            x = torch.from_numpy(arrays["x"]).permute(0, 3, 1, 2).float().contiguous()
            found["lossless"] = Samples((x,), torch.from_numpy(arrays["y"].astype(np.int64)))
    return found


def accuracies(graph: Graph, sets: Mapping[str, Samples]) -> dict[str, str]:
    """Correct answers on each set, of the integer graph if it is one."""
    interpret = run_integer if any(v.type.is_quantized for v in graph.constants) else run
    found = {}
    for name, samples in sets.items():
        assert samples.labels is not None
        logits = run_samples(graph, samples, interpreter=interpret)[0]
        found[name] = f"{correct_answers(logits, samples.labels)}/{len(samples)}"
    return found


def silent(label: str, done: int, total: int) -> None:
    """No-op progress callback."""


if __name__ == "__main__":
    main()
