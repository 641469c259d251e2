"""The history of benchmark figures: recorded, read back, compared."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
A, B = "a" * 40, "b" * 40


@pytest.fixture(scope="module")
def history() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_history", FOLDER / "history.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def entry(module: ModuleType, commit: str, machine: str = "one", **figures: float) -> object:
    return module.Entry(
        "mcu", commit, False, machine, {f"ic.{name}": value for name, value in figures.items()}
    )


@pytest.fixture
def recorded(history: ModuleType, tmp_path: Path) -> Path:
    """Two commits: cycles fall by a tenth, flash grows by 0.1 %, one figure is new."""
    file = tmp_path / "history.jsonl"
    history.append(file, entry(history, A, cycles=1, flash=1))  # an earlier run of the same commit
    history.append(file, entry(history, A, cycles=1000, flash=10000))
    history.append(file, entry(history, B, cycles=900, flash=10010, stack=128))
    return file


def test_what_is_appended_is_read_back(history: ModuleType, recorded: Path) -> None:
    assert [e.commit for e in history.read(recorded)] == [A, A, B]
    assert history.read(recorded)[-1].figures == {"ic.cycles": 900, "ic.flash": 10010, "ic.stack": 128}
    assert history.read(recorded.parent / "none.jsonl") == []


def test_figures_are_named_by_the_identity_of_their_row(history: ModuleType) -> None:
    rows = [
        {
            "network": "ic",
            "weights": "int4",
            "coding": "plain",
            "flash": 7,
            "ok": True,
            "anchor": {"flash": 9},
        }
    ]
    found = dict(history.figures("coded_weights", {"core": "cortex-m4f", "rows": rows}))
    assert found == {"rows.ic int4 plain.flash": 7, "rows.ic int4 plain.anchor.flash": 9}


@pytest.mark.parametrize("name", sorted(path.stem for path in (FOLDER / "results").glob("*.json")))
def test_every_results_file_has_figures_with_names_of_their_own(history: ModuleType, name: str) -> None:
    content = json.loads((FOLDER / "results" / f"{name}.json").read_text())
    found = list(history.figures(name, content))
    assert found and len({path for path, _ in found}) == len(found)


def test_a_comparison_shows_what_differs_by_more_than_the_threshold(
    history: ModuleType, recorded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    history.main(["--history", str(recorded), "compare", "aaaa", "bbbb"])
    printed = capsys.readouterr().out
    assert "1 of 2 figures differ by more than 0.5 %" in printed
    assert "ic.cycles" in printed and "1,000" in printed and "0.900" in printed
    assert "ic.flash" not in printed and "only in bbbbbbbbbb: ic.stack" in printed
    history.main(["--history", str(recorded), "compare", "aaaa", "bbbb", "--percent", "0"])
    assert "ic.flash" in capsys.readouterr().out


def test_a_comparison_says_when_the_machines_differ_or_nothing_is_shared(history: ModuleType) -> None:
    entries = [entry(history, A, "one", cycles=1), entry(history, B, "two", cycles=1)]
    assert "the machines differ: one; two" in history.comparison(entries, A, B, percent=0.5)
    assert history.comparison(entries[:1], A, B, percent=0.5) == "no benchmark was recorded for both commits"


def test_an_unknown_commit_is_refused(
    history: ModuleType, recorded: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        history.main(["--history", str(recorded), "compare", "no-such-commit", "bbbb"])
    assert "no recorded commit and no revision of git: no-such-commit" in capsys.readouterr().err


def test_the_history_of_the_repository_reads(history: ModuleType) -> None:
    entries = history.read(FOLDER / "history.jsonl")
    assert entries and all(len(e.commit) == 40 and e.figures and e.machine for e in entries)
