"""Figures on the page of a report."""

from pathlib import Path

import pytest

from fxpress.compiler import compile_model
from fxpress.compiler.plan import plan_text
from fxpress.compiler.report.html import figure_text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""),
        (True, "yes"),
        (False, "no"),
        (1234567, "1,234,567"),
        (0.123456789, "0.12346"),
        (1234567.8, "1,234,568"),
        (1e30, "1e+30"),
        (float("inf"), "inf"),
        ("1x3x8", "1x3x8"),
    ],
)
def test_figures_are_written_for_people(value: str | int | float | bool | None, text: str) -> None:
    assert figure_text(value) == text


def test_tables_of_passes_have_words_for_heads_and_figures_to_the_right(project: Path) -> None:
    passes = "passes=[{pass: clean}, {pass: prune, budget: {macs: 60 %}}, {pass: fuse}, {pass: quantize}]"
    page = compile_model(project / "net.yaml", overrides=[passes]).files["report.html"].decode()
    assert '<th class="n">units before</th>' in page and "units_before" not in page
    assert '<td>macs_before</td><td class="n">7,232</td>' in page
    assert page.index("<b>prune</b>") < page.index('<svg class="drawing"') < page.index("<b>fuse</b>")


def test_a_resource_without_a_limit_neither_fits_nor_is_too_large(project: Path) -> None:
    overrides = ["target={name: host, flash: 1 MiB}", "target.ram=64 B"]
    compiled = compile_model(project / "net.yaml", overrides=overrides, enforce_budget=False)
    verdicts = {r.name: r.fits for r in compiled.report.resources}
    assert verdicts == {"flash": True, "arena": False, "stack": None, "instructions": None}
    lines = {line.split()[0]: line for line in plan_text(compiled.report).splitlines() if line}
    assert "fits" in lines["flash"] and "too large by" in lines["arena"]
    assert "fits" not in lines["stack"] + lines["instructions"]
    page = compiled.files["report.html"].decode()
    assert page.count(">fits<") == page.count(">too large<") == 1
