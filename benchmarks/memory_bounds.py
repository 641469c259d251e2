"""Arenas against the least that any order of execution and any offsets could take, and what the order gains.

    python benchmarks/memory_bounds.py                  # make bench-memory-bounds
    python benchmarks/memory_bounds.py kws own:unet     # renews these rows of the results

Networks are the public model zoo as far as it compiles to C, those of the examples, typical ones where they are at
hand, and networks with branches and random weights (`branched_networks.py`), in int8 if they quantize, else in float32,
with inputs and outputs beside the arena and in it. The rows are made by `memory_bound_rows.py`. `bound` is proven by
the search for the order, and by that for the offsets where every order is the same: an arena of that size is the
optimum. `source` is the arena in the order of the model's code, `greedy` that of the greedy order. Seconds are those of
search, offsets and proof. Table on standard output, and benchmarks/results/memory_bounds.json.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from environment import interpreter

from fxpress.compiler import text_table

FOLDER = Path(__file__).resolve().parent
RESULTS = FOLDER / "results" / "memory_bounds.json"
CORE = "cortex-m4f"
LIMIT_SECONDS = 10.0
LEAST_SHARE = 0.95
Row = dict[str, Any]  # any: a number, a text, or a truth value


def main() -> int:
    """Computes all rows, or the requested ones; exit status 1 if fewer arenas are proven than `LEAST_SHARE`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="networks; all if left out")
    names = parser.parse_args().names
    python = interpreter(FOLDER.parent / "build" / "zoo", "-r", str(FOLDER / "zoo_requirements.txt"))
    command = [str(python), "memory_bound_rows.py", *names]
    with subprocess.Popen(command, cwd=FOLDER, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for number, line in enumerate(process.stdout):
            found = json.loads(line)
            print(
                f"{found['network']}: {found['refusal'] or _summary(found['rows'])}",
                file=sys.stderr,
                flush=True,
            )
            _write(found, keeping=bool(names) or number > 0)
    if process.returncode:
        return process.returncode
    results = json.loads(RESULTS.read_text())
    print(table(results["networks"]))
    print(f"{len(results['refused'])} networks do not compile to C:")
    print("\n".join(f"  {row['network']}: {row['refusal']}" for row in results["refused"]))
    return 0 if _share(results["networks"]) >= LEAST_SHARE else 1


def _write(found: Row, *, keeping: bool) -> None:
    """Replaces the rows of a network; without `keeping`, rows of other networks are removed."""
    kept = keeping and RESULTS.is_file()
    before = json.loads(RESULTS.read_text()) if kept else {"networks": [], "refused": []}
    networks, refused = (
        [row for row in before[key] if row["network"] != found["network"]] for key in ("networks", "refused")
    )
    networks += found["rows"]
    if found["refusal"]:
        refused.append({"network": found["network"], "refusal": found["refusal"]})
    results = {"core": CORE, "networks": networks, "refused": refused}
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")


def _summary(rows: Sequence[Row]) -> str:
    return ", ".join(
        f"{row['arena_bytes']:,} B, at least {row['bound_bytes']:,}, {row['seconds']:.1f} s" for row in rows
    )


def table(rows: Sequence[Row]) -> str:
    """One line for each row, and the number of arenas that are proven to be the least."""
    columns = {
        "network": "network",
        "kind": "form",
        "buffers": "buffers",
        "steps": "steps",
        "source_bytes": "source",
        "greedy_bytes": "greedy",
        "arena_bytes": "arena",
        "bound_bytes": "bound",
        "offsets_are_least": "offsets least",
        "order_is_least": "order least",
        "is_proven": "proven",
        "seconds": "s",
    }
    lines = [tuple(_cell(row[key]) for key in columns) for row in rows]
    slowest = max((row["seconds"] for row in rows), default=0.0)
    return (
        f"{text_table(tuple(columns.values()), lines)}\n{100 * _share(rows):.1f} % of {len(rows)} arenas are proven "
        f"to be the least of any order within {LIMIT_SECONDS:.0f} s; search, offsets and proof take "
        f"at most {slowest:.1f} s"
    )


def _share(rows: Sequence[Row]) -> float:
    """Fraction of arenas that are proven in time."""
    proven = [row for row in rows if row["is_proven"] and row["seconds"] <= LIMIT_SECONDS]
    return len(proven) / max(len(rows), 1)


def _cell(value: Any) -> str:  # any: as in a row
    if isinstance(value, bool):
        return "yes" if value else ""
    return f"{value:,}" if isinstance(value, int) else f"{value}"


if __name__ == "__main__":
    sys.exit(main())
