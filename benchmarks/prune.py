"""Structured pruning checked on the public model zoo, and compared with Torch-Pruning on ten of its models.

    python benchmarks/prune.py [NAME,NAME,...] [--python PATH]        # all public models by default; half an hour

Half the channels of every group are removed; the cut graph must equal the masked one on the model's own input and a
second one. Each model runs in a separate process. Table on standard output, and benchmarks/results/prune.json when
all models are run: `seconds` are CPU seconds of analysis, scores, allocation and cut, `capture_seconds` those of the
capture.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import zoo
from environment import interpreter

WORKER = Path(__file__).with_name("prune_model.py")
RESULTS = zoo.ROOT / "benchmarks" / "results" / "prune.json"
RIVAL_REQUIREMENT = "torch-pruning==1.6.1"
SIDE_BY_SIDE = (
    *(
        "own:resnet8",
        "own:mobilenet_v1_025",
        "tv:resnet18",
        "tv:resnet50",
        "tv:densenet121",
        "tv:densenet201",
    ),
    *("tv:mobilenet_v2", "tv:swin_t", "tv:convnext_tiny", "hf:llama"),
)
Row = dict[str, Any]  # any: columns of the result


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="?", default="public", help="public, or names with commas between")
    parser.add_argument("--jobs", type=int, default=1, help="models at a time")
    parser.add_argument("--limit", type=float, default=300.0, help="seconds a model")
    parser.add_argument("--python", type=Path, help="an interpreter that has the zoo's packages")
    parser.add_argument("--write", type=Path, default=RESULTS, help="table to write, or to bring up to date")
    options = parser.parse_args()
    listed = zoo.SHARED / "zoo" / "lists_public.json"
    if not listed.is_file():
        print(f"the model zoo is not at {listed.parent}; set FXPRESS_SHARED to the folder that holds it")
        return 2
    python = options.python or _environment()
    names = (
        json.loads(listed.read_text())["public"] if options.models == "public" else options.models.split(",")
    )
    rows: dict[str, Row] = {}
    with ThreadPoolExecutor(options.jobs) as pool:
        shares = [names[start :: options.jobs] for start in range(options.jobs)]
        list(pool.map(lambda share: _run(python, share, options.limit, rows), shares))
    ordered = [rows[name] for name in names if name in rows]
    _write(options.write, ordered, whole=options.models == "public")
    print(_summary(ordered))
    return 1 if len(ordered) < len(names) or any(row["wrong"] for row in ordered) else 0


def _write(path: Path, rows: Sequence[Row], *, whole: bool) -> None:
    """Writes the whole table; rows of a few models replace theirs in an existing table."""
    if not whole:
        if not path.is_file():
            return
        fresh = {row["name"]: row for row in rows}
        rows = [fresh.get(row["name"], row) for row in json.loads(path.read_text())]
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text(json.dumps(rows, indent=1) + "\n")


def _environment() -> Path:
    python = interpreter(zoo.ENVIRONMENT, "-r", str(zoo.REQUIREMENTS))
    install = [str(python), "-m", "pip", "install", "--quiet", "--no-deps", RIVAL_REQUIREMENT]
    subprocess.run(install, check=True)
    return python


def _run(python: Path, names: Sequence[str], limit: float, rows: dict[str, Row]) -> None:
    """Runs one worker over its models; each row is printed and entered when it is complete."""
    models = [f"{name}+rival" if name in SIDE_BY_SIDE else name for name in names]
    command = [str(item) for item in (python, WORKER, zoo.SHARED / "zoo", limit, *models)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as worker:
        assert worker.stdout is not None
        for line in worker.stdout:
            if not line.startswith("RESULT "):
                continue
            row = json.loads(line[len("RESULT ") :])
            rows[row["name"]] = row
            state = next((word for word in ("verified", "wrong", "refused") if row[word]), "FAILED")
            shown = ("params_ratio", "macs_ratio", "seconds", "rival", "times_faster")
            figures = "  ".join(f"{key}={row[key]}" for key in shown if key in row)
            print(f"{state:9s}{row['name']:42s}{figures}  {row['reason'][:120]}", flush=True)


def _summary(rows: Sequence[Row]) -> str:
    library = [row for row in rows if not row["name"].startswith("own:")]
    seconds = sorted(row["seconds"] for row in rows if "seconds" in row)
    lines = [
        f"\n{len(rows)} models: {sum(r['verified'] for r in rows)} pruned and verified, "
        f"{sum(r['wrong'] for r in rows)} wrong, {sum(r['refused'] for r in rows)} refused",
        f"of {len(library)} library models {100 * sum(r['verified'] for r in library) / max(len(library), 1):.1f} %",
    ]
    silent = [r["name"] for r in rows if r["verified"] and not r["largest_output"]]
    if silent:
        lines.append(f"all outputs are zero, which proves little: {', '.join(silent)}")
    if seconds:
        lines.append(f"CPU seconds: median {seconds[len(seconds) // 2]}, most {seconds[-1]}")
    lines += [
        f"  {r['name']}: {r.get('times_faster', '-')} times as fast as Torch-Pruning, which {r['rival']}"
        for r in rows
        if "rival" in r
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
