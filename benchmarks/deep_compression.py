"""Deep Compression down to C on a simulated Cortex-M4: bytes of flash, accuracy, instructions.

    python benchmarks/deep_compression.py [lenet300 lenet5]      # table, and benchmarks/results/deep_compression.json

Each network of examples/methods/deep_compression: pruned, with shared values, and stored as Huffman codes from which
the C runs; held byte for byte against the integer graph on two images. Beside it the same graph with plain weights.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from fxpress.backends.c import CArtifact, SimulatedNetwork, emit
from fxpress.compiler import compile_model, text_table
from fxpress.ir import run_integer
from fxpress.specs import COutput, load_target

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples" / "methods"
RESULTS = ROOT / "benchmarks" / "results" / "deep_compression.json"
CORE = "cortex-m4f"
NETWORKS = ("lenet300", "lenet5")
CHECKED = 2
_FLOAT_BYTES = 4


@dataclass(frozen=True)
class Row:
    """One network, and the form of its weights; sizes in bytes, accuracies in percent of the test images."""

    network: str
    weights: str
    float_bytes: int  # of the float32 weights
    flash_bytes: int  # with the code
    predicted_flash_bytes: int
    arena_bytes: int
    instructions: int
    predicted_instructions: int
    cycles: int
    correct: float
    correct_float: float


def measure(network: str) -> list[Row]:
    """Rows of a network; AssertionError if the core and the integer graph differ."""
    compiled = compile_model(EXAMPLES / "deep_compression" / f"{network}.yaml")
    artifact = compiled.c
    assert artifact is not None
    unlimited = load_target(CORE).model_copy(update={"ram": None, "flash": None})
    plain = emit(compiled.graph, COutput(name="plain"), unlimited)
    measured = [measurement.value for measurement in compiled.report.measurements]
    original = compiled.session.captured
    float_bytes = _FLOAT_BYTES * sum(value.type.numel for value in original.constants)
    accuracies = measured[-1], measured[0]
    return [
        _row(form, (network, weights, float_bytes), accuracies)
        for form, weights in ((plain, "int8"), (artifact, "coded"))
    ]


def _row(artifact: CArtifact, names: tuple[str, str, int], accuracies: tuple[float, float]) -> Row:
    x = artifact.graph.inputs[0].type
    generator = torch.Generator().manual_seed(0)
    with tempfile.TemporaryDirectory(prefix="fxpress-deep-") as folder:
        network = SimulatedNetwork.of(artifact, Path(folder), load_target(CORE))
        for _ in range(CHECKED):
            sample = torch.randint(-128, 128, x.shape, generator=generator).to(x.dtype.torch)
            for got, wanted in zip(network.run([sample]), run_integer(artifact.graph, [sample]), strict=True):
                assert torch.equal(got, wanted), f"{names}: the core and the integer graph differ"
        profile = network.profile([sample])
    assert profile.cycles is not None
    return Row(
        *names,
        network.footprint.flash,
        artifact.prediction.flash_bytes,
        artifact.plan.arena_bytes,
        profile.instructions,
        artifact.prediction.instructions,
        profile.cycles,
        *accuracies,
    )


def table(rows: list[Row]) -> str:
    """A row of each form."""
    header = ("network", "weights", "flash", "of float32", "predicted", "arena", "instructions", "predicted", "cycles",
              "correct, %", "float, %")  # fmt: skip
    return text_table(header, [_cells(row) for row in rows])


def _cells(row: Row) -> tuple[str, ...]:
    return (row.network, row.weights, f"{row.flash_bytes:,}", f"1/{row.float_bytes / row.flash_bytes:.1f}",
            f"{row.predicted_flash_bytes:,}", f"{row.arena_bytes:,}", f"{row.instructions:,}",
            f"{row.predicted_instructions:,}", f"{row.cycles:,}", f"{row.correct:.2f}",
            f"{row.correct_float:.2f}")  # fmt: skip


def main() -> None:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("networks", nargs="*", default=NETWORKS, metavar="network")
    networks = parser.parse_args().networks
    torch.set_num_threads(1)
    subprocess.run([sys.executable, str(EXAMPLES / "train.py"), *networks], check=True)
    rows = [row for network in networks for row in measure(network)]
    print(table(rows))
    RESULTS.write_text(json.dumps({"core": CORE, "rows": [asdict(row) for row in rows]}, indent=2) + "\n")


if __name__ == "__main__":
    main()
