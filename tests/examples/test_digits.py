"""The digits example, from training to the simulated core, as `make demo` runs it."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "examples" / "digits"


@pytest.fixture(scope="module")
def printed() -> str:
    """Output of training and of the demonstration, in this order."""
    return "".join(
        subprocess.run(
            [sys.executable, FOLDER / name], capture_output=True, text=True, check=True, timeout=300
        ).stdout
        for name in ("train.py", "demo.py")
    )


@pytest.mark.skipif(shutil.which("arm-none-eabi-gcc") is None, reason="arm-none-eabi-gcc is not installed")
def test_the_demonstration_shows_accuracy_and_cost_of_every_form(printed: str) -> None:
    correct = [int(found) for found in re.findall(r"% \((\d+) of 450\)", printed)]
    floats, integer, host, core = correct
    assert floats >= 440 and integer >= floats - 3
    assert integer == host == core
    for cost in ("arena", "stack", "flash", "instructions", "cycles, estimated"):
        assert re.search(rf"^{cost} +[\d,]+", printed, re.MULTILINE), cost


def test_the_demonstration_says_where_its_report_lies(printed: str) -> None:
    found = re.search(r"^report: (.*)$", printed, re.MULTILINE)
    assert found is not None and Path(found[1]).read_text().startswith("<!doctype html>")
