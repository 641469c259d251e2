"""Files that cannot be read as a spec, and the meaning of YAML values."""

from collections.abc import Callable
from pathlib import Path

import pytest

from fxpress.specs import Problem, SpecError, load_spec
from fxpress.specs.reader import read_file, read_text
from fxpress.specs.tree import plain

ProblemsOf = Callable[..., tuple[Problem, ...]]
ALIAS_BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 9)
)

# name: text, code, line, column, part of the message, part of the hint
UNREADABLE: dict[str, tuple[str | bytes, str, int, int, str, str]] = {
    "empty": ("", "S107", 1, 1, "is empty", 'begins with "fxpress: 1"'),
    "only a comment": ("# nothing\n", "S107", 1, 1, "is empty", ""),
    "a tab": ("fxpress: 1\nmodel:\n\tsource: a\n", "S103", 3, 1, "is not YAML", "spaces, not with tabs"),
    "an open bracket": ("fxpress: [1, 2\nmodel: 3\n", "S103", 2, 6, "is not YAML", "close the bracket"),
    "an open quote": ('fxpress: "1\n', "S103", 2, 1, "unexpected end of stream", ""),
    "a colon in a text": ("a: b: c\n", "S103", 1, 5, "mapping values are not allowed", "quote a string"),
    "bad indentation": ("a: 1\n b: 2\n", "S103", 2, 3, "is not YAML", ""),
    "no colon": ("fxpress: 1\nmodel\n", "S103", 3, 1, "could not find expected ':'", "add a colon"),
    "an undefined alias": ("a: *b\n", "S110", 1, 4, "has no anchor before it", "write the value in place of the alias"),
    "an unknown directive": ("%YAML 3.0\n---\na: 1\n", "S103", 1, 1, "incompatible", ""),
    "a duplicate key": ("fxpress: 1\nfxpress: 1\n", "S108", 2, 1, "occurs twice; first in line 1", "keep one"),
    "a python tag": ('a: !!python/object/apply:os.system ["x"]\n', "S109", 1, 4, "tag", "remove it"),
    "a local tag": ("a: !secret x\n", "S109", 1, 4, 'the tag "!secret"', "remove it"),
    "an alias bomb": (ALIAS_BOMB, "S110", 5, 10, "more than 20,000 values", ""),
    "a self-alias": ("a: &a [1, *a]\n", "S110", 1, 11, "refers to a value that contains it",
        "write the value in place of the alias",
    ),
    "100 kB of brackets": ("[" * 100_000, "S104", 1, 33, "more than 32 deep", ""),
    "100 kB of nested keys": ("{a: " * 25_000, "S104", 1, 126, "more than 32 deep", ""),
    "deep aliases": (
        "a: &a [[[[[[[[[[1]]]]]]]]]]\nb: &b [[[[[[[[[[*a]]]]]]]]]]\nc: [[[[[[[[[[[*b]]]]]]]]]]]\n",
        "S104", 3, 15, "with aliases expanded", "",
    ),
    "a megabyte": ("a: " + "x" * 1_000_000, "S105", 1, 1, "larger than 256 KiB", ""),
    "too many values": ("[" + "1," * 20_001 + "]", "S105", 1, 40_000, "more than 20,000 values", ""),
    "two documents": ("a: 1\n---\nb: 2\n", "S106", 2, 1, "a second document", "remove the `---`"),
    "a UTF-8 byte-order mark": (b"\xef\xbb\xbffxpress: 1\n", "S102", 1, 1, "byte-order mark", "without one"),
    "UTF-16": ("fxpress: 1\n".encode("utf-16"), "S102", 1, 1, "byte-order mark", "UTF-8"),
    "latin-1": (b"a: 1\nname: caf\xe9\n", "S102", 2, 10, "byte 0xe9 is not UTF-8", "as UTF-8"),
    "a NUL": ("a: 1\nb: x\0y\n", "S102", 2, 5, "control character U+0000", "remove it"),
    "an escape": ("a: \x1b[31m\n", "S102", 1, 4, "control character U+001B", "remove it"),
    "a list": ("- 1\n- 2\n", "S113", 1, 1, "does not hold a mapping", "key: value"),
    "a text": ("hello\n", "S113", 1, 1, "does not hold a mapping", ""),
    "a list as a key": ("? [a, b]\n: 1\n", "S111", 1, 3, "a key must be a text", ""),
    "an empty key": ('"": 1\n', "S111", 1, 1, "a key must be a text", ""),
    "infinity": ("a: .inf\n", "S112", 1, 4, '".inf" is not a number', "quote it"),
    "not a number": ("a: -.INF\nb: .NaN\n", "S112", 1, 4, "is not a number", "quote it"),
    "1e999": ("a: 1e999\n", "S112", 1, 4, '"1e999" is too large a number', ""),
    "10**400": (f"a: 1{'0' * 400}\n", "S112", 1, 4, "is too large a number", ""),
    "10**5000": (f"a: 1{'0' * 5000}\n", "S112", 1, 4, "is too large a number", ""),
}  # fmt: skip


