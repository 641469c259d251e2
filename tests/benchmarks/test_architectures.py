"""The recorded table of Hugging Face architectures."""

import json
import re
from pathlib import Path

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
ROWS = json.loads((BENCHMARKS / "results" / "architectures.json").read_text())


def test_the_rows_are_those_of_the_configurations() -> None:
    table = (BENCHMARKS / "architecture_configs.py").read_text().partition("ARCHITECTURES: ")[2]
    assert [row["name"] for row in ROWS] == re.findall(r'^    "(\w+)": ', table, re.MULTILINE)


def test_most_architectures_are_right_in_every_column_and_the_others_say_what_falls_short() -> None:
    right = [row for row in ROWS if not row["falls_short"]]
    assert len(right) >= 25 and len(ROWS) >= 30
    assert all(row["lengths"] < 1e-4 and row["snr_db"] >= 25 and row["alone"] for row in right)
    assert all(max(row["int8"], row["int4"]) < 1e-3 for row in right)
