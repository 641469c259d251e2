"""Tree of a spec file: mappings, sequences and scalars, each with the position at which it was written.

Inheritance and overrides work on this tree, so that every value keeps its origin.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

from .errors import Place

Plain: TypeAlias = "bool | int | float | str | tuple[Plain, ...] | dict[str, Plain] | None"
"""Values of a tree without positions: the input of the pydantic models."""

Location: TypeAlias = tuple[str | int, ...]
"""Location in a tree: keys of mappings and indices of sequences."""


class LocatedText(str):
    """Text with the folder of the file in which it was written; relative paths in it are relative to that folder."""

    __slots__ = ("folder",)
    folder: Path

    @classmethod
    def written_in(cls, folder: Path, text: str) -> "LocatedText":
        """The text, as written in a file of that folder."""
        located = cls(text)
        located.folder = folder
        return located


@dataclass(frozen=True)
class Scalar:
    """A single value, its text as written, and the folder to which a relative path in it is relative."""

    value: bool | int | float | str | None
    text: str
    place: Place
    folder: Path


@dataclass(frozen=True)
class Sequence:
    """A list of nodes."""

    items: "tuple[Node, ...]"
    place: Place


@dataclass(frozen=True)
class Entry:
    """Value and key position of a mapping entry."""

    place: Place
    node: "Node"


@dataclass(frozen=True)
class Mapping:
    """Entries by key, in the order in which they were written."""

    entries: dict[str, Entry]
    place: Place

    def without(self, key: str) -> "Mapping":
        """The same mapping without one key."""
        return replace(self, entries={name: entry for name, entry in self.entries.items() if name != key})


Node: TypeAlias = Scalar | Sequence | Mapping


def merge(base: Node, top: Node) -> Node:
    """`top` merged over `base`: mappings key by key; all other values are replaced."""
    if not (isinstance(base, Mapping) and isinstance(top, Mapping)):
        return top
    merged = dict(base.entries)
    for key, entry in top.entries.items():
        below = merged.get(key)
        merged[key] = Entry(entry.place, merge(below.node, entry.node)) if below else entry
    return Mapping(merged, top.place)


def plain(node: Node) -> Plain:
    """The values without positions; every text carries the folder of its file."""
    match node:
        case Mapping():
            return {key: plain(entry.node) for key, entry in node.entries.items()}
        case Sequence():
            return tuple(plain(item) for item in node.items)
        case Scalar(value=str() as text):
            return LocatedText.written_in(node.folder, text)
        case Scalar():
            return node.value


def node_of(value: object, place: Place) -> Node:
    """Tree of a Python value, with one position for all nodes; a value that no file can hold becomes its text."""
    match value:
        case dict():
            entries = {str(key): Entry(place, node_of(item, place)) for key, item in value.items()}
            return Mapping(entries, place)
        case list() | tuple():
            return Sequence(tuple(node_of(item, place) for item in value), place)
        case bool() | int() | float() | None:
            return Scalar(value, json.dumps(value), place, Path.cwd())
        case _:
            return Scalar(str(value), str(value), place, Path.cwd())


def child(node: Node, step: str | int) -> Node | None:
    """The node one step below, if it exists."""
    if isinstance(node, Mapping) and isinstance(step, str):
        entry = node.entries.get(step)
        return entry.node if entry else None
    if isinstance(node, Sequence) and isinstance(step, int) and 0 <= step < len(node.items):
        return node.items[step]
    return None


def find(node: Node, location: Location) -> Node | None:
    """The node at the location, if it exists."""
    found: Node | None = node
    for step in location:
        found = child(found, step) if found is not None else None
    return found


def place_of(node: Node, location: Location) -> Place:
    """Position of the value at a location, or of the innermost enclosing mapping or list."""
    place = node.place
    for step in location:
        below = child(node, step)
        if below is None:
            return place
        node, place = below, below.place
    return place


def key_place(node: Node, location: Location) -> Place:
    """Position of the key at a location; for a list entry, of its value."""
    parent = find(node, location[:-1])
    entry = parent.entries.get(str(location[-1])) if isinstance(parent, Mapping) and location else None
    return entry.place if entry else place_of(node, location)


def walk(node: Node, location: Location = ()) -> Iterator[tuple[Location, Node]]:
    """All nodes with their locations, from the root down."""
    yield location, node
    match node:
        case Mapping():
            for key, entry in node.entries.items():
                yield from walk(entry.node, (*location, key))
        case Sequence():
            for index, item in enumerate(node.items):
                yield from walk(item, (*location, index))
        case Scalar():
            pass
