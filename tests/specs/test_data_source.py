"""Data sets that a function makes, in place of an npz file."""

from collections.abc import Callable
from pathlib import Path

import pytest

from fxpress.specs import FileSource, ModuleSource, Problem, SpecError, check_spec, load_spec

Write = Callable[..., Path]
ProblemsOf = Callable[..., tuple[Problem, ...]]

FILE = "{file: train.npz}"


def test_a_function_of_a_file_is_found_beside_the_spec(write: Write, sound: str, tmp_path: Path) -> None:
    spec = load_spec(write(sound.replace(FILE, "{source: samples.py:make}"))).spec
    assert spec.data.calibration is not None
    assert spec.data.calibration.origin == FileSource(tmp_path / "samples.py", "make")


def test_a_function_of_a_package_is_named_with_dots(write: Write, sound: str) -> None:
    spec = load_spec(write(sound.replace(FILE, "{source: lab.samples:make}"))).spec
    assert spec.data.calibration is not None
    assert spec.data.calibration.origin == ModuleSource("lab.samples", "make")


def test_the_origin_of_a_file_is_its_path(write: Write, sound: str, tmp_path: Path) -> None:
    spec = load_spec(write(sound)).spec
    assert spec.data.calibration is not None and spec.data.calibration.origin == tmp_path / "train.npz"


@pytest.mark.parametrize("dataset", ["{}", "{file: train.npz, source: samples.py:make}"])
def test_file_and_source_exclude_each_other(problems_of: ProblemsOf, sound: str, dataset: str) -> None:
    (problem,) = problems_of(sound.replace(FILE, dataset))
    assert problem.code == "S205" and "give either file or source" in problem.message
    assert "source: samples.py:make" in problem.hint


def test_a_check_finds_a_function_that_its_file_does_not_define(write: Write, sound: str) -> None:
    write("class Net: pass", "net.py")
    write("def make(): return {}", "samples.py")
    with pytest.raises(SpecError) as caught:
        check_spec(write(sound.replace(FILE, "{source: samples.py:mke}")))
    (problem,) = caught.value.problems
    assert problem.code == "S312" and 'did you mean "make"' in problem.hint
