"""Mixed precision on trained networks: accuracy, flash and instructions for budgets of the weights' bytes.

    python benchmarks/mixed.py [ic kws] [--budgets 75 50 37.5] [--epochs 5]      # table, and results/mixed.json

Bits are chosen uniformly (the widest width that fits), by HAWQ-V2's trace, by the default sensitivity, and jointly
with the removal of channels (`joint`). Weights are rounded to the nearest integer, by AdaRound, and by training from
there with the rounding in the loop and the float network as teacher. The C of every row is compared byte for byte
with the integer graph, on this machine and on a simulated Cortex-M4. A stopped run continues where it ended if the
code is the same: rows are in build/mixed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from itertools import product
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch

from fxpress.compiler import (
    Compiled,
    Counts,
    Samples,
    compile_model,
    correct_answers,
    load_compiled,
    run_samples,
    text_table,
)
from fxpress.ir import Graph, run, run_integer

ROOT = Path(__file__).resolve().parents[1]
SPECS = ROOT / "examples" / "mlperf_tiny"
DATA = ROOT.parent / "shared" / "data"
CACHE = ROOT / "build" / "mixed"
RESULTS = ROOT / "benchmarks" / "results" / "mixed.json"
CORE = "cortex-m4f"
CHECKED = 64  # inputs on which the C is compared on this machine; on the simulated core it is 2
WIDTHS = {"int8": 100.0, "int4": 50.0, "int2": 25.0}  # percent of int8's bytes
CALIBRATION = {  # on which ranges are measured, rounding is learned, and the network is trained; never evaluated on
    "ic": f"{{source: {ROOT}/examples/pruning/training_data.py:training, inputs: {{image: x}}, samples: null}}",
    "kws": f"{{source: {SPECS}/samples.py:spoken_digits, inputs: {{mfcc: x}}, samples: null}}",
}
TRAINING = {  # with labels of the images; by the float network and its blocks alone where the labels are other words
    "ic": {"learning_rate": 0.002, "distill": {"weight": "80 %", "temperature": 4.0}},
    "kws": {
        "learning_rate": 0.0005,
        "distill": {"weight": "100 %", "temperature": 2.0, "layers": [f"blocks.{i}" for i in range(4)]},
    },
}
METHODS = ("uniform", "hawq_v2", "gauss_newton", "joint")
RECIPES = ("nearest", "adaround", "trained")

Pass = Mapping[str, object]


@dataclass(frozen=True)
class Row:
    """One network, budget, choice of bits and recipe; accuracies are counts of right answers, sizes bytes."""

    network: str
    budget_percent: float
    method: str
    recipe: str
    bits: str
    weight_percent: float
    correct: int
    samples: int
    float_correct: int
    instructions: int
    predicted_instructions: int
    flash: int
    predicted_flash: int
    equal_inputs: int
    seconds: float

    @property
    def points(self) -> float:
        """Percentage points above the float network."""
        return 100 * (self.correct - self.float_correct) / self.samples


def passes(network: str, budget: float, method: str, recipe: str, epochs: int) -> list[Pass]:
    """The passes of one row."""
    chosen: list[Pass] = []
    limit = {"weights": f"{budget:g} %"}
    quantize: dict[str, object] = {"pass": "quantize", "samples": 256}
    if method == "uniform":
        quantize["weights"] = next(name for name, share in WIDTHS.items() if share <= budget)
    elif method == "joint":
        channels = {"bits": [2, 4, 8], "multiple": 4, "compensation": ["least_squares", "batchnorm"]}
        chosen = [{"pass": "prune", "budget": limit, **channels, "samples": 256}]
    else:
        chosen = [{"pass": "assign_bits", "budget": limit, "sensitivity": method, "samples": 256}]
    if recipe != "nearest":
        quantize |= {"rounding": "adaround", "samples": 512}
    training: list[Pass] = []
    if recipe == "trained":
        training = [{"pass": "finetune", "epochs": epochs, "warmup": 1, **TRAINING[network]}]
    fuse: Pass = {"pass": "fuse"}
    return [
        {"pass": "clean"},
        *([*chosen, fuse] if method == "joint" else [fuse, *chosen]),
        quantize,
        *training,
        {"pass": "remove_dead_channels"},
    ]


def measure(network: str, budget: float, method: str, recipe: str, epochs: int) -> Row:
    """Compiles, scores, emits, counts; reads the cache if the same passes ran before."""
    steps = passes(network, budget, method, recipe, epochs)
    key = hashlib.sha256(json.dumps([network, steps, code_digest()]).encode()).hexdigest()[:16]
    cached = CACHE / f"{network}-{key}.json"
    if cached.exists():
        return Row(**json.loads(cached.read_text()) | {"budget_percent": budget, "method": method})
    started = time.time()
    overrides = [f"passes={json.dumps(steps)}", f"data.calibration={CALIBRATION[network]}"]
    compiled = compile_model(SPECS / f"{network}.yaml", overrides=overrides)
    samples = evaluation(network, compiled)
    assert samples.labels is not None
    with tempfile.TemporaryDirectory(prefix="fxpress-mixed-") as folder:
        compiled.write(folder)
        counts, equal = hold_equal(compiled, Path(folder), samples)
    integer = run_samples(compiled.graph, samples, interpreter=run_integer)[0]
    floating = run_samples(compiled.session.captured, samples, interpreter=run)[0]
    assert compiled.c is not None and counts.footprint is not None
    row = Row(
        network=network,
        budget_percent=budget,
        method=method,
        recipe=recipe,
        bits=bits_of(compiled.graph),
        weight_percent=weight_percent(compiled),
        correct=correct_answers(integer, samples.labels),
        samples=len(samples),
        float_correct=correct_answers(floating, samples.labels),
        instructions=counts.instructions,
        predicted_instructions=compiled.c.prediction.instructions,
        flash=counts.footprint.flash,
        predicted_flash=next(r.used for r in compiled.report.resources if r.name == "flash"),
        equal_inputs=equal,
        seconds=round(time.time() - started, 1),
    )
    CACHE.mkdir(parents=True, exist_ok=True)
    cached.write_text(json.dumps(asdict(row), indent=1) + "\n")
    return row


@cache
def code_digest() -> str:
    """SHA-256 of the sources of fxpress."""
    packages = ("specs", "ir", "passes", "backends", "compiler")
    sources = (p for name in packages for p in (ROOT / name).rglob("*") if p.suffix in (".py", ".h", ".j2"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(sources))).hexdigest()


def evaluation(network: str, compiled: Compiled) -> Samples:
    """The evaluation set; for images followed by the lossless calibration images of the benchmark, which are unseen
    here.
    """
    samples = compiled.session.evaluation
    assert samples is not None and samples.labels is not None
    if network != "ic":
        return samples
    with np.load(DATA / "cifar10_lossless_calib.npz") as arrays:
        x = torch.from_numpy(arrays["x"]).permute(0, 3, 1, 2).float()
        y = torch.from_numpy(arrays["y"].astype(np.int64))
    return Samples((torch.cat([samples.inputs[0], x]),), torch.cat([samples.labels, y]))


def hold_equal(compiled: Compiled, directory: Path, samples: Samples) -> tuple[Counts, int]:
    """Counts of the simulated core, and the number of inputs with the same bytes in every form."""
    few, many = samples.first(2), samples.first(CHECKED)
    simulated = load_compiled(directory).run(few, on=CORE)
    host = load_compiled(directory).run(many, on="host")
    for taken, execution in ((few, simulated), (many, host)):
        expected = run_samples(compiled.graph, taken, interpreter=run_integer)
        for ours, found in zip(expected, execution.outputs, strict=True):
            assert torch.equal(ours, found), f"{directory.name}: the C differs from the integer graph"
    assert simulated.counts is not None
    return simulated.counts, len(many)


def bits_of(graph: Graph) -> str:
    """Bits of the layers' weights in order, such as `8 4 4 2`."""
    return " ".join(str(bits) for bits, _ in weights_of(graph))


