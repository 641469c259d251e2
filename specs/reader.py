"""Safe reading of YAML (and so of JSON) into a tree with positions.

The pure Python parser of PyYAML provides events, from which this module builds the tree. Limits on depth and size are
checked before anything is built: the C parser crashes on deep nesting, and aliases may expand without end. Scalars
follow YAML 1.2: only `true` and `false` are booleans, `no`, `on`, `012` and `12:30` are texts, and `1e3` is a number.
Tags are refused. Reading continues after an error if possible, so that a file shows all its problems.
"""

import math
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import yaml
from yaml.events import (
    AliasEvent,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
    StreamEndEvent,
)

from .errors import Place, Problem, SpecError, quoted
from .tree import Entry, Mapping, Node, Scalar, Sequence, walk

MAX_BYTES = 256 * 1024
MAX_DEPTH = 32
MAX_VALUES = 20_000

_LINE_BREAK = re.compile("\r\n|[\n\r\x85\u2028\u2029]")
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_WORDS = {"": None, "~": None, "null": None, "Null": None, "NULL": None} | dict.fromkeys(
    ("true", "True", "TRUE"), True
)
_WORDS |= dict.fromkeys(("false", "False", "FALSE"), False)
_MAX_DIGITS = 18
_FORBIDDEN = re.compile("[^\t\n\r -~\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_HINTS = {
    "\\t": "indent with spaces, not with tabs",
    "mapping values are not allowed": "quote a string that contains `: `, or check the indentation",
    "expected ',' or": "close the bracket, or add a comma",
    "cannot start any token": "quote the text",
    "could not find expected ':'": "add a colon and a space after the key",
    "expected <block end>": "check the indentation",
}


@dataclass(frozen=True)
class Reading:
    """Tree of a text, and the problems that did not stop reading."""

    root: Node
    problems: tuple[Problem, ...]


def read_file(path: Path, *, name: str) -> Reading:
    """Tree of a YAML or JSON file; messages show `name` as the file."""
    start = Place(name, 1, 1, "")
    try:
        if not stat.S_ISREG(path.stat().st_mode) and not path.is_dir():
            hint = "use a regular file"
            raise SpecError([Problem("S101", start, "is a pipe or a device", hint)])
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as err:
        reason = err.strerror if isinstance(err, OSError) and err.strerror else str(err)
        raise SpecError([Problem("S101", start, f"cannot be read: {reason}")]) from err
    if len(content) > MAX_BYTES:
        raise SpecError(
            [Problem("S105", start, f"is larger than {MAX_BYTES // 1024} KiB, the limit for a spec")]
        )
    return read_text(_decoded(content, name), name=name, folder=path.parent)


def read_text(text: str, *, name: str, folder: Path, line: int = 1, shown: str | None = None) -> Reading:
    """Tree of a YAML or JSON text. For a part of another text, `line` is its line there and `shown` that whole line."""
    builder = _Builder(name, folder, _LINE_BREAK.split(text) if shown is None else [shown], line)
    if forbidden := _FORBIDDEN.search(text):
        before = text[: forbidden.start()]
        place = builder.place(before.count("\n"), len(before) - (before.rfind("\n") + 1))
        raise SpecError(
            [Problem("S102", place, f"has the control character U+{ord(forbidden[0]):04X}", "remove it")]
        )
    try:
        return builder.build(yaml.parse(text, Loader=yaml.SafeLoader))
    except yaml.MarkedYAMLError as err:
        raise SpecError([*builder.problems, builder.syntax_problem(err)]) from err


def _decoded(content: bytes, name: str) -> str:
    if content.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")):
        hint = "save it as UTF-8 without one"
        raise SpecError([Problem("S102", Place(name, 1, 1, ""), "begins with a byte-order mark", hint)])
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as err:
        before = content[: err.start].decode("utf-8")
        place = Place(name, before.count("\n") + 1, len(before) - before.rfind("\n"), "")
        message = f"byte 0x{content[err.start]:02x} is not UTF-8"
        raise SpecError([Problem("S102", place, message, "save the file as UTF-8")]) from err


