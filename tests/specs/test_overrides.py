"""Overrides, `--set path=value`."""

from collections.abc import Callable
from pathlib import Path

import pytest

from fxpress.specs import FuseOptions, Problem, QuantizeOptions, load_spec
from fxpress.specs.paths import format_path, parse_path

ProblemsOf = Callable[..., tuple[Problem, ...]]
Write = Callable[..., Path]


def test_a_value_is_replaced_in_a_list_and_made_where_there_is_none(write: Write) -> None:
    overrides = [
        "passes[1].samples=64",
        "passes[0].keep=[stem, head.*]",
        "data.evaluation.file=e.npz",
        "target.ram=8 KiB",
    ]
    spec = load_spec(write(), overrides).spec
    fuse, quantize = spec.passes
    assert isinstance(quantize, QuantizeOptions)
    assert isinstance(fuse, FuseOptions)
    assert (quantize.samples, fuse.keep, spec.target.ram) == (64, ("stem", "head.*"), 8192)
    assert spec.data.evaluation is not None


def test_a_relative_path_is_relative_to_the_working_directory(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write()
    monkeypatch.chdir(path.parent.parent)
    spec = load_spec(path, ["data.calibration.file=other.npz"]).spec
    assert spec.data.calibration is not None
    assert spec.data.calibration.file == path.parent.parent / "other.npz"


def test_a_later_override_wins(write: Write) -> None:
    spec = load_spec(write(), ["outputs.c.name=a", "outputs.c.name=b"]).spec
    assert spec.outputs.c is not None
    assert spec.outputs.c.name == "b"


def test_keys_with_dots_are_quoted(write: Write) -> None:
    quantize = load_spec(write(), ['passes[1].layers["head.*"]=float32']).spec.passes[1]
    assert isinstance(quantize, QuantizeOptions)
    assert quantize.layers == {"head.*": "float32"}


def test_an_empty_value_is_none(write: Write) -> None:
    spec = load_spec(write(), ["data.calibration.samples="]).spec
    assert spec.data.calibration is not None
    assert spec.data.calibration.samples is None


@pytest.mark.parametrize(
    ("override", "code", "column", "message"),
    [
        ("passes", "S131", 1, '"passes" is not an override'),
        ("=3", "S131", 1, "is not an override"),
        ("passes[x].samples=3", "S131", 1, "is not an override"),
        ("passes..samples=3", "S131", 1, "is not an override"),
        ("[0]=3", "S131", 1, "is not an override"),
        ("extends=base.yaml", "S132", 1, "extends cannot be overridden"),
        (
            "passes[2].samples=3",
            "S132",
            1,
            "passes[2] does not exist: passes is a list of 2 entries, counted from 0",
        ),
        ("passes.samples=3", "S132", 1, "passes.samples does not exist: passes is a list of 2 entries"),
        ("target[0]=3", "S132", 1, "target[0] does not exist: target is a mapping"),
        ("fxpress.version=3", "S132", 1, "fxpress.version does not exist: fxpress is a single value"),
        ("passes[1].sampels=64", "S201", 1, 'passes[1]: unknown key "sampels"'),
        (
            "passes[1].samples=many",
            "S203",
            19,
            'passes[1].samples: expects a whole number, got the text "many"',
        ),
        ("passes[1].samples=[1", "S103", 21, "is not YAML"),
        ("passes[1].samples=1e999", "S112", 19, '"1e999" is too large a number'),
        ("target.ram=64", "S206", 12, "target.ram: 64 has no unit"),
        ("target.ram= 64", "S206", 13, "target.ram: 64 has no unit"),
        ("target.ram=!x 64 KiB", "S109", 12, 'the tag "!x"'),
    ],
)
def test_a_wrong_override_is_told_in_the_override(
    problems_of: ProblemsOf, sound: str, override: str, code: str, column: int, message: str
) -> None:
    problem, *others = problems_of(sound, ["outputs.c.name=a", override])
    assert not others
    assert (problem.code, str(problem.place)) == (code, f"overrides:2:{column}")
    assert message in problem.message
    assert problem.place is not None
    assert problem.place.text == override


def test_every_wrong_override_is_told(problems_of: ProblemsOf, sound: str) -> None:
    problems = problems_of(sound, ["a", "passes[7].keep=[]", "target.ram=1"])
    assert [problem.code for problem in problems] == ["S131", "S132", "S206"]


@pytest.mark.parametrize(
    "path", ["a", "passes[1].samples", 'a["b.c"]', 'a["b c"][0].d', "a-b.c_d", 'a["0"]', "layers.stem"]
)
def test_a_path_is_read_as_it_is_written(path: str) -> None:
    location = parse_path(path)
    assert location is not None
    assert format_path(location) == path


@pytest.mark.parametrize("path", ["", ".", "a.", ".a", "a b", "a[", "a[-1]", "a[b]", "[0]", "a..b", "ab[0]c"])
def test_what_is_no_path_is_none(path: str) -> None:
    assert parse_path(path) is None