def weight_percent(compiled: Compiled) -> float:
    """Bytes of the layers' weights as a percentage of those that 8 bits take in the whole network."""
    captured = compiled.session.captured
    layers = (n.operand("weight") for n in captured.nodes if n.op.name in ("conv", "linear"))
    whole = {value.name: value.type.numel for value in layers if value is not None}
    stored = sum(bits * count / 8 for bits, count in weights_of(compiled.graph))
    return round(100 * stored / sum(whole.values()), 1)


def weights_of(graph: Graph) -> list[tuple[int, int]]:
    """Bits and number of elements of each layer's weight, in order."""
    found = {}
    for node in graph.nodes:
        value = node.operand("weight") if node.op.name in ("conv", "linear") else None
        if value is not None and value.type.quantization is not None:
            found[value.name] = (value.type.quantization.bits, value.type.numel)
    return list(found.values())


def table(rows: Sequence[Row]) -> str:
    """One line a row."""
    header = ("network", "budget", "bits by", "weights", "accuracy", "points", "int8 bytes", "instructions",
              "predicted", "flash", "predicted", "equal", "bits")  # fmt: skip
    return text_table(header, [_line(row) for row in rows])


def _line(row: Row) -> tuple[str, ...]:
    return (
        row.network,
        f"{row.budget_percent:g} %",
        row.method,
        row.recipe,
        f"{row.correct}/{row.samples} (float {row.float_correct})",
        f"{row.points:+.1f}",
        f"{row.weight_percent:g} %",
        f"{row.instructions:,}",
        f"{row.predicted_instructions / row.instructions:.2f}x",
        f"{row.flash:,}",
        f"{row.predicted_flash / row.flash:.2f}x",
        str(row.equal_inputs),
        row.bits,
    )


def main() -> None:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("networks", nargs="*", default=["ic", "kws"])
    parser.add_argument(
        "--budgets", nargs="*", type=float, default=[75.0, 50.0, 37.5], help="percent of int8"
    )
    parser.add_argument("--methods", nargs="*", default=list(METHODS))
    parser.add_argument("--recipes", nargs="*", default=list(RECIPES))
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=1, help="rows at a time")
    options = parser.parse_args()
    wanted = product(options.networks, options.recipes, options.budgets, options.methods)
    rows = []
    with ProcessPoolExecutor(
        options.jobs, mp_context=get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        for row in pool.map(
            measure, *zip(*((n, b, m, r, options.epochs) for n, r, b, m in wanted), strict=True)
        ):
            rows.append(row)
            print(table([row]).splitlines()[-1], flush=True)
    print(f"\n{table(rows)}")
    RESULTS.write_text(
        json.dumps([asdict(row) | {"points": round(row.points, 2)} for row in rows], indent=1) + "\n"
    )


if __name__ == "__main__":
    main()
