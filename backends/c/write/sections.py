"""Linker sections: a macro for each, and the functions and constants in it."""

from __future__ import annotations

import re
from dataclasses import dataclass

_FUNCTION = re.compile(
    r"^(?=(?:FXP_NOINLINE|FXP_NOCLONE|FXP_ONCE|static)\b(?! const\b)[^;={]*\()", re.MULTILINE
)


@dataclass(frozen=True, slots=True)
class SectionMacro:
    """Macro that places a definition in a section; `content` describes the section in a comment."""

    macro: str
    name: str
    content: str

    def placed(self, text: str) -> str:
        """C with the macro before each function that is not always inlined."""
        return _FUNCTION.sub(f"{self.macro} ", text)


def weights_section(prefix: str, name: str | None) -> SectionMacro | None:
    """The section of the constants; None for the compiler's."""
    return None if name is None else SectionMacro(f"{prefix}_WEIGHTS_SECTION", name, "the constants")


def code_section(prefix: str, name: str | None) -> SectionMacro | None:
    """The section of the functions; None for the compiler's."""
    return None if name is None else SectionMacro(f"{prefix}_CODE_SECTION", name, "the functions")
