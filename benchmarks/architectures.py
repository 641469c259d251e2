"""Architectures of Hugging Face, small and with random weights: what is captured, at which lengths, in which formats.

    python benchmarks/architectures.py                 # make bench-architectures
    python benchmarks/architectures.py gpt2,llama      # renews these rows of the results

The rows are made by `architecture_rows.py`, which says what a column is. Table on standard output, and
benchmarks/results/architectures.json. Exit status 1 if fewer networks are right in every column than `LEAST_RIGHT`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from environment import interpreter

from fxpress.compiler import text_table

FOLDER = Path(__file__).resolve().parent
RESULTS = FOLDER / "results" / "architectures.json"
COLUMNS = ("name", "nodes", "lengths", "int8", "int4", "snr_db", "alone", "falls_short")
LEAST_RIGHT = 25
Row = dict[str, Any]  # any: a number, a text, or None for a missing figure


def main() -> int:
    """Computes all rows, or the requested ones."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="?", default="", help="names with commas between; all if left out")
    options = parser.parse_args()
    python = _python()
    command = [python, "architecture_rows.py", *(options.names.split(",") if options.names else [])]
    rows: list[Row] = []
    with subprocess.Popen(command, cwd=FOLDER, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            rows.append(json.loads(line))
            print(f"{rows[-1]['name']}: {rows[-1]['falls_short'] or 'right'}", file=sys.stderr, flush=True)
    if process.returncode:
        return process.returncode
    made = {row["name"]: row for row in rows}
    if options.names:
        rows = [made.get(row["name"], row) for row in json.loads(RESULTS.read_text())]
    print(text_table(COLUMNS, [tuple(_cell(row[column]) for column in COLUMNS) for row in rows]))
    right = sum(not row["falls_short"] for row in rows)
    print(f"\n{right} of {len(rows)} networks are right in every column")
    RESULTS.write_text(json.dumps(rows, indent=1) + "\n")
    return 0 if right >= LEAST_RIGHT else 1


def _python() -> str:
    """This interpreter if it has transformers, else the interpreter of the environment of `zoo.py`."""
    if find_spec("transformers") is not None:
        return sys.executable
    return str(interpreter(FOLDER.parent / "build" / "zoo", "-r", str(FOLDER / "zoo_requirements.txt")))


def _cell(value: Any) -> str:  # any: as in a row
    if isinstance(value, bool) or value is None:
        return {None: "", True: "yes", False: "no"}[value]
    return f"{value:.1e}" if isinstance(value, float) and value < 1 else f"{value}"


if __name__ == "__main__":
    sys.exit(main())
