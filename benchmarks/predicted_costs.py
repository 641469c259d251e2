"""Predicted and counted instructions and cycles, for networks in int8, int16 and float on several cores.

    python benchmarks/predicted_costs.py [kws ad sww ic vww ...] [--forms int8 int16 float] [--cores CORE ...]

Networks are those of code_size.py. Counts are of one run on random inputs in the simulator, on a Cortex-M55 in QEMU;
cycles follow the core's published timing. The rows are added to benchmarks/results/costs.json.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from code_size import FORMS, compiled_graph
from kernel_costs import CORES, counted

from fxpress.backends.c import emit
from fxpress.compiler import text_table
from fxpress.ir import Graph
from fxpress.specs import COutput, load_target

RESULTS = Path(__file__).parent / "results" / "costs.json"
NETWORKS = ("kws", "ad", "sww", "ic", "vww")
HEADER = (
    "network",
    "form",
    "core",
    "predicted",
    "counted",
    "ratio",
    "cycles predicted",
    "cycles counted",
    "ratio",
)


@dataclass(frozen=True, slots=True)
class Row:
    """A network on a core; cycles are None if the core's timing is not published."""

    network: str
    form: str
    core: str
    predicted: int
    counted: int
    predicted_cycles: int | None
    counted_cycles: int | None

    @property
    def cells(self) -> tuple[str, ...]:
        """The row of the table."""
        return (
            *(self.network, self.form, self.core, f"{self.predicted:,}", f"{self.counted:,}"),
            f"{self.predicted / self.counted:.3f}",
            *self._cycles,
        )

    @property
    def _cycles(self) -> tuple[str, str, str]:
        if self.predicted_cycles is None or self.counted_cycles is None:
            return "", "", ""
        ratio = self.predicted_cycles / self.counted_cycles
        return f"{self.predicted_cycles:,}", f"{self.counted_cycles:,}", f"{ratio:.3f}"


def main() -> None:
    """Predicts, counts, prints, writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("networks", nargs="*", metavar="network", default=NETWORKS)
    parser.add_argument("--forms", nargs="*", choices=FORMS, default=["int8"])
    parser.add_argument("--cores", nargs="*", choices=CORES, default=CORES)
    options = parser.parse_args()
    known = json.loads(RESULTS.read_text()) if RESULTS.is_file() else []
    rows = {(row["network"], row["form"], row["core"]): Row(**row) for row in known}
    for name in options.networks:
        for form in options.forms:
            graph, output = compiled_graph(name, form)
            for core in options.cores:
                row = measured(name, form, core, graph, output)
                rows[name, form, core] = row
                print(" ".join(row.cells), flush=True)
                RESULTS.write_text(json.dumps([asdict(rows[key]) for key in sorted(rows)], indent=1) + "\n")
    print(f"\n{text_table(HEADER, [rows[key].cells for key in sorted(rows)])}")


def measured(name: str, form: str, core: str, graph: Graph, output: COutput) -> Row:
    """Prediction and count of a network on a core."""
    target = load_target(core).model_copy(update={"ram": None, "flash": None, "stack": None})
    artifact = emit(graph, output, target)
    found, total = artifact.prediction, counted(artifact, target).total
    return Row(name, form, core, found.instructions, total.instructions, found.cycles, total.cycles)


if __name__ == "__main__":
    main()
