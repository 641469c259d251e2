"""History of benchmark figures: one line of benchmarks/history.jsonl for each run, with commit, machine and figures.

    python benchmarks/history.py record mcu                # append the figures of benchmarks/results/mcu.json
    python benchmarks/history.py compare A B               # figures that differ between two commits
    python benchmarks/history.py list                      # recorded runs

`make bench-mcu` and the others record their run. A and B are commits as git names them (`HEAD`, `v0.1.0`, `4c8100b`).
The last run of a commit counts. Figures of a working tree with uncommitted changes are recorded with its commit, and
marked by an asterisk in the list.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from fxpress.compiler import text_table

FOLDER = Path(__file__).resolve().parent
HISTORY = FOLDER / "history.jsonl"
RESULTS = FOLDER / "results"
IDENTITY: Mapping[str, tuple[str, ...]] = {
    "allocation": ("name",),
    "architectures": ("name",),
    "coded_weights": ("network", "weights", "coding"),
    "combinations": ("network", "order"),
    "deep_compression": ("network", "weights"),
    "folder": ("name",),
    "hessian": ("name", "method", "classes"),
    "low_bits": ("layer", "bits"),
    "llm": ("form", "method", "bits"),
    "mcu": ("name",),
    "methods": ("method",),
    "memory": ("network", "kind", "buffers", "limit_bytes"),
    "memory_bounds": ("network", "kind", "buffers"),
    "costs": ("network", "form", "core"),
    "mixed": ("network", "budget_percent", "method", "recipe"),
    "prune": ("name",),
    "sparse_blocks": ("core", "layer"),
    "stream": ("name",),
    "recurrent": ("name",),
    "torch": ("name",),
    "trained": ("network", "activations"),
    "zoo": ("name",),
}
"""Fields that identify a row, for each benchmark with a file in benchmarks/results."""

Json = object  # what json.loads returns


@dataclass(frozen=True)
class Entry:
    """Figures of one run by their path, such as `networks.ic.cycles`."""

    benchmark: str
    commit: str
    modified: bool
    machine: str
    figures: Mapping[str, float]


def main(arguments: Sequence[str] | None = None) -> None:
    """Record, compare or list."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--history", type=Path, default=HISTORY)
    commands = parser.add_subparsers(dest="command", required=True)
    recording = commands.add_parser("record", help="append the figures of a results file")
    recording.add_argument("benchmark", choices=tuple(IDENTITY))
    comparing = commands.add_parser("compare", help="figures that differ between two commits")
    comparing.add_argument("a", metavar="A")
    comparing.add_argument("b", metavar="B")
    comparing.add_argument("--percent", type=float, default=0.5, help="smallest difference that is shown")
    commands.add_parser("list", help="recorded runs")
    options = parser.parse_args(arguments)
    if options.command == "record":
        append(options.history, recorded(options.benchmark))
        return
    entries = read(options.history)
    if options.command == "list":
        rows = [
            (e.commit[:10] + "*" * e.modified, e.benchmark, f"{len(e.figures)}", e.machine) for e in entries
        ]
        print(text_table(("commit", "benchmark", "figures", "machine"), rows))
        return
    commits = {entry.commit for entry in entries}
    a, b = (_resolved(revision, commits, parser) for revision in (options.a, options.b))
    print(comparison(entries, a, b, percent=options.percent))


def recorded(benchmark: str, results: Path = RESULTS) -> Entry:
    """The figures of a results file, as of the present commit on this machine."""
    content: Json = json.loads((results / f"{benchmark}.json").read_text())
    modified = bool(_git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks/results"))
    return Entry(benchmark, _git("rev-parse", "HEAD"), modified, machine(), dict(figures(benchmark, content)))


def figures(benchmark: str, content: Json, path: str = "") -> Iterator[tuple[str, float]]:
    """All numbers in a results file with their paths; rows of lists are named by their identity."""
    if isinstance(content, Mapping):
        for key, value in content.items():
            yield from figures(benchmark, value, f"{path}.{key}" if path else str(key))
    elif isinstance(content, Sequence) and not isinstance(content, str):
        for row in content:
            if isinstance(row, Mapping):
                fields = " ".join(str(row[field]) for field in IDENTITY[benchmark] if field in row)
                own = {key: value for key, value in row.items() if key not in IDENTITY[benchmark]}
                yield from figures(benchmark, own, f"{path}.{fields}" if path else fields)
    elif isinstance(content, int | float) and not isinstance(content, bool):
        yield path, content


def append(history: Path, entry: Entry) -> None:
    """Add a line."""
    with history.open("a") as file:
        file.write(json.dumps(asdict(entry)) + "\n")


def read(history: Path) -> list[Entry]:
    """All runs, oldest first; none if there is no file."""
    lines = history.read_text().splitlines() if history.exists() else []
    return [Entry(**json.loads(line)) for line in lines]


def comparison(entries: Iterable[Entry], a: str, b: str, *, percent: float) -> str:
    """Tables of figures that differ by at least `percent`, for each benchmark that both commits have."""
    last = {(entry.commit, entry.benchmark): entry for entry in entries}
    shared = [name for name in IDENTITY if (a, name) in last and (b, name) in last]
    if not shared:
        return "no benchmark was recorded for both commits"
    parts = []
    for name in shared:
        old, new = last[a, name], last[b, name]
        both = sorted(old.figures.keys() & new.figures.keys())
        rows = [
            (
                path,
                _shown(old.figures[path]),
                _shown(new.figures[path]),
                _ratio(old.figures[path], new.figures[path]),
            )
            for path in both
            if abs(new.figures[path] - old.figures[path]) > percent / 100 * abs(old.figures[path])
        ]
        title = f"{name}: {len(rows)} of {len(both)} figures differ by more than {percent:g} %"
        parts.append(f"{title}\n{text_table(('figure', a[:10], b[:10], 'ratio'), rows)}" if rows else title)
        parts += [f"only in {e.commit[:10]}: {', '.join(p)}" for e, p in _alone(old, new) if p]
        if old.machine != new.machine:
            parts.append(f"the machines differ: {old.machine}; {new.machine}")
    return "\n\n".join(parts)


def machine() -> str:
    """Processor, number of cores and system of this computer."""
    models = Path("/proc/cpuinfo")
    lines = models.read_text().splitlines() if models.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{named[0] if named else platform.machine()}, {os.cpu_count()} cores, {platform.system()}"


def _alone(old: Entry, new: Entry) -> list[tuple[Entry, list[str]]]:
    return [(x, sorted(x.figures.keys() - y.figures.keys())) for x, y in ((old, new), (new, old))]


def _shown(figure: float) -> str:
    return f"{figure:,}" if isinstance(figure, int) else f"{figure:.5g}"


def _ratio(old: float, new: float) -> str:
    return f"{new / old:.3f}" if old else ""


def _resolved(revision: str, commits: set[str], parser: argparse.ArgumentParser) -> str:
    """The recorded commit of a revision; git is asked if it is no prefix of exactly one."""
    matching = [commit for commit in commits if commit.startswith(revision)]
    if len(matching) == 1:
        return matching[0]
    try:
        return _git("rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}")
    except (OSError, subprocess.CalledProcessError):
        parser.error(f"no recorded commit and no revision of git: {revision}")


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(FOLDER), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    main()
