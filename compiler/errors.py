"""Errors that a user can mend: problems with a code and a place, printed together, exit status 2.

`codes` has the meaning of each code.
"""

from __future__ import annotations

from collections.abc import Iterable

from ..backends.errors import Problem
from ..specs.root_error import FxpressError, expect, message_of

__all__ = ["Problem", "UserError", "first_line"]


class UserError(FxpressError):
    """Something in the user's model, data, target or file system; all problems of one check at once."""

    def __init__(self, problems: Problem | Iterable[Problem]) -> None:
        self.problems = (problems,) if isinstance(problems, Problem) else tuple(problems)
        for problem in self.problems:
            expect(problem, Problem, f"{type(self).__name__}(problems)", "a `Problem` or several")
        super().__init__("\n".join(str(problem) for problem in self.problems))


_TOO_LITTLE_MEMORY = ("can't allocate memory", "not enough memory", "out of memory")
_LONGEST = 200


def is_out_of_memory(err: BaseException) -> bool:
    """Whether memory ran out; the CPU allocator of torch raises a plain RuntimeError."""
    words = _TOO_LITTLE_MEMORY if isinstance(err, RuntimeError) else ()
    return isinstance(err, MemoryError) or any(word in str(err) for word in words)


def shorten(text: str) -> str:
    """A name, a path or a sentence for a message: both ends where it is long."""
    half = _LONGEST // 2
    return text if len(text) <= _LONGEST else f"{text[:half]}…{text[-half:]}"


def first_line(err: BaseException) -> str:
    """Class of an error and the first line of its message."""
    text = message_of(err).strip().splitlines()
    return f"{type(err).__name__}: {shorten(text[0]) if text else ''}".rstrip(": ")
