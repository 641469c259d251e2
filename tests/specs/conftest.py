"""Specs for the tests: files written below a folder of their own, and the problems found in them."""

from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from fxpress.specs import Problem, SpecError, load_spec

SOUND = """\
fxpress: 1
model:
  source: net.py:Net
  inputs:
    x: {shape: [1, 3, 8, 8]}
data:
  calibration: {file: train.npz}
target:
  name: cortex-m4f
passes:
  - pass: fuse
  - pass: quantize
outputs:
  c: {name: net}
"""

Write = Callable[..., Path]
ProblemsOf = Callable[..., tuple[Problem, ...]]


@pytest.fixture
def sound() -> str:
    """A spec without a fault."""
    return SOUND


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a text, by default a sound spec, into a file of the test's folder."""

    def write_file(text: str | bytes = SOUND, name: str = "net.yaml") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    return write_file


@pytest.fixture
def problems_of(write: Write) -> ProblemsOf:
    """The problems of a spec given as text; none is an error of the test."""

    def load(text: str | bytes, overrides: Iterable[str] = ()) -> tuple[Problem, ...]:
        with pytest.raises(SpecError) as caught:
            load_spec(write(text), overrides)
        return caught.value.problems

    return load
