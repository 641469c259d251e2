"""Units of predicted time: cycles where the timing of a core is published, else instructions and no word of cycles."""

from __future__ import annotations

from pathlib import Path

import pytest

from fxpress.compiler import compile_model
from fxpress.compiler.plan import plan_text
from fxpress.specs import list_targets, load_target


@pytest.mark.parametrize("name", list_targets())
def test_cycles_are_named_only_where_the_timing_of_the_core_is_published(name: str, project: Path) -> None:
    report = compile_model(
        project / "net.yaml", overrides=[f"target={{name: {name}}}"], enforce_budget=False
    ).report
    units = {resource.name for resource in report.resources}
    is_timed = load_target(name).timing is not None
    assert ("cycles" in units) == is_timed and "instructions" in units
    assert all(
        (layer.cycles is not None) == is_timed and layer.instructions is not None for layer in report.layers
    )
    shown = plan_text(report)
    assert ("cycles" in shown) == is_timed
    if not name.startswith("cortex-m4"):
        assert "cortex-m4" not in shown.lower()


def test_the_report_says_which_core_was_counted(project: Path) -> None:
    report = compile_model(
        project / "net.yaml", overrides=["target={name: cortex-m55}"], enforce_budget=False
    ).report
    (basis,) = [r.basis for r in report.resources if r.name == "instructions"]
    assert basis == "estimated from kernels counted on a cortex-m55"
