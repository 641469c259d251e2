"""Networks of public packages, compiled to int8 for a Cortex-M4: accuracy, noise, and predicted against linked size.

    python benchmarks/trained.py [pnet rnet ...]          # table, and benchmarks/results/trained.json

Each spec of examples/trained_networks unchanged, and with 16-bit activations if 8-bit activations lose more than a
point of its metric. The integer graph is measured on the whole evaluation set. The C is compared with that graph,
byte for byte unless layers compute in float: on the host on up to 64 samples, on a simulated core on one.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from fxpress.compiler import (
    Compiled,
    Counts,
    Samples,
    compile_model,
    load_compiled,
    run_samples,
    snr_db,
    text_table,
)
from fxpress.ir import run_integer
from fxpress.specs.options import QuantizeOptions

ROOT = Path(__file__).resolve().parents[1]
SPECS = ROOT / "examples" / "trained_networks"
RESULTS = ROOT / "benchmarks" / "results" / "trained.json"
NAMES = ("pnet", "rnet", "okay_nabu", "vad", "crepe", "ic_large", "albert")
CORE = "cortex-m4f"
CHECKED = 64
WIDE = ("passes[2].activations=int16", "outputs.c.io=auto")
LOSS_POINTS = 1.0
"""Drop of the metric above which 16-bit activations are measured too."""
FEWEST_CLASSES = 3


@dataclass(frozen=True)
class Row:
    """One network with one storage of activations; sizes in bytes.

    `snr_db` and `same_percent` are of each output on the checked samples: the latter is the share of the samples, or of
    the rows of an output [n, rows, classes], whose largest class is that of the float network.
    """

    network: str
    activations: str
    metric: str
    samples: int
    float_value: float
    integer_value: float
    snr_db: dict[str, float]
    same_percent: dict[str, float]
    checked: int
    macs: int
    float_layers: int
    arena_bytes: int
    flash_bytes: int
    predicted_flash_bytes: int
    instructions: int
    predicted_instructions: int
    notes: tuple[str, ...]

    @property
    def flash_ratio(self) -> float:
        return self.predicted_flash_bytes / self.flash_bytes

    @property
    def instruction_ratio(self) -> float:
        return self.predicted_instructions / self.instructions


def measure(network: str) -> list[Row]:
    """The network of its spec, and with 16-bit activations if those of 8 bits lose accuracy."""
    row = _row(network)
    loses = row.activations == "int8" and row.integer_value < row.float_value - LOSS_POINTS
    return [row, _row(network, WIDE)] if loses else [row]


def _row(network: str, overrides: Sequence[str] = ()) -> Row:
    compiled = compile_model(SPECS / f"{network}.yaml", overrides=overrides, enforce_budget=False)
    artifact, evaluation = compiled.c, compiled.session.evaluation
    assert artifact is not None and evaluation is not None
    checked = evaluation.first(CHECKED)
    integer = run_samples(compiled.graph, checked, interpreter=run_integer)
    counts = _hold_equal(compiled, checked, integer)
    reference = run_samples(compiled.session.captured, checked)
    of_float, of_integer = compiled.report.measurements
    (options,) = (step for step in compiled.session.spec.passes if isinstance(step, QuantizeOptions))
    return Row(
        network=network,
        activations=options.activations,
        metric=of_integer.metric,
        samples=of_integer.samples,
        float_value=of_float.value,
        integer_value=of_integer.value,
        snr_db={
            name: snr_db(exact, found)
            for name, exact, found in zip(compiled.graph.output_names, reference, integer, strict=True)
        },
        same_percent={
            name: 100 * float((exact.argmax(-1) == found.argmax(-1)).double().mean())
            for name, exact, found in zip(compiled.graph.output_names, reference, integer, strict=True)
            if exact.ndim in (2, 3) and exact.shape[-1] >= FEWEST_CLASSES
        },
        checked=len(checked),
        macs=compiled.report.macs_before,
        float_layers=len(compiled.report.float_layers),
        arena_bytes=artifact.plan.arena_bytes,
        flash_bytes=counts.footprint.flash,
        predicted_flash_bytes=artifact.prediction.flash_bytes,
        instructions=counts.instructions,
        predicted_instructions=artifact.prediction.instructions,
        notes=compiled.report.notes,
    )


def _hold_equal(compiled: Compiled, samples: Samples, expected: Sequence[Tensor]) -> Counts:
    """Counts of one run on the core; AssertionError if C differs from the integer graph, on the core or on the host."""
    with tempfile.TemporaryDirectory(prefix="fxpress-trained-") as folder:
        directory = Path(folder) / "network"
        compiled.write(directory)
        host = load_compiled(directory).run(samples, on="host")
        simulated = load_compiled(directory).run(samples.first(1), on=CORE)
    assert compiled.c is not None and simulated.counts is not None
    is_exact = not any(v.type.dtype.is_floating for node in compiled.c.graph.nodes for v in node.outputs)
    for place, execution in (("host", host), (CORE, simulated)):
        for wanted, found in zip(expected, execution.outputs, strict=True):
            assert _agree(wanted[: len(found)], found, is_exact), f"{compiled.report.name}: {place} differs"
    return simulated.counts


def _agree(wanted: Tensor, found: Tensor, is_exact: bool) -> bool:
    """True if equal; with layers in float, whose rounding depends on libm, true from 40 dB."""
    return torch.equal(wanted, found) if is_exact else snr_db(wanted, found) > 40


def table(rows: Sequence[Row]) -> str:
    """Metrics in percent; ratios are predicted over linked or counted."""
    header = ("network", "activations", "metric", "float", "integer", "samples", "SNR of outputs", "same class",
              "equal", "flash linked", "predicted", "ratio", "arena", "instructions", "ratio")  # fmt: skip
    return text_table(header, [_cells(row) for row in rows])


def _cells(row: Row) -> tuple[str, ...]:
    snr = ", ".join(f"{name} {value:.1f} dB" for name, value in row.snr_db.items())
    same = ", ".join(f"{value:.2f}" for value in row.same_percent.values())
    return (row.network, row.activations, row.metric, f"{row.float_value:.2f}", f"{row.integer_value:.2f}",
            f"{row.samples}", snr, same, f"{row.checked}", f"{row.flash_bytes:,}", f"{row.predicted_flash_bytes:,}",
            f"{row.flash_ratio:.3f}", f"{row.arena_bytes:,}", f"{row.instructions:,}",
            f"{row.instruction_ratio:.3f}")  # fmt: skip


def main() -> None:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", default=NAMES, metavar="NETWORK", help=", ".join(NAMES))
    names = parser.parse_args().names
    torch.set_num_threads(1)
    rows: list[Row] = []
    for name in names:
        rows += (found := measure(name))
        print(table(found), flush=True)
    print(f"\n{table(rows)}\n\nratio: predicted over linked flash, and over counted instructions")
    _write(rows)


def _write(rows: Sequence[Row]) -> None:
    """Replaces the rows of the same networks; the others stay."""
    written = json.loads(RESULTS.read_text())["rows"] if RESULTS.is_file() else []
    measured = {row.network for row in rows}
    kept = [row for row in written if row["network"] not in measured] + [asdict(row) for row in rows]
    kept.sort(key=lambda row: NAMES.index(row["network"]))
    RESULTS.write_text(json.dumps({"core": CORE, "rows": kept}, indent=2) + "\n")


if __name__ == "__main__":
    main()
