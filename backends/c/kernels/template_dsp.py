"""Rendering of the kernel templates beside this module."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import Environment, FileSystemLoader, StrictUndefined

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

_FOLDER = Path(__file__).parent
_ENVIRONMENT = Environment(
    loader=FileSystemLoader(_FOLDER),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
    autoescape=False,
)


def dsp_header() -> str:
    """The C text that every kernel of this family needs once, before its first use."""
    return (_FOLDER.parent / "include" / "dsp.h").read_text(encoding="utf-8")


def render_template(template: str, context: DataclassInstance) -> str:
    """The C text of `template`, which sees the frozen context as `k`."""
    return _ENVIRONMENT.get_template(template).render(k=context)
