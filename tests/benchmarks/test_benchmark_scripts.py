"""Every benchmark starts: its imports hold, and where it takes options it says which."""

import importlib.util
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
SCRIPTS = sorted(FOLDER.glob("*.py"))
ONLY_WITH = {"hessian_probes.py": "pyhessian"}
"""Packages of the environments that other benchmarks make for a script."""


@pytest.fixture(autouse=True)
def folder_of_scripts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Scripts import their neighbours, and leave none of these modules in `sys.modules`."""
    monkeypatch.syspath_prepend(FOLDER)
    yield
    for file in SCRIPTS:
        sys.modules.pop(file.stem, None)


def takes_options(file: Path) -> bool:
    return "ArgumentParser(" in file.read_text()


def start(file: Path, monkeypatch: pytest.MonkeyPatch) -> object:
    """The status with which a script answers `--help`."""
    monkeypatch.setattr(sys, "argv", [str(file), "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(file), run_name="__main__")
    return ended.value.code


def test_benchmarks_take_options() -> None:
    assert sum(map(takes_options, SCRIPTS)) >= 9


@pytest.mark.parametrize("file", list(filter(takes_options, SCRIPTS)), ids=lambda file: file.name)
def test_this_benchmark_answers_help(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert start(file, monkeypatch) == 0
    assert "usage: " in capsys.readouterr().out


@pytest.mark.parametrize(
    "file", [file for file in SCRIPTS if not takes_options(file)], ids=lambda file: file.name
)
def test_this_script_without_options_imports(file: Path) -> None:
    package = ONLY_WITH.get(file.name)
    if package is not None and importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is only in the environment that runs it")
    runpy.run_path(str(file), run_name=file.stem)


def test_a_name_that_a_neighbour_does_not_have_stops_a_benchmark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "stale.py"
    file.write_text("import argparse\nimport zoo\nPLACE = zoo.GONE\nargparse.ArgumentParser().parse_args()\n")
    with pytest.raises(AttributeError, match="GONE"):
        start(file, monkeypatch)