@pytest.mark.timeout(60)
@pytest.mark.parametrize("fault", UNREADABLE)
def test_a_file_that_cannot_be_read_says_where_and_why(problems_of: ProblemsOf, fault: str) -> None:
    text, code, line, column, message, hint = UNREADABLE[fault]
    problem = next(p for p in problems_of(text) if p.code == code)
    assert problem.place is not None
    assert (problem.place.line, problem.place.column) == (line, column)
    assert message in problem.message
    assert hint in problem.hint


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(
        SpecError, match=r"none\.yaml:1:1: cannot be read: No such file or directory \[S101\]"
    ):
        load_spec(tmp_path / "none.yaml")


def test_a_folder_is_no_spec(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"cannot be read: Is a directory \[S101\]"):
        load_spec(tmp_path)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"), ("on", "on"), ("yes", "yes"), ("off", "off"), ("012", "012"), ("12:30", "12:30"),
        ("1_000", "1_000"), ("0x1F", "0x1F"), ("2001-01-01", "2001-01-01"), ("nan", "nan"), ("1.2.3", "1.2.3"),
        ("1e3", 1000.0), ("-1.5e-3", -0.0015), (".5", 0.5), ("1.", 1.0), ("0", 0), ("-12", -12), ("+7", 7),
        ("true", True), ("False", False), ("null", None), ("~", None), ('"1"', "1"), ("'true'", "true"),
        ("64 KiB", "64 KiB"), ("[1, [a, no]]", (1, ("a", "no"))), ("{on: 1, 2: b}", {"on": 1, "2": "b"}),
        ('{"a": [1.5, null, true]}', {"a": (1.5, None, True)}), ("&x [1, 2]", (1, 2)), ("=", "="),
    ],
)  # fmt: skip
def test_a_value_is_what_yaml_1_2_says(text: str, value: object, tmp_path: Path) -> None:
    found = plain(read_text(text, name="t", folder=tmp_path).root)
    assert found == value
    assert type(found) is type(value) or isinstance(value, str)


def test_an_alias_stands_for_what_its_anchor_holds(tmp_path: Path) -> None:
    root = read_text("a: &a {x: [1]}\nb: *a\nc: [*a, *a]\n", name="t", folder=tmp_path).root
    assert plain(root) == {"a": {"x": (1,)}, "b": {"x": (1,)}, "c": ({"x": (1,)}, {"x": (1,)})}


def test_all_that_can_be_read_past_is_told_at_once(tmp_path: Path) -> None:
    path = tmp_path / "many.yaml"
    path.write_text("a: 1\na: 2\nb: !x 3\nc: .nan\n? [k]\n: 1\n")
    assert [problem.code for problem in read_file(path, name="many").problems] == [
        "S108",
        "S109",
        "S112",
        "S111",
    ]


def test_line_breaks_of_every_kind_are_counted(tmp_path: Path) -> None:
    reading = read_text("a: 1\r\nb: 2\rc: 3\nd: .nan\n", name="t", folder=tmp_path)
    assert [str(problem.place) for problem in reading.problems] == ["t:4:4"]
