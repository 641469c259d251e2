"""Helpers of the emitted C: those parts of the headers in `include` that kernels need.

A header is paragraphs, separated by blank lines. A paragraph that defines a name (a function, macro or structure) is
emitted if functions, or emitted paragraphs, use that name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

__all__ = ["helpers"]

_INCLUDE = Path(__file__).parent / "include"
_GUARD = re.compile(r"^#ifndef (FXP_\w+_H)\n#define \1\n(.*)^#endif\n\Z", re.MULTILINE | re.DOTALL)
_COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)
_DEFINED = re.compile(
    r"^#define (\w+)|^FXP_DEFINE_\w+\((\w+)|^(?:FXP_\w+ |static )[^(;]*?(\w+)\(|^struct (\w+) \{|^\} (\w+);",
    re.MULTILINE,
)


@dataclass(frozen=True, slots=True)
class _Paragraph:
    """Lines of a header, the names that they define, and all names in them."""

    text: str
    defines: frozenset[str]
    mentions: frozenset[str]


def helpers(headers: Sequence[str], functions: Iterable[str]) -> tuple[str, ...]:
    """Definitions of the headers that `functions` need, in order; duplicates are taken from the first header."""
    defined: set[str] = set()
    paragraphs = []
    for paragraph in (paragraph for header in headers for paragraph in _paragraphs(header)):
        if not paragraph.defines <= defined:
            paragraphs.append(paragraph)
            defined |= paragraph.defines
    needed = set().union(*map(_names, functions))
    taken: set[_Paragraph] = set()
    while found := {p for p in paragraphs if p not in taken and p.defines & needed}:
        taken |= found
        needed = needed.union(*(p.mentions for p in found))
    kept = [(header, [p.text for p in _paragraphs(header) if p in taken]) for header in headers]
    return tuple(text for header, texts in kept if texts for text in (_text(header)[0], *texts))


@cache
def _paragraphs(header: str) -> tuple[_Paragraph, ...]:
    return tuple(
        _Paragraph(part, frozenset(_defined(part)), frozenset(_names(part)))
        for part in _parts(_text(header)[1])
    )


def _text(header: str) -> tuple[str, str]:
    """The comment at the top of a header, and the contents of its include guard."""
    text = (_INCLUDE / header).read_text(encoding="utf-8")
    guarded = _GUARD.search(text)
    assert guarded is not None, f"{header} has no include guard"
    return text[: guarded.start()], guarded[2]


def _parts(text: str) -> Iterator[str]:
    """Paragraphs; a blank line inside of braces or of a conditional does not separate. Inclusions are skipped."""
    part, depth = "", 0
    for line in text.splitlines(keepends=True):
        if line.startswith("#include"):
            continue
        if not line.strip() and not depth:
            if part:
                yield part
            part = ""
            continue
        part += line
        depth += len(re.findall(r"^#if|\{", line)) - len(re.findall(r"^#endif|\}", line))
    if part:
        yield part


def _defined(text: str) -> Iterator[str]:
    for groups in _DEFINED.findall(_COMMENT.sub("", text)):
        yield from (name for name in groups if name)


def _names(text: str) -> set[str]:
    return set(re.findall(r"\w+", _COMMENT.sub("", text)))
