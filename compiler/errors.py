"""Errors that a user can mend: problems with a code and a place, printed together, exit status 2.

Codes: M1 loading a model, M2 capturing it, D1 data, O3 output directories, R4 running, T5 tools, B6 budgets.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: where, the fact, and in `hint` what to do about it."""

    code: str
    place: str
    message: str
    hint: str = ""

    def __str__(self) -> str:
        where = f"{self.place}: " if self.place else ""
        what_to_do = f"; {self.hint}" if self.hint else ""
        return f"{where}{self.message}{what_to_do} [{self.code}]"


class UserError(Exception):
    """Something in the user's model, data, target or file system; all problems of one check at once."""

    def __init__(self, problems: Problem | Iterable[Problem]) -> None:
        self.problems = (problems,) if isinstance(problems, Problem) else tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))
