"""Orders of pruning, distillation, quantization and weight sharing, and what is lost by leaving one out.

    python benchmarks/combinations.py [resnet encoder]      # table, and benchmarks/results/combinations.json

The specs are examples/methods/trained/small_resnet.yaml (Fashion-MNIST) and small_encoder.yaml (SMS Spam Collection)
with the passes of each order. `prune` removes half of the multiply-accumulates; `quantize` gives weights of 4 bits and
activations of 8, `share` weights of 8 bits with 16 values a layer, Huffman-coded; `distill` trains with the captured
network as teacher, `train` with labels alone, for the same number of epochs. Flash and cycles are predicted for a
Cortex-M4; accuracy is that of the last form of the network on up to 1,000 samples of the test set. Orders that the
compiler refuses are rows with the reason.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from fxpress.compiler import FxpressError, compile_model, text_table

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples" / "methods"
RESULTS = ROOT / "benchmarks" / "results" / "combinations.json"
ORDERS = (
    (),
    ("prune", "quantize", "distill"),
    ("prune", "distill", "quantize"),
    ("distill", "prune", "quantize"),
    ("prune", "quantize"),
    ("quantize",),
    ("quantize", "distill"),
    ("prune", "quantize", "train"),
    ("prune", "distill"),
    ("prune", "distill", "share"),
    ("share",),
    ("prune", "share", "distill"),
    ("prune", "distill", "quantize", "distill"),
    ("quantize", "prune"),
)


@dataclass(frozen=True)
class Network:
    """A trained network, and the passes of each step."""

    spec: str
    steps: Mapping[str, str]


TRAINING = "pass: finetune, epochs: 2, batch: 64, samples: 1500"
QUANTIZE = "{{pass: fuse}}, {{pass: quantize, samples: 128, {}}}"
TAUGHT = "distill: {weight: 80 %, temperature: 4.0}"
NETWORKS = {
    "resnet": Network(
        "small_resnet",
        {
            "prune": "{pass: prune, score: l2, budget: {macs: 50 %}, multiple: 4, compensation: [least_squares, "
            "batchnorm], samples: 256}",
            "distill": f"{{{TRAINING}, learning_rate: 2e-3, {TAUGHT}}}",
            "train": f"{{{TRAINING}, learning_rate: 2e-3, distill: null}}",
        },
    ),
    "encoder": Network(
        "small_encoder",
        {
            "prune": "{pass: prune, granularity: [heads], score: taylor, budget: {macs: 85 %}, compensation: "
            "[least_squares], samples: 128}, {pass: prune, score: taylor, budget: {macs: 59 %}, keep: [tokens, norm, "
            "'layers.*.qkv', 'layers.*.out'], multiple: 8, compensation: [least_squares], samples: 128}",
            "distill": f"{{{TRAINING}, learning_rate: 5e-4, {TAUGHT}}}",
            "train": f"{{{TRAINING}, learning_rate: 5e-4, distill: null}}",
        },
    ),
}


@dataclass(frozen=True)
class Row:
    """One network after the steps of one order; `refused` has the reason instead of the figures."""

    network: str
    order: str
    correct_percent: float | None
    weight_bytes: int | None
    flash_bytes: int | None
    cycles: int | None
    seconds: float
    refused: str = ""


def main() -> int:
    """Run the orders of the networks, and put their rows in place of the earlier ones."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("networks", nargs="*", default=tuple(NETWORKS), help=", ".join(NETWORKS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.networks:
        network = NETWORKS[name]
        subprocess.run([sys.executable, str(EXAMPLES / "train.py"), network.spec], check=True)
        for order in ORDERS:
            row = measured(name, network, order)
            print(text_table(COLUMNS, [_cells(row)]), flush=True)
            _record(row)
    print(text_table(COLUMNS, [_cells(row) for row in _rows().values()]))
    return 0


def measured(name: str, network: Network, order: Sequence[str]) -> Row:
    """The row of an order."""
    started = time.process_time()
    coding = "huffman" if "share" in order else "plain"
    overrides = [
        f"model.weights={ROOT / 'build' / 'methods' / network.spec}.safetensors",
        f"passes=[{', '.join(['{pass: clean}', *(_passes(network, step) for step in order)])}]",
        "target={name: cortex-m4f}",
        "data.evaluation.samples=1000",
        f"outputs={{c: {{name: net, weights: {coding}}}}}",
    ]
    title = ", ".join(order) or "nothing"
    try:
        compiled = compile_model(EXAMPLES / "trained" / f"{network.spec}.yaml", overrides=overrides)
    except FxpressError as err:
        reason = str(err).splitlines()[0]
        return Row(name, title, None, None, None, None, round(time.process_time() - started, 1), reason)
    assert compiled.c is not None
    prediction = compiled.c.prediction
    return Row(
        name,
        title,
        round(compiled.report.measurements[-1].value, 2),
        sum(node.constant_bytes for node in prediction.nodes),
        prediction.flash_bytes,
        prediction.cycles,
        round(time.process_time() - started, 1),
    )


def _passes(network: Network, step: str) -> str:
    if step == "quantize":
        return QUANTIZE.format("weights: int4")
    if step == "share":
        return QUANTIZE.format("weights: int8, codebook_bits: 4")
    return network.steps[step]


def _rows() -> dict[tuple[str, str], Row]:
    """Rows of the results file that are still measured, in the order of the table."""
    found = json.loads(RESULTS.read_text())["combinations"] if RESULTS.is_file() else []
    rows = {(row["network"], row["order"]): Row(**row) for row in found}
    keys = [(name, ", ".join(order) or "nothing") for name in NETWORKS for order in ORDERS]
    return {key: rows[key] for key in keys if key in rows}


def _record(row: Row) -> None:
    rows = _rows() | {(row.network, row.order): row}
    keys = [(name, ", ".join(order) or "nothing") for name in NETWORKS for order in ORDERS]
    kept = [asdict(rows[key]) for key in keys if key in rows]
    RESULTS.write_text(json.dumps({"combinations": kept}, indent=1) + "\n")


COLUMNS = ("network", "order", "correct", "constants", "flash", "cycles", "seconds")


def _cells(row: Row) -> tuple[str, ...]:
    if row.refused:
        return (row.network, row.order, "refused", "", "", "", f"{row.seconds:.0f}")
    return (
        row.network,
        row.order,
        f"{row.correct_percent:.2f} %",
        f"{row.weight_bytes:,}",
        f"{row.flash_bytes:,}",
        f"{row.cycles:,}",
        f"{row.seconds:.0f}",
    )


if __name__ == "__main__":
    sys.exit(main())
