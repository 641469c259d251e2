"""ResNet-8 in 32 KiB of RAM and 48 KiB of flash: right answers, linked flash, arena and cycles of the recipe.

    python benchmarks/small_target.py      # table, and benchmarks/results/small_target.json

The recipe is examples/mixed_precision/ic_small.yaml; it was chosen by the loss on the images that training holds back.
The images for the table are those of `mixed.py`, which neither calibration nor training sees. The C is compared with
the integer graph byte for byte, on this machine and on the simulated core.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from mixed import ROOT, bits_of, evaluation, hold_equal

from fxpress.compiler import compile_model, correct_answers, run_samples, text_table
from fxpress.ir import run, run_integer

SPEC = ROOT / "examples" / "mixed_precision" / "ic_small.yaml"
RESULTS = ROOT / "benchmarks" / "results" / "small_target.json"
KIB = 1024


@dataclass(frozen=True)
class Row:
    """Correct answers of `samples`; sizes in bytes, `flash` as linked, `arena` including the image."""

    bits: str
    correct: int
    float_correct: int
    samples: int
    flash: int
    arena: int
    stack: int
    instructions: int
    cycles: int | None
    equal_inputs: int


def main() -> None:
    """Compiles, scores, counts, prints, writes; ends with an error if the network exceeds the machine."""
    compiled = compile_model(SPEC)
    samples = evaluation("ic", compiled)
    assert samples.labels is not None and compiled.c is not None
    with tempfile.TemporaryDirectory(prefix="fxpress-small-") as folder:
        compiled.write(folder)
        counts, equal = hold_equal(compiled, Path(folder), samples)
    graphs = ((compiled.graph, run_integer), (compiled.session.captured, run))
    correct, float_correct = (
        correct_answers(run_samples(graph, samples, interpreter=interpreter)[0], samples.labels)
        for graph, interpreter in graphs
    )
    row = Row(
        bits_of(compiled.graph),
        correct,
        float_correct,
        len(samples),
        counts.footprint.flash,
        compiled.c.plan.arena_bytes,
        counts.stack_bytes,
        counts.instructions,
        counts.cycles,
        equal,
    )
    print(
        text_table(
            tuple(asdict(row)),
            [tuple(f"{value:,}" if isinstance(value, int) else str(value) for value in asdict(row).values())],
        )
    )
    RESULTS.write_text(json.dumps(asdict(row), indent=1) + "\n")
    if row.flash > 48 * KIB or row.arena + row.stack > 32 * KIB:
        raise SystemExit("the network exceeds 48 KiB of flash or 32 KiB of RAM")


if __name__ == "__main__":
    main()