@dataclass
class _Builder:
    """Builds one tree from events, and holds the state of the whole tree: anchors, sizes, problems."""

    name: str
    folder: Path
    lines: list[str]
    first_line: int
    problems: list[Problem] = field(default_factory=list)
    anchors: dict[str, Node | None] = field(default_factory=dict)
    values: int = 0

    def build(self, events: Iterator[yaml.Event]) -> Reading:
        next(events)
        if isinstance(next(events), StreamEndEvent):
            self.stop("S107", self.place(0, 0), "is empty", 'a spec begins with "fxpress: 1"')
        root = self.node(next(events), events, depth=1)
        next(events)
        following = next(events)
        if not isinstance(following, StreamEndEvent):
            place = self.at(following)
            self.stop(
                "S106", place, "a second document begins here", "a file has one document; remove the `---`"
            )
        return Reading(root, tuple(self.problems))

    def node(self, event: yaml.Event, events: Iterator[yaml.Event], *, depth: int) -> Node:
        """The node that begins with this event."""
        place = self.at(event)
        if depth > MAX_DEPTH:
            self.stop("S104", place, f"is nested more than {MAX_DEPTH} deep")
        if isinstance(event, AliasEvent):
            return self.aliased(event, place, depth)
        self.count(1, place)
        assert isinstance(event, ScalarEvent | SequenceStartEvent | MappingStartEvent)
        if event.tag is not None:
            message, hint = f"the tag {quoted(event.tag)} is not part of the language", "remove it"
            self.problems.append(Problem("S109", place, message, hint))
        if event.anchor is not None:
            self.anchors[event.anchor] = None
        node = self.content(event, events, place, depth)
        if event.anchor is not None:
            self.anchors[event.anchor] = node
        return node

    def content(self, event: yaml.Event, events: Iterator[yaml.Event], place: Place, depth: int) -> Node:
        if isinstance(event, ScalarEvent):
            return self.scalar(event, place)
        if isinstance(event, SequenceStartEvent):
            items = []
            while not isinstance(item := next(events), SequenceEndEvent):
                items.append(self.node(item, events, depth=depth + 1))
            return Sequence(tuple(items), place)
        entries: dict[str, Entry] = {}
        while not isinstance(key := next(events), MappingEndEvent):
            self.entry(key, events, entries, depth)
        return Mapping(entries, place)

    def entry(
        self, key: yaml.Event, events: Iterator[yaml.Event], entries: dict[str, Entry], depth: int
    ) -> None:
        """Reads a key and its value into `entries`."""
        place = self.at(key)
        key_node = self.node(key, events, depth=depth + 1)
        node = self.node(next(events), events, depth=depth + 1)
        if not isinstance(key_node, Scalar) or not key_node.text:
            self.problems.append(
                Problem("S111", place, "a key must be a text, on one line", "write `key: value`")
            )
        elif key_node.text in entries:
            first = entries[key_node.text].place
            message = f"the key {quoted(key_node.text)} occurs twice; first in line {first.line}"
            self.problems.append(Problem("S108", place, message, "keep one of them"))
        else:
            entries[key_node.text] = Entry(place, node)

    def scalar(self, event: ScalarEvent, place: Place) -> Scalar:
        text = event.value
        if event.style is not None:
            return Scalar(text, text, place, self.folder)
        value = _value_of(text)
        if isinstance(value, float) and not math.isfinite(value):
            fact = (
                "is too large a number" if any(char in "0123456789" for char in text) else "is not a number"
            )
            message = f"{quoted(text)} {fact}"
            self.problems.append(Problem("S112", place, message, "quote it if a text is meant"))
        return Scalar(value, text, place, self.folder)

    def aliased(self, event: AliasEvent, place: Place, depth: int) -> Node:
        """Value of an anchor. It counts in full towards the size limits, which bounds aliases of aliases."""
        anchor = event.anchor or ""
        found = self.anchors.get(anchor)
        if found is None:
            inside = anchor in self.anchors
            why = "refers to a value that contains it" if inside else "has no anchor before it"
            self.stop("S110", place, f"the alias *{anchor} {why}", "write the value in place of the alias")
        locations = [location for location, _ in walk(found)]
        self.count(len(locations), place)
        if depth + max(map(len, locations)) > MAX_DEPTH:
            self.stop("S104", place, f"is nested more than {MAX_DEPTH} deep, with aliases expanded")
        return found

    def count(self, values: int, place: Place) -> None:
        self.values += values
        if self.values > MAX_VALUES:
            code = "S110" if values > 1 else "S105"
            self.stop(code, place, f"the file has more than {MAX_VALUES:,} values, with aliases expanded")

    def stop(self, code: str, place: Place, message: str, hint: str = "") -> NoReturn:
        raise SpecError([*self.problems, Problem(code, place, message, hint)])

    def syntax_problem(self, err: yaml.MarkedYAMLError) -> Problem:
        """A PyYAML error as a problem, with the usual hint."""
        mark = err.problem_mark or err.context_mark
        place = self.place(mark.line, mark.column) if mark else self.place(0, 0)
        text = err.problem or "it cannot be parsed"
        begun = (
            f" ({err.context}, line {err.context_mark.line + 1})" if err.context and err.context_mark else ""
        )
        return Problem("S103", place, f"is not YAML: {text}{begun}", _syntax_hint(text))

    def at(self, event: yaml.Event) -> Place:
        mark = event.start_mark
        assert mark is not None
        return self.place(mark.line, mark.column)

    def place(self, line: int, column: int) -> Place:
        text = self.lines[line] if line < len(self.lines) else ""
        return Place(self.name, self.first_line + line, column + 1, text)


def _value_of(text: str) -> bool | int | float | str | None:
    """The value of an unquoted scalar by YAML 1.2's core schema, less octal and hexadecimal numbers."""
    if text in _WORDS:
        return _WORDS[text]
    if _INTEGER.fullmatch(text):
        return int(text) if len(text) <= _MAX_DIGITS else math.inf
    if _FLOAT.fullmatch(text):
        return float(text)
    if _NOT_FINITE.fullmatch(text):
        return math.nan
    return text


def _syntax_hint(text: str) -> str:
    return next((hint for part, hint in _HINTS.items() if part in text), "")
