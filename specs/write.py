"""Writes values as the YAML text of a spec, with only the keys that were given; `reader` reads back the same values.

>>> print(yaml_text({"pass": "fuse", "keep": ["head", "1e5"]}))
pass: fuse
keep: [head, "1e5"]
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from .diagnosis import diagnose
from .errors import SpecError
from .model import FileSource, ModuleSource
from .reader import read_text
from .root_error import ArgumentError, shown
from .section import Section
from .tree import plain

_PLAIN_TEXT = re.compile(
    r"(\.{0,2}/|[A-Za-z_])[\w./-]*(:[\w./-]+)*|[0-9.]+ (%|[kKMG]i?B|B|[kMG]?Hz|[kMG]|dB)"
)
_WORDS = {"null", "true", "false"}
_LONGEST_LINE = 80

SectionType = TypeVar("SectionType", bound=Section)


def read_values(model: type[SectionType], values: Mapping[str, object], *, name: str) -> SectionType:
    """A section of these values, checked as in a file; SpecError shows them as YAML under `name`."""
    reading = read_text(yaml_text(values), name=name, folder=Path.cwd())
    try:
        return model.model_validate(plain(reading.root))
    except ValidationError as err:
        raise SpecError(diagnose(err, reading.root, model)) from err


def yaml_text(value: object) -> str:
    """A value as YAML; ArgumentError for objects that no spec can hold."""
    return "\n".join(_block(_data(value)))


def flow_text(value: object) -> str:
    """A value as YAML on one line; ArgumentError for objects that no spec can hold."""
    return _flow(_data(value))


def section_values(section: Section, folder: Path | None = None) -> dict[str, Any]:  # Any: JSON
    """Keys of a section that were set, and its tag; paths are relative to `folder`, or absolute."""
    context = {"folder": str(folder)} if folder else None
    return _given_keys(section, section.model_dump(mode="json", by_alias=True, context=context))


def _data(value: object) -> Any:  # Any: JSON
    """The value as mappings, lists and single values."""
    match value:
        case Section():
            return section_values(value)
        case Mapping():
            return {str(key): _data(item) for key, item in value.items()}
        case None | bool() | int() | float():
            return value
        case str() | Path() | FileSource() | ModuleSource():
            return str(value)
        case Sequence():
            return [_data(item) for item in value]
        case _:
            fact = f"a spec cannot hold {shown(value)}"
            raise ArgumentError("value of a spec", fact, "give texts, numbers, lists, mappings and sections")


def _given_keys(section: Section, dumped: dict[str, Any]) -> dict[str, Any]:  # Any: JSON
    return {
        field.alias or name: _given(getattr(section, name), dumped[field.alias or name])
        for name, field in type(section).model_fields.items()
        if name in section.model_fields_set or _tells_kind(field)
    }


def _given(value: object, dumped: Any) -> Any:  # Any: JSON
    """Dumped value of a field that was set; nested sections are dumped by `section_values`."""
    match value:
        case Section():
            return _given_keys(value, dumped)
        case Mapping():
            return {str(key): _given(item, dumped[str(key)]) for key, item in value.items()}
        case tuple():
            return [_given(item, text) for item, text in zip(value, dumped, strict=True)]
        case _:
            return dumped


def _tells_kind(field: FieldInfo) -> bool:
    """True if the field distinguishes a section from others, as `pass` does; its default is written, too."""
    return get_origin(field.annotation) is Literal and get_args(field.annotation) == (field.default,)


def _block(value: Any) -> list[str]:  # Any: JSON
    """Lines of a value in block style; short values are in flow style."""
    if isinstance(value, dict) and value:
        return [line for key, item in value.items() for line in _entry(key, item)]
    if isinstance(value, list) and value:
        blocks = [_block(item) if isinstance(item, dict) else [_flow(item)] for item in value]
        return [f"{'  ' if i else '- '}{line}" for block in blocks for i, line in enumerate(block)]
    return [_flow(value)]


def _entry(key: str, value: Any) -> list[str]:  # Any: JSON
    """Lines of a key and its value; mappings in a list have lines of their own."""
    line = f"{_flow(key)}: {_flow(value)}"
    is_short = len(line) <= _LONGEST_LINE and _depth(value) <= 2
    has_mappings = isinstance(value, list) and any(isinstance(item, dict) for item in value)
    return (
        [line]
        if is_short and not has_mappings
        else [f"{_flow(key)}:", *(f"  {line}" for line in _block(value))]
    )


def _depth(value: Any) -> int:  # Any: JSON
    """Levels of lists and mappings that are not empty."""
    if not isinstance(value, dict | list) or not value:
        return 0
    return 1 + max(map(_depth, value.values() if isinstance(value, dict) else value))


def _flow(value: Any) -> str:  # Any: JSON
    """A value on one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_flow(key)}: {_flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_flow, value)) + "]"
    if not isinstance(value, str):
        return json.dumps(value)
    is_plain = _PLAIN_TEXT.fullmatch(value) and value.lower() not in _WORDS
    return value if is_plain else json.dumps(value, ensure_ascii=False)
