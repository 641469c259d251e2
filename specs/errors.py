"""Problems of a spec, each with code, location and hint, and the exception that carries them."""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from .root_error import FxpressError, expect


@dataclass(frozen=True)
class ErrorCode:
    """Meaning of an error code, and what to do when it is reported (`remedy`)."""

    meaning: str
    remedy: str


CODES: Mapping[str, ErrorCode] = {
    "S101": ErrorCode(
        "a file cannot be read",
        "Check the path and its permissions. It must be a regular file, not a directory, a pipe or a device.",
    ),
    "S102": ErrorCode(
        "a file is not plain UTF-8 text",
        "Save the file as UTF-8 without a byte-order mark, and remove control characters.",
    ),
    "S103": ErrorCode(
        "a file is not valid YAML",
        "Correct the syntax at the place shown: indentation (spaces, no tabs), brackets, a space after each colon, "
        "quotes around a text that contains `: `.",
    ),
    "S104": ErrorCode(
        "a file is nested too deeply", "Write the value with fewer levels; aliases count in full."
    ),
    "S105": ErrorCode(
        "a file is too large", "Store data in files of their own, and name those files in the spec."
    ),
    "S106": ErrorCode(
        "a file has more than one document", "Keep one document, and remove the `---` after it."
    ),
    "S107": ErrorCode(
        "a file is empty",
        "Write a spec, which begins with `fxpress: 1`. `fxpress init MODEL` writes one for a model.",
    ),
    "S108": ErrorCode("a key occurs twice in one mapping", "Remove one of the two entries."),
    "S109": ErrorCode(
        "a value has a YAML tag",
        "Remove the tag, such as `!!str` or `!include`. Quote the value if a text is meant.",
    ),
    "S110": ErrorCode(
        "an alias refers to itself or to no anchor, or expands to too many values",
        "Write the value in place of the alias.",
    ),
    "S111": ErrorCode("a key is not a text on one line", "Write each entry as `key: value`."),
    "S112": ErrorCode(
        "a number is not finite, or too large", "Write a finite number, or quote it if a text is meant."
    ),
    "S113": ErrorCode(
        "a file does not contain a mapping", "Write `key: value` lines at the top level of the file."
    ),
    "S121": ErrorCode("`extends` forms a cycle", "Remove one of the `extends` that the message lists."),
    "S122": ErrorCode(
        "`extends` names a file or a preset that does not exist",
        "Check the name. A path is relative to the file in which it is written; a preset is written `preset/NAME`.",
    ),
    "S123": ErrorCode(
        "`extends` names a file outside the project",
        "Move that file into the project: the nearest folder above the spec with a `pyproject.toml` or a `.git`, else "
        "the folder of the spec.",
    ),
    "S131": ErrorCode(
        "an override is not of the form path=value", "Write for example `--set passes[1].samples=64`."
    ),
    "S132": ErrorCode(
        "a path names no place in the spec",
        "Join keys by dots and count list entries from 0, as in `passes[1].samples`. `fxpress explain SPEC passes` "
        "lists the paths below a key. `extends` cannot be overridden.",
    ),
    "S201": ErrorCode(
        "a key is unknown", "Correct the key, or remove it. docs/spec.md and `fxpress passes` list the keys."
    ),
    "S202": ErrorCode("a required key is missing", "Add the key that the message names."),
    "S203": ErrorCode(
        "a value has the wrong type",
        "Write a value of the type in the message. Quote a number or a word that is meant as a text.",
    ),
    "S204": ErrorCode(
        "a value is not one of those allowed", "Choose one of the values in the message, or in docs/spec.md."
    ),
    "S205": ErrorCode(
        "a value is out of its range, or options of one section exclude or require each other",
        "Choose a value within the range, or add or remove the option that the message names.",
    ),
    "S206": ErrorCode(
        "a quantity has no unit, or a wrong one",
        "Write a number and a unit, for example `64 KiB`, `60 %`, `80 MHz` or `15 dB`.",
    ),
    "S207": ErrorCode(
        "a text does not have the required form",
        "Write the form in the message, for example `model.py:Net` for a source or `nhwc->nchw` for a layout.",
    ),
    "S208": ErrorCode(
        "the spec is written for another version of the language",
        "Write `fxpress: 1`, or install a version of fxpress that supports it.",
    ),
    "S209": ErrorCode(
        "C output is requested, but inputs have dynamic dimensions",
        "C has fixed sizes. Remove `dynamic` under `model.inputs`, or `outputs.c`, and compile once for each.",
    ),
    "S210": ErrorCode(
        "a pass, an observer, a backend, a target or another part belongs to a package that cannot be loaded",
        "Repair or remove the package; the message has the error of its import.",
    ),
    "S301": ErrorCode("a pass is at an invalid position", "Change the order; the message shows a valid one."),
    "S302": ErrorCode(
        "a pass requires another one before or after it", "Add the pass that the message names."
    ),
    "S303": ErrorCode("a pass that can run only once occurs twice", "Remove one of the two."),
    "S304": ErrorCode(
        "a pass needs data that the spec does not define",
        "Add `data.calibration`, or its `labels`, as the message shows.",
    ),
    "S305": ErrorCode(
        "the target has no kernel for a bit width",
        "Choose a bit width that the message lists, or another target: see `fxpress targets`.",
    ),
    "S306": ErrorCode("a name is not an input of the model", "Write a name from `model.inputs`."),
    "S307": ErrorCode("two settings contradict each other", "Change one of the two; the message names both."),
    "S308": ErrorCode(
        "a metric needs labels",
        "Add `data.evaluation.labels`, or measure `agreement` or `snr`, which compare with the captured model.",
    ),
    "S309": ErrorCode(
        "the target, or the core of a target file, is unknown",
        "Choose a name from `fxpress targets`. For your own target file write its path, which ends in `.yaml`, "
        "`.yml` or "
        "`.json`.",
    ),
    "S310": ErrorCode(
        "a budget of cycles for a target without published cycle counts",
        "Write `instructions` in place of `cycles`, or choose a target whose core has `timing`: its manufacturer "
        "publishes how many cycles each instruction takes.",
    ),
    "S311": ErrorCode(
        "a file that the spec names does not exist",
        "Check the path; it is relative to the file in which it is written.",
    ),
    "S312": ErrorCode(
        "a file does not contain what the spec expects",
        "Correct the name of the attribute or the array in the spec, or write the file again in the form that the "
        "message describes.",
    ),
    "S401": ErrorCode(
        "a layer pattern matches no layer",
        "Correct the pattern; the message lists the nearest layers, and `fxpress plan SPEC` lists all.",
    ),
}
"""Codes of specs: S1 reading of files, S2 single values, S3 consistency between values, S4 layer patterns."""

