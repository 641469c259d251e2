"""Overrides such as `passes[1].samples=64`, from `--set` or a Python program, applied to the tree of a spec."""

from collections.abc import Iterable
from collections.abc import Mapping as AbstractMapping
from dataclasses import replace
from pathlib import Path

from .errors import Place, Problem, SpecError, quoted
from .paths import format_path, parse_path
from .reader import read_text
from .root_error import ArgumentError, expect, shown
from .tree import Entry, Location, Mapping, Node, Scalar, Sequence

OVERRIDES = "overrides"
"""File name in messages for overrides from Python; the line is the number of the override."""


def apply_overrides(
    root: Mapping, overrides: Iterable[str], *, name: str
) -> tuple[Mapping, tuple[Problem, ...]]:
    """The tree with all overrides applied in order, and problems of those that could not be applied."""
    hint = f"write [{overrides!r}]" if isinstance(overrides, str) else 'for example ["passes[1].samples=64"]'
    if isinstance(overrides, str | AbstractMapping):
        raise ArgumentError(OVERRIDES, f"expects a list of texts, got {shown(overrides)}", hint)
    expect(overrides, Iterable, OVERRIDES, "a list of texts", hint)
    problems: list[Problem] = []
    for number, text in enumerate(overrides, start=1):
        expect(text, str, OVERRIDES, "a list of texts", hint)
        place = Place(name, number, 1, text)
        try:
            location, value = _parsed(text, place)
            changed = _with(root, location, value, place, ())
        except SpecError as err:
            problems += err.problems
        else:
            assert isinstance(changed, Mapping)
            root = changed
    return root, tuple(problems)


def _parsed(text: str, place: Place) -> tuple[Location, Node]:
    path, equals, value = text.partition("=")
    location = parse_path(path.strip()) if equals else None
    if location is None:
        hint = "write `path=value`, for example `passes[1].samples=64`"
        raise SpecError([Problem("S131", place, f"{quoted(text)} is not an override", hint)])
    if location[0] == "extends":
        raise SpecError([Problem("S132", place, "extends cannot be overridden", "write it in the file")])
    column = len(path) + 1
    at_value = replace(place, column=column + 1)
    if not value.strip():
        return location, Scalar(None, "", at_value, Path.cwd())
    reading = read_text(" " * column + value, name=place.file, folder=Path.cwd(), line=place.line, shown=text)
    if reading.problems:
        raise SpecError(reading.problems)
    return location, reading.root


def _with(node: Node | None, location: Location, value: Node, place: Place, above: Location) -> Node:
    """The node with the value set at the location below it; missing mappings are created."""
    if not location:
        return value
    step, *rest = location
    below = (*above, step)
    if isinstance(node, Sequence) and isinstance(step, int) and step < len(node.items):
        items = list(node.items)
        items[step] = _with(items[step], tuple(rest), value, place, below)
        return Sequence(tuple(items), node.place)
    if node is None or (isinstance(node, Scalar) and node.value is None):
        node = Mapping({}, place)
    if isinstance(node, Mapping) and isinstance(step, str):
        held = node.entries.get(step)
        entry = Entry(place, _with(held.node if held else None, tuple(rest), value, place, below))
        return Mapping(node.entries | {step: entry}, node.place)
    raise SpecError([Problem("S132", place, f"{format_path(below)} does not exist: {_what(node, above)}")])


def _what(node: Node, location: Location) -> str:
    name = format_path(location) or "a spec"
    if isinstance(node, Mapping):
        return f"{name} is a mapping, which has no entries by index"
    if isinstance(node, Sequence):
        return f"{name} is a list of {len(node.items)} entries, counted from 0"
    return f"{name} is a single value"
