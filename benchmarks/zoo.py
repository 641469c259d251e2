"""Capture checked on the public model zoo: each model in a separate process, from the text form of its graph alone.

    python benchmarks/zoo.py [own | NAME,NAME,...]        # all 138 public models by default; half an hour or more

Every graph must equal its model bit for bit, on two inputs, and leave the model unchanged; models whose control flow
depends on data must be refused with a line of their code. The zoo's packages are in a separate environment, which
shares torch with this one. Table on standard output, and benchmarks/results/zoo.json when all models are run.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from environment import interpreter

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("FXPRESS_SHARED", ROOT.parent / "shared"))
ENVIRONMENT = ROOT / "build" / "zoo"
RESULTS = ROOT / "benchmarks" / "results" / "zoo.json"
PLUGIN = "fxpress.compiler.frontend.capture:roundtrip"
REQUIREMENTS = ROOT / "benchmarks" / "zoo_requirements.txt"
DATA_DEPENDENT = re.compile(r"own:data_flow|tv:(ssd|fasterrcnn|fcos|retinanet|keypointrcnn|maskrcnn).*")
OTHER_KERNELS = {"own:mha"}
"""Torch computes this encoder by a fused kernel with other rounding when it is not traced."""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "models", nargs="?", default="public", help="public, own, or names with commas between"
    )
    parser.add_argument("--jobs", type=int, default=1, help="models at a time")
    parser.add_argument("--limit", type=float, default=300.0, help="seconds a model")
    options = parser.parse_args()
    check = SHARED / "zoo" / "accept_capture.py"
    if not check.is_file():
        print(f"the model zoo is not at {check.parent}; set FXPRESS_SHARED to the folder that holds it")
        return 2
    rows = _run(check, options.models, options.jobs, options.limit)
    failures = [failure for row in rows if (failure := _failure(row)) is not None]
    refused = sum(_is_refused(row) for row in rows)
    exact = sum(bool(row.get("exact")) for row in rows)
    print(
        f"\n{len(rows)} models: {exact} bit for bit, {refused} refused as they must be, {len(failures)} failed"
    )
    print("\n".join(failures))
    if options.models == "public":
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps([_summary(row) for row in rows], indent=1) + "\n")
    return 1 if failures else 0


def _run(check: Path, models: str, jobs: int, limit: float) -> list[dict[str, object]]:
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "rows.jsonl"
        python = interpreter(ENVIRONMENT, "-r", str(REQUIREMENTS))
        command = [python, check, "--list", models, "--plugin", PLUGIN, "--out", table]
        command += ["--jobs", str(jobs), "--limit", str(limit)]
        code = subprocess.run(list(map(str, command)), check=False).returncode
        if code not in (0, 1):  # 1: some models failed, as those must that are refused
            sys.exit(f"the run broke off with status {code}; nothing was written")
        return [json.loads(line) for line in table.read_text().splitlines()]


def _is_refused(row: dict[str, object]) -> bool:
    """True if the model was refused for its control flow, with a line of a file."""
    error = str(row.get("error", ""))
    return (
        error.startswith("CaptureError")
        and re.search(r"\.py:\d+: .* depends? on the data", error) is not None
    )


def _failure(row: dict[str, object]) -> str | None:
    name = str(row["name"])
    if DATA_DEPENDENT.fullmatch(name):
        return None if _is_refused(row) else f"{name}: not refused with its line: {row.get('error')}"
    if not row["ok"]:
        return f"{name}: {row.get('error', 'differs')}"
    return None if row["exact"] or name in OTHER_KERNELS else f"{name}: differs by {row['diff']}"


def _summary(row: dict[str, object]) -> dict[str, object]:
    kept = ("name", "ok", "exact", "diff", "second", "repeat", "t_capture_cpu", "error")
    return {key: row[key] for key in kept if key in row}


if __name__ == "__main__":
    sys.exit(main())
