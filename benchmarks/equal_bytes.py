"""Accuracy at equal bytes of weights: the recipe of a budget by cross-validation, then one look at the evaluation set.

    python benchmarks/equal_bytes.py [ic kws] [--budgets 75 50 37.5 25]     # table, and results/equal_bytes.json

A recipe is how bits are chosen (for the weights alone, or jointly with removed channels) and how the weights get them
(AdaRound; training with the rounding in the loop and the float network as teacher). Its score is the KL divergence of
the integer network from the float network on data held back, mean over the folds: for images two halves of the
training set, for words the spoken digits below and from five, each held back once: words that the recipe has not
heard, as the words of the evaluation are. Bits are chosen first, with AdaRound, then the recipe of the weights. Only
the best recipe of a budget is compiled with all the data and scored on the evaluation set, its C compared with the
integer graph. A stopped run continues where it ended if the code is the same: scores are in build/equal_bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from mixed import SPECS, TRAINING, Pass, bits_of, code_digest, evaluation, hold_equal, weight_percent

from fxpress.compiler import Compiled, Samples, compile_model, correct_answers, run_samples, text_table
from fxpress.ir import Graph, run, run_integer

ROOT = Path(__file__).resolve().parents[1]
CACHE = ROOT / "build" / "equal_bytes"
RESULTS = ROOT / "benchmarks" / "results" / "equal_bytes.json"
BUDGETS = (75.0, 50.0, 37.5, 25.0)
FOLDS = 2
BITS: dict[str, Pass] = {
    "bits": {"pass": "assign_bits", "samples": 256},
    "joint": {
        "pass": "prune",
        "bits": [2, 4, 8],
        "multiple": 4,
        "compensation": ["least_squares", "batchnorm"],
        "samples": 256,
    },
}
ROUNDING: dict[str, dict[str, Any]] = {  # any: options of `finetune`
    "adaround": {},
    "trained": {"epochs": 5},
    "trained longer": {"epochs": 20},
    "trained longer, augmented": {"epochs": 20, "augment": True},
}
AUGMENT = {"ic": {"flip": True, "shift": 2}, "kws": {"time_shift": 4, "noise": "20 dB"}}
INPUTS = {"ic": "image", "kws": "mfcc"}
DATA = {
    "ic": (ROOT / "examples" / "pruning" / "training_data.py", "training"),
    "kws": (SPECS / "samples.py", "spoken_digits"),
}
COLUMNS = ("network", "budget", "recipe", "KL held back", "accuracy", "points", "int8 bytes", "instructions", "flash",
           "equal", "bits")  # fmt: skip
Interpreter = Callable[[Graph, Sequence[torch.Tensor]], list[torch.Tensor]]


@dataclass(frozen=True)
class Row:
    """The chosen recipe of a budget, its score and those of all others (KL, nats), and its figures."""

    network: str
    budget_percent: float
    bits_by: str
    rounding: str
    scores: dict[str, float]
    bits: str
    weight_percent: float
    correct: int
    samples: int
    float_correct: int
    points: float
    instructions: int
    flash: int
    equal_inputs: int


def passes(network: str, budget: float, bits_by: str, rounding: str) -> list[Pass]:
    """The passes of a recipe."""
    chosen = {**BITS[bits_by], "budget": {"weights": f"{budget:g} %"}}
    options = dict(ROUNDING[rounding])
    if options.pop("augment", False):
        options["augment"] = AUGMENT[network]
    fuse: Pass = {"pass": "fuse"}
    return [
        {"pass": "clean"},
        *([chosen, fuse] if bits_by == "joint" else [fuse, chosen]),
        {"pass": "quantize", "rounding": "adaround", "samples": 512},
        *([{"pass": "finetune", "warmup": 1, **TRAINING[network], **options}] if options else []),
        {"pass": "remove_dead_channels"},
    ]


def compiled_with(network: str, steps: Sequence[Pass], fold: int | None) -> Compiled:
    """The network after the passes, on the data of a fold, scored on what it holds back; without a fold on all data,
    scored on the evaluation set.
    """
    overrides = [f"passes={json.dumps(steps)}"]
    parts = {"calibration": "all"} if fold is None else {"calibration": "kept", "evaluation": "held"}
    for key, part in parts.items():
        described: dict[str, object] = {
            "file": str(_file(network, fold, part)),
            "inputs": {INPUTS[network]: "x"},
        }
        if (
            key == "calibration" and network == "ic"
        ):  # the words of the data are others than those of the network
            described["labels"] = "y"
        described |= {"samples": None} if key == "calibration" else {"metric": "agreement"}
        overrides.append(f"data.{key}={json.dumps(described)}")
    return compile_model(SPECS / f"{network}.yaml", overrides=overrides)


def _file(network: str, fold: int | None, part: str) -> Path:
    path = CACHE / f"{network}-{fold}-{part}.npz"
    if not path.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        arrays = _arrays(network)
        held = (arrays["y"] >= 5 if network == "kws" else np.arange(len(arrays["x"])) % FOLDS) == fold
        kept = {"all": held | ~held, "kept": ~held, "held": held}[part]
        np.savez(path, **{key: array[kept] for key, array in arrays.items()})
    return path


def _arrays(network: str) -> dict[str, np.ndarray]:
    file, function = DATA[network]
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: dict[str, np.ndarray] = getattr(module, function)()
    return found


def score(network: str, budget: float, bits_by: str, rounding: str) -> float:
    """KL divergence on what is held back, mean over the folds."""
    steps = passes(network, budget, bits_by, rounding)
    key = hashlib.sha256(json.dumps([network, steps, FOLDS, code_digest()]).encode()).hexdigest()[:16]
    cached = CACHE / f"{network}-{key}.json"
    if not cached.exists():
        found = mean(_divergence(network, steps, fold) for fold in range(FOLDS))
        cached.write_text(json.dumps(found))
    value: float = json.loads(cached.read_text())
    print(f"{network} {budget:g} %, {bits_by}, {rounding}: KL {value:.4f}", flush=True)
    return value


def _divergence(network: str, steps: Sequence[Pass], fold: int) -> float:
    compiled = compiled_with(network, steps, fold)
    samples = compiled.session.evaluation
    assert samples is not None
    wanted = _log_probabilities(compiled.session.captured, samples, run)
    found = _log_probabilities(compiled.graph, samples, run_integer)
    return float((wanted.exp() * (wanted - found)).sum(1).mean())


def _log_probabilities(graph: Graph, samples: Samples, interpreter: Interpreter) -> torch.Tensor:
    scores, encoding = (
        run_samples(graph, samples, interpreter=interpreter)[0],
        graph.outputs[0].type.quantization,
    )
    return (scores if encoding is None else encoding.dequantize(scores)).double().log_softmax(1)


def measure(network: str, budget: float) -> Row:
    """The row of the recipe with the best score."""
    scores = {(bits_by, "adaround"): score(network, budget, bits_by, "adaround") for bits_by in BITS}
    bits_by, _ = min(scores, key=lambda recipe: scores[recipe])
    scores |= {(bits_by, rounding): score(network, budget, bits_by, rounding) for rounding in ROUNDING}
    bits_by, rounding = min(scores, key=lambda recipe: scores[recipe])
    compiled = compiled_with(network, passes(network, budget, bits_by, rounding), None)
    samples = evaluation(network, compiled)
    assert samples.labels is not None
    with tempfile.TemporaryDirectory(prefix="fxpress-equal-") as folder:
        compiled.write(folder)
        counts, equal = hold_equal(compiled, Path(folder), samples)
    assert counts.footprint is not None
    found, floating = (
        correct_answers(run_samples(graph, samples, interpreter=interpreter)[0], samples.labels)
        for graph, interpreter in ((compiled.graph, run_integer), (compiled.session.captured, run))
    )
    return Row(
        network=network,
        budget_percent=budget,
        bits_by=bits_by,
        rounding=rounding,
        scores={f"{chosen}, {rounded}": round(value, 5) for (chosen, rounded), value in scores.items()},
        bits=bits_of(compiled.graph),
        weight_percent=weight_percent(compiled),
        correct=found,
        samples=len(samples),
        float_correct=floating,
        points=round(100 * (found - floating) / len(samples), 2),
        instructions=counts.instructions,
        flash=counts.footprint.flash,
        equal_inputs=equal,
    )


def record(row: Row) -> None:
    """Replaces the row of the same network and budget in the results."""
    rows = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    kept = [r for r in rows if (r["network"], r["budget_percent"]) != (row.network, row.budget_percent)]
    rows = sorted([*kept, asdict(row)], key=lambda r: (r["network"], -r["budget_percent"]))
    RESULTS.write_text(json.dumps(rows, indent=1) + "\n")


def main() -> None:
    """Chooses, measures, prints, writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("networks", nargs="*", default=["ic", "kws"])
    parser.add_argument("--budgets", nargs="*", type=float, default=BUDGETS, help="percent of int8")
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines = []
    for network in options.networks:
        for budget in options.budgets:
            row = measure(network, budget)
            record(row)
            lines.append(_line(row))
            print(text_table(COLUMNS, lines), flush=True)


def _line(row: Row) -> tuple[str, ...]:
    return (
        row.network,
        f"{row.budget_percent:g} %",
        f"{row.bits_by}, {row.rounding}",
        f"{row.scores[f'{row.bits_by}, {row.rounding}']:.4f}",
        f"{row.correct}/{row.samples} (float {row.float_correct})",
        f"{row.points:+.2f}",
        f"{row.weight_percent:g} %",
        f"{row.instructions:,}",
        f"{row.flash:,}",
        str(row.equal_inputs),
        row.bits,
    )


if __name__ == "__main__":
    main()
