"""The targets in the Makefile's header are all that exist, and the files that they run are in the tree."""

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
MAKEFILE = (ROOT / "Makefile").read_text()
OF_OTHERS = {"setup", "clean"}
"""Targets that the header omits: prerequisites of others, and conventional ones."""


def named_targets() -> list[str]:
    """Those before the two spaces of each line of the header."""
    lines = re.findall(r"^# make (.+?)  ", MAKEFILE.partition("\n\n")[0], re.MULTILINE)
    return [target for line in lines for target in line.split(", ")]


def phony_targets() -> set[str]:
    declared = re.search(r"^\.PHONY:((?:.*\\\n)*.*)", MAKEFILE, re.MULTILINE)
    assert declared is not None
    return set(declared[1].replace("\\\n", " ").split())


def dry_run(*targets: str) -> subprocess.CompletedProcess[str]:
    command = ["make", "--dry-run", "--always-make", *targets]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_header_names_every_target() -> None:
    assert set(named_targets()) == phony_targets() - OF_OTHERS


def test_every_target_of_the_header_exists() -> None:
    done = dry_run(*named_targets())
    assert done.returncode == 0, done.stderr


def test_a_target_that_is_not_there_is_an_error() -> None:
    assert "No rule to make target" in dry_run("bench-nothing").stderr


def test_every_script_that_a_target_runs_is_in_the_tree() -> None:
    scripts = set(re.findall(r"(?:benchmarks|examples)/[\w/]+\.py", dry_run(*named_targets()).stdout))
    assert len(scripts) >= 10
    assert not [script for script in scripts if not (ROOT / script).is_file()]
