"""`fxpress plan --pareto ram,cycles`: less and less RAM, each in the least time that is found."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from sample_project import write_project

from fxpress.compiler.cli import main


def test_each_line_takes_less_memory_and_is_counted_over_the_fastest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(write_project(tmp_path))
    assert main(["plan", "net.yaml", "--pareto", "ram,cycles"]) == 0
    header, *lines = capsys.readouterr().out.splitlines()
    assert " ".join(header.split()) == "arena B cycles over fastest flash B steps that run by rows"
    arenas = [int(line.split()[0].replace(",", "")) for line in lines]
    assert len(arenas) > 1
    assert all(before > after for before, after in pairwise(arenas))
    assert float(lines[0].split()[2]) == 1
    assert any(line.endswith("0 to 1") for line in lines), "the stem and the pool run by rows"


def test_it_is_refused_without_c_for_a_microcontroller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(write_project(tmp_path))
    assert main(["plan", "net.yaml", "--pareto", "ram,cycles", "--set", "outputs={torch: {}}"]) == 2
    assert "[R423]" in capsys.readouterr().err
