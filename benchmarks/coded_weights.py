"""Huffman-coded weights on a simulated Cortex-M4: flash, arena, instructions and accuracy, beside plain weights.

    python benchmarks/coded_weights.py [ic kws]      # table, and benchmarks/results/coded_weights.json

Each network of examples/mlperf_tiny with int8 weights, with weights that share 32 and 16 values a layer, and with int4
weights; its C with `weights: plain` and `huffman`, held byte for byte against the integer graph on two inputs.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from fxpress.backends.c import SimulatedNetwork
from fxpress.compiler import Compiled, compile_model, correct_answers, run_samples, text_table
from fxpress.ir import run_integer
from fxpress.specs import load_target

ROOT = Path(__file__).resolve().parents[1]
SPECS = ROOT / "examples" / "mlperf_tiny"
RESULTS = ROOT / "benchmarks" / "results" / "coded_weights.json"
CORE = "cortex-m4f"
CHECKED = 2
QUANTIZE = {
    "int8": (),
    "int8, 32 values": ("passes[2].codebook_bits=5",),
    "int8, 16 values": ("passes[2].codebook_bits=4",),
    "int4": ("passes[2].weights=int4",),
}


@dataclass(frozen=True)
class Row:
    """One network in one form; sizes in bytes, `correct` of `samples` by the integer graph."""

    network: str
    weights: str
    coding: str
    flash_bytes: int
    predicted_flash_bytes: int
    arena_bytes: int
    instructions: int
    predicted_instructions: int
    cycles: int
    correct: int
    samples: int


def measure(network: str, weights: str) -> list[Row]:
    """Plain and coded rows of a network; AssertionError if the core and the integer graph differ."""
    rows: list[Row] = []
    correct, samples = 0, 0
    for coding in ("plain", "huffman"):
        overrides = [*QUANTIZE[weights], f"outputs.c.weights={coding}"]
        compiled = compile_model(SPECS / f"{network}.yaml", overrides=overrides)
        if not rows:
            correct, samples = _accuracy(compiled)
        rows.append(_row(compiled, (network, weights, coding), (correct, samples)))
    return rows


def _accuracy(compiled: Compiled) -> tuple[int, int]:
    evaluation = compiled.session.evaluation
    assert evaluation is not None and evaluation.labels is not None
    outputs = run_samples(compiled.graph, evaluation, interpreter=run_integer)[0]
    return correct_answers(outputs, evaluation.labels), len(evaluation)


def _row(compiled: Compiled, names: tuple[str, str, str], accuracy: tuple[int, int]) -> Row:
    artifact = compiled.c
    assert artifact is not None
    x = artifact.graph.inputs[0].type
    generator = torch.Generator().manual_seed(0)
    with tempfile.TemporaryDirectory(prefix="fxpress-coded-") as folder:
        network = SimulatedNetwork.of(artifact, Path(folder), load_target(CORE))
        for _ in range(CHECKED):
            sample = torch.randint(-128, 128, x.shape, generator=generator).to(x.dtype.torch)
            for got, wanted in zip(network.run([sample]), run_integer(artifact.graph, [sample]), strict=True):
                assert torch.equal(got, wanted), f"{names}: the core and the integer graph differ"
        profile = network.profile([sample])
    assert profile.cycles is not None
    prediction = artifact.prediction
    return Row(
        *names,
        network.footprint.flash,
        prediction.flash_bytes,
        artifact.plan.arena_bytes,
        profile.instructions,
        prediction.instructions,
        profile.cycles,
        *accuracy,
    )


def table(rows: list[Row]) -> str:
    """Coded rows below the plain rows that they are compared with."""
    header = ("network", "weights", "flash holds", "flash", "predicted", "arena", "instructions", "predicted",
              "cycles", "right")  # fmt: skip
    return text_table(header, [_cells(row) for row in rows])


def _cells(row: Row) -> tuple[str, ...]:
    return (row.network, row.weights, row.coding, f"{row.flash_bytes:,}", f"{row.predicted_flash_bytes:,}",
            f"{row.arena_bytes:,}", f"{row.instructions:,}", f"{row.predicted_instructions:,}", f"{row.cycles:,}",
            f"{row.correct}/{row.samples}")  # fmt: skip


def main() -> None:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("networks", nargs="*", default=["ic", "kws"], metavar="network")
    networks = parser.parse_args().networks
    torch.set_num_threads(1)
    rows = [row for network in networks for weights in QUANTIZE for row in measure(network, weights)]
    print(table(rows))
    RESULTS.write_text(json.dumps({"core": CORE, "rows": [asdict(row) for row in rows]}, indent=2) + "\n")


if __name__ == "__main__":
    main()
