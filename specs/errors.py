"""What is wrong in a spec: problems with a code, a place and a hint, and the error that carries all of them."""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass

CODES = {
    "S101": "a file cannot be read",
    "S102": "a file is not plain UTF-8 text",
    "S103": "a file is not YAML",
    "S104": "a file is nested too deeply",
    "S105": "a file is too large",
    "S106": "a file holds more than one document",
    "S107": "a file is empty",
    "S108": "a key is written twice",
    "S109": "a value has a tag",
    "S110": "an alias refers to itself, or expands to too many values",
    "S111": "a key is not text",
    "S112": "a number is not finite, or too large",
    "S113": "a file does not hold a mapping",
    "S121": "`extends` forms a cycle",
    "S122": "`extends` names a file or a preset that is not there",
    "S123": "`extends` leaves the folder of the project",
    "S131": "an override is not of the form path=value",
    "S132": "an override names a place that cannot be",
    "S201": "a key is unknown",
    "S202": "a key is missing",
    "S203": "a value has the wrong type",
    "S204": "a value is not one of those allowed",
    "S205": "a number is out of its range",
    "S206": "a quantity has no unit, or a wrong one",
    "S207": "a text does not have the form that it must have",
    "S208": "the spec is written for another version of fxpress",
    "S210": "a pass is of a package that cannot be used",
    "S301": "a pass stands where it cannot work",
    "S302": "a pass needs another one before or behind it",
    "S303": "a pass is written twice",
    "S304": "a pass needs data that the spec does not name",
    "S305": "the target has no kernel for these bits",
    "S306": "a name is not an input of the model",
    "S307": "two settings contradict each other",
    "S308": "a metric needs labels",
    "S309": "the target is unknown",
    "S311": "a file that the spec names is not there",
    "S312": "a file does not hold what the spec asks of it",
    "S401": "a layer pattern matches no layer",
}
"""Every code and its meaning: S1 reading a file, S2 a value, S3 values among each other, S4 the model's layers."""

_LINE_WIDTH = 100


@dataclass(frozen=True)
class Place:
    """A line and a column, both from 1, in a file or in an override; `text` is the whole line."""

    file: str
    line: int
    column: int
    text: str

    def __str__(self) -> str:
        return f"{_short(self.file)}:{self.line}:{self.column}"


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: the fact, and in `hint` what to do about it."""

    code: str
    place: Place | None
    message: str
    hint: str = ""

    def __str__(self) -> str:
        where = f"{self.place}: " if self.place else ""
        what_to_do = f"; {self.hint}" if self.hint else ""
        return f"{where}{self.message}{what_to_do} [{self.code}]"


class SpecError(Exception):
    """A spec, a target or an override that cannot be used; `problems` holds everything found, by position."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(sorted(problems, key=_position))
        super().__init__(render(self.problems))


def render(problems: Iterable[Problem]) -> str:
    """Text for a terminal: each problem with the line it stands on and a caret under the column.

    >>> print(render([Problem("S205", Place("net.yaml", 3, 8, "  ram: 0 B"), "ram: must be above 0")]))
    net.yaml:3:8: ram: must be above 0 [S205]
        3 |   ram: 0 B
          |        ^
    """
    return "\n".join(_paragraph(problem) for problem in problems)


def near_miss(word: str, known: Iterable[str]) -> str:
    """A hint that names the known word nearest to `word`, or else all of them when they are few.

    >>> near_miss("prun", ["fuse", "prune"])
    'did you mean "prune"?'
    """
    known = list(known)
    close = nearest(word, known)
    if close:
        return f'did you mean "{close}"?'
    if not known:
        return ""
    more = f" and {len(known) - 12} more" if len(known) > 12 else ""
    return f"known here: {', '.join(known[:12])}{more}"


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that is spelt most like `word`, if any is much like it."""
    by_lower = {name.lower(): name for name in known}
    close = difflib.get_close_matches(word[:80].lower(), by_lower, n=1, cutoff=0.6)
    return by_lower[close[0]] if close else None


def quoted(value: str) -> str:
    """The value as the user wrote it, on one line, shortened when long."""
    shown = "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in value[:60])
    return f'"{shown}…"' if len(value) > 60 else f'"{shown}"'


def _short(path: str) -> str:
    return path if len(path) <= 2 * _LINE_WIDTH else f"{path[:_LINE_WIDTH]}…{path[-_LINE_WIDTH:]}"


def _position(problem: Problem) -> tuple[str, int, int, str, str]:
    place = problem.place or Place("", 0, 0, "")
    return place.file, place.line, place.column, problem.code, problem.message


def _paragraph(problem: Problem) -> str:
    if problem.place is None or not problem.place.text.strip():
        return str(problem)
    text, caret = _window(problem.place)
    return f"{problem}\n{problem.place.line:>5} | {text}\n      | {caret}"


def _window(place: Place) -> tuple[str, str]:
    """The part of the line round the column, with unprintable characters replaced, and its caret."""
    column = place.column - 1
    start = max(0, column - _LINE_WIDTH // 2) if len(place.text) > _LINE_WIDTH else 0
    part = place.text[start : start + _LINE_WIDTH]
    shown = "".join(char if char.isprintable() else " " for char in part)
    return shown.rstrip(), " " * (column - start) + "^"
