"""Errors that a user can correct: problems with a code and a place, printed together, exit status 2.

`codes` has the meaning of each code.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..backends.errors import Problem
from ..specs.root_error import FxpressError, expect, message_of

__all__ = ["NAMES_SHOWN", "Problem", "UserError", "counted", "first_line", "listed", "shortened"]


class UserError(FxpressError):
    """An error in the user's model, data, target or file system; all problems of one check together."""

    def __init__(self, problems: Problem | Iterable[Problem]) -> None:
        self.problems = (problems,) if isinstance(problems, Problem) else tuple(problems)
        for problem in self.problems:
            expect(problem, Problem, f"{type(self).__name__}(problems)", "a `Problem` or several")
        super().__init__("\n".join(str(problem) for problem in self.problems))


NAMES_SHOWN = 3
_MOST_PER_CODE = 8


def listed(names: Sequence[str]) -> str:
    """Names for a message: the first ones, and the number of the others."""
    more = len(names) - NAMES_SHOWN
    return ", ".join(names[:NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")


def counted(names: Sequence[str]) -> str:
    """One name, or the number of tensors and the first of their names."""
    return names[0] if len(names) == 1 else f"{len(names)} tensors: {listed(names)}"


def shortened(problems: Iterable[Problem]) -> list[Problem]:
    """The first problems of each code; the last one has the number of the others."""
    by_code: dict[str, list[Problem]] = {}
    for problem in dict.fromkeys(problems):
        by_code.setdefault(problem.code, []).append(problem)
    shown = []
    for code, group in by_code.items():
        kept, more = group[:_MOST_PER_CODE], len(group) - _MOST_PER_CODE
        if more > 0:
            last = kept[-1]
            kept[-1] = Problem(code, last.place, f"{last.message} (and {more} more like it)", last.hint)
        shown += kept
    return shown


_TOO_LITTLE_MEMORY = ("can't allocate memory", "not enough memory", "out of memory")
_LONGEST = 200


def is_out_of_memory(err: BaseException) -> bool:
    """True if memory ran out; the CPU allocator of torch raises a plain RuntimeError."""
    words = _TOO_LITTLE_MEMORY if isinstance(err, RuntimeError) else ()
    return isinstance(err, MemoryError) or any(word in str(err) for word in words)


def shorten(text: str) -> str:
    """A name, a path or a sentence for a message; of a long one, both ends."""
    half = _LONGEST // 2
    return text if len(text) <= _LONGEST else f"{text[:half]}…{text[-half:]}"


def first_line(err: BaseException) -> str:
    """Class of an error and the first line of its message."""
    text = message_of(err).strip().splitlines()
    return f"{type(err).__name__}: {shorten(text[0]) if text else ''}".rstrip(": ")
