"""`fxpress plan --pareto ram,cycles`: less and less RAM, each in the least time that is found."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest
from sample_project import write_project

from fxpress.compiler import Report, compile_model
from fxpress.compiler.cli import main

REGIONS = "target={name: cortex-m4f, regions: {dtcm: 200 B, psram: {bytes: 1 MiB, wait_states: 4}}}"


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


def test_the_ram_of_several_regions_is_their_sum(tmp_path: Path) -> None:
    spec = write_project(tmp_path) / "net.yaml"
    points = compile_model(spec, overrides=[REGIONS, "outputs.c.pareto=ram,cycles"]).report.pareto
    assert len(points) > 2
    for point in points:
        assert list(point.region_bytes) == ["dtcm", "psram"] and point.region_bytes["dtcm"] <= 200
        assert point.ram_bytes == sum(point.region_bytes.values())
    assert points[0].region_bytes["psram"] > 0
    assert all(before.ram_bytes > after.ram_bytes for before, after in pairwise(points))


def test_the_report_has_the_table_and_a_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(write_project(tmp_path))
    plain, compiled = (
        compile_model("net.yaml", overrides=options) for options in ((), ("outputs.c.pareto=ram,cycles",))
    )
    assert not plain.report.pareto and b"RAM and time" not in plain.files["report.html"]
    points = Report.model_validate_json(compiled.files["report.json"]).pareto
    assert points == compiled.report.pareto and len(points) > 1
    page = compiled.files["report.html"].decode()
    section = page[page.index("<h2>RAM and time</h2>") : page.index("<h2>Graph</h2>")]
    picture = re.search(r"<svg.*</svg>", section, re.DOTALL)
    assert picture is not None
    drawn = ElementTree.fromstring(picture[0])
    assert len(list(drawn.iter("circle"))) == len(points)
    told = [title.text for title in drawn.iter("title")]
    assert told == [f"{point.ram_bytes:,} B, {point.time:,} {point.unit}" for point in points]
    assert all(f'<td class="n">{point.ram_bytes:,}</td>' in section for point in points)
    assert main(["plan", "net.yaml", "--pareto", "ram,cycles"]) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert [int(line.split()[0].replace(",", "")) for line in lines] == [point.ram_bytes for point in points]


def test_it_is_refused_without_c_for_a_microcontroller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(write_project(tmp_path))
    assert main(["plan", "net.yaml", "--pareto", "ram,cycles", "--set", "outputs={torch: {}}"]) == 2
    assert "[R423]" in capsys.readouterr().err