_LINE_WIDTH = 100


@dataclass(frozen=True)
class Place:
    """Line and column, both counted from 1, in a file or an override; `text` is the whole line."""

    file: str
    line: int
    column: int
    text: str

    def __str__(self) -> str:
        return f"{_short(self.file)}:{self.line}:{self.column}"


@dataclass(frozen=True)
class Problem:
    """A problem: the fact and, in `hint`, the remedy."""

    code: str
    place: Place | None
    message: str
    hint: str = ""

    def __str__(self) -> str:
        where = f"{self.place}: " if self.place else ""
        what_to_do = f"; {self.hint}" if self.hint else ""
        return f"{where}{self.message}{what_to_do} [{self.code}]"


class SpecError(FxpressError):
    """A spec, a target or an override that is invalid; `problems` holds all problems, sorted by position."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        for problem in self.problems:
            expect(problem, Problem, "SpecError(problems)", "several `Problem`")
        self.problems = tuple(sorted(self.problems, key=_position))
        super().__init__(render(self.problems))


def render(problems: Iterable[Problem]) -> str:
    """Text for a terminal: each problem with its source line and a caret under the column.

    >>> print(render([Problem("S205", Place("net.yaml", 3, 8, "  ram: 0 B"), "ram: must be above 0")]))
    net.yaml:3:8: ram: must be above 0 [S205]
        3 |   ram: 0 B
          |        ^
    """
    return "\n".join(_paragraph(problem) for problem in problems)


def near_miss(word: str, known: Iterable[str]) -> str:
    """A hint with the known word nearest to `word`; without a near one, all known words if they are few.

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
    """The known word with the spelling nearest to `word`; None if no spelling is close."""
    by_lower = {name.lower(): name for name in known}
    close = difflib.get_close_matches(word[:80].lower(), by_lower, n=1, cutoff=0.6)
    return by_lower[close[0]] if close else None


def quoted(value: str) -> str:
    """The value as the user wrote it, on one line, shortened if long."""
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
    """The part of the line around the column, with unprintable characters replaced, and the caret below it."""
    column = place.column - 1
    start = max(0, column - _LINE_WIDTH // 2) if len(place.text) > _LINE_WIDTH else 0
    part = place.text[start : start + _LINE_WIDTH]
    shown = "".join(char if char.isprintable() else " " for char in part)
    return shown.rstrip(), " " * (column - start) + "^"
