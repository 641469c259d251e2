"""Converts errors of pydantic to problems with code, position in the file, and hint."""

import re
from collections.abc import Mapping as AbstractMapping
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from .errors import Place, Problem, near_miss, nearest, quoted
from .paths import format_path
from .tree import Location, Mapping, Node, Scalar, Sequence, find, key_place, place_of

_TYPES = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "a text",
    "tuple_type": "a list",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "dict_type": "a mapping",
    "mapping_type": "a mapping",
}
_BOUNDS = {
    "greater_than": "must be more than {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be less than {lt}",
    "less_than_equal": "must be at most {le}",
    "too_short": "must have at least {min_length} entries",
    "string_too_short": "must not be empty",
    "string_too_long": "must have at most {max_length} characters",
}

BROKEN: dict[tuple[str, str], str] = {}
"""Sections of packages that cannot be used, by noun and name, with the error that the package raises."""


@dataclass(frozen=True)
class _Spot:
    """Location of an error in the tree, the class of the section, and whether the key itself is the error."""

    location: Location
    section: type[BaseModel] | None
    is_key: bool


def diagnose(err: ValidationError, root: Node, model: type[BaseModel]) -> list[Problem]:
    """One problem for each error of pydantic in the tree, validated as `model`; a misspelt key is one problem, not
    two.
    """
    details = err.errors(include_url=False)
    unknown = [_spot(d["loc"], model) for d in details if d["type"] == "extra_forbidden"]
    misspelt = [(*spot.location[:-1], near) for spot in unknown if (near := _meant(spot))]
    told = [d for d in details if d["type"] != "missing" or _spot(d["loc"], model).location not in misspelt]
    return [_problem(d, root, model) for d in told]


def _problem(details: ErrorDetails, root: Node, model: type[BaseModel]) -> Problem:
    spot = _spot(details["loc"], model)
    context = details.get("ctx", {})
    kind = details["type"]
    if kind == "extra_forbidden":
        return _unknown_key(spot, root)
    if kind == "missing":
        return _missing_key(spot, root)
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        return _unknown_tag(spot, root, context)
    place = place_of(root, spot.location)
    node = find(root, spot.location)
    if spot.is_key:
        place = key_place(root, spot.location)
        node = Scalar(str(spot.location[-1]), str(spot.location[-1]), place, Path())
    code, message, hint = _about_value(kind, context, node, details["msg"])
    path = format_path(spot.location)
    return Problem(code, place, f"{path}: {message}" if path else message, hint)


def _unknown_key(spot: _Spot, root: Node) -> Problem:
    key = str(spot.location[-1])
    known = _keys(spot.section) if spot.section else []
    parent = format_path(spot.location[:-1])
    if parent == "outputs" and ("backend", key) in BROKEN:
        return _broken("backend", key, key_place(root, spot.location), parent)
    message = f"{parent + ': ' if parent else ''}unknown key {quoted(key)}"
    return Problem("S201", key_place(root, spot.location), message, near_miss(key, known))


def _meant(spot: _Spot) -> str | None:
    """The known key that the user probably meant by an unknown key."""
    return nearest(str(spot.location[-1]), _keys(spot.section) if spot.section else [])


def _missing_key(spot: _Spot, root: Node) -> Problem:
    key = str(spot.location[-1])
    parent = format_path(spot.location[:-1])
    fields = spot.section.model_fields.items() if spot.section else ()
    about = next((field.description for name, field in fields if key in (name, field.alias)), None) or ""
    message = f"{parent + ': ' if parent else ''}the key {quoted(key)} is missing"
    hint = f"add it: {about[:1].lower()}{about[1:].rstrip('.')}"
    return Problem("S202", place_of(root, spot.location[:-1]), message, hint)


def _unknown_tag(spot: _Spot, root: Node, context: AbstractMapping[str, Any]) -> Problem:
    """Problem for an unknown pass or observer, or for a mapping without the key that names its kind."""
    key = re.findall(r"\w+", str(context["discriminator"]))[0].rstrip("_")
    node, path = find(root, spot.location), format_path(spot.location)
    if isinstance(node, Mapping):
        if key not in node.entries:
            hint = f"write `{key}: ...` first"
            return Problem("S202", node.place, f"{path}: the key {quoted(key)} is missing", hint)
        node, path = node.entries[key].node, f"{path}.{key}"
    elif "tag" not in context:
        hint = f"write `{key}: {node.text}`" if isinstance(node, Scalar) and node.value is not None else ""
        return Problem(
            "S203", place_of(root, spot.location), f"{path}: expects a mapping, got {_got(node)}", hint
        )
    place = node.place if node else place_of(root, spot.location)
    if not isinstance(node, Scalar) or not isinstance(node.value, str):
        return Problem("S203", place, f"{path}: expects a text, got {_got(node)}")
    known = re.findall(r"'([^']*)'", str(context.get("expected_tags", "")))
    what = "pass" if key == "pass" else str(spot.location[-1])
    if (what, node.value) in BROKEN:
        return _broken(what, node.value, place, path)
    return Problem("S204", place, f"{path}: unknown {what} {quoted(node.text)}", near_miss(node.text, known))


def _broken(noun: str, name: str, place: Place, path: str) -> Problem:
    """Problem for a section of a package that cannot be loaded."""
    message = f"{path}: the package that provides {quoted(name)} cannot be used: {BROKEN[noun, name]}"
    return Problem("S210", place, message, "repair or remove the package")


def _about_value(
    kind: str, context: AbstractMapping[str, Any], node: Node | None, default: str
) -> tuple[str, str, str]:
    """Code, message and hint for an invalid value."""
    if kind == "fault":
        shown = f"{quoted(node.text)} " if isinstance(node, Scalar) and _is_about(context["message"]) else ""
        return context["code"], f"{shown}{context['message']}", context["hint"]
    if kind == "literal_error":
        known = re.findall(r"'([^']*)'", context["expected"]) or re.findall(r"[0-9]+", context["expected"])
        near = nearest(node.text, known) if isinstance(node, Scalar) else None
        hint = f'did you mean "{near}"?' if near else ""
        return "S204", f"{_got(node)} is not one of {', '.join(known)}", hint
    if kind in _BOUNDS:
        return "S205", f"{_BOUNDS[kind].format(**context)}, got {_got(node)}", ""
    if kind in _TYPES:
        return "S203", f"expects {_TYPES[kind]}, got {_got(node)}", _type_hint(kind, node)
    return "S203", f"{default[:1].lower()}{default[1:]}, got {_got(node)}", ""


def _is_about(message: str) -> bool:
    """True if the message of a validator continues a sentence that begins with the value."""
    return message.startswith(("is ", "must ", "does ", "cannot ", "names "))


def _got(node: Node | None) -> str:
    match node:
        case Mapping():
            return "a mapping"
        case Sequence():
            return "a list"
        case Scalar(value=str()):
            return f"the text {quoted(node.text)}"
        case Scalar(value=None) | None:
            return "nothing"
        case Scalar():
            return node.text


def _type_hint(kind: str, node: Node | None) -> str:
    """Hint for a value of the wrong type."""
    if not isinstance(node, Scalar):
        return ""
    if kind == "bool_type" and node.text.lower() in ("yes", "on", "no", "off"):
        return f"write {'true' if node.text.lower() in ('yes', 'on') else 'false'}"
    if kind in ("int_type", "float_type") and isinstance(node.value, str) and node.text.strip().isdigit():
        return f"write {int(node.text)}, without quotes or leading zeros"
    if kind.startswith("int") and isinstance(node.value, float) and node.value.is_integer():
        return f"write {int(node.value)}"
    if kind == "tuple_type" and node.value is not None:
        return f"write [{node.text}]"
    return "write it in quotes" if kind == "string_type" and node.value is not None else ""


def _keys(section: type[BaseModel]) -> list[str]:
    return [field.alias or name for name, field in section.model_fields.items()]


def _spot(loc: tuple[str | int, ...], model: type[BaseModel]) -> _Spot:
    """Converts a location of pydantic to a location in the tree: follows the types and skips the tags of unions."""
    annotation: Any = model  # any: any form of type annotation
    location: list[str | int] = []
    section: type[BaseModel] | None = None
    for step in loc:
        annotation = _bare(annotation)
        if step == "[key]":
            return _Spot(tuple(location), section, is_key=True)
        members = _members(annotation)
        if members:
            only = members[0] if len(members) == 1 else None  # the other members are plain names
            annotation = next((member for member in members if _tag(member) == step), only)
        elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
            section = annotation
            location.append(step)
            fields = {field.alias or name: field for name, field in annotation.model_fields.items()}
            annotation = fields[str(step)].annotation if str(step) in fields else None
        elif get_origin(annotation) in (tuple, AbstractMapping):
            location.append(step)
            annotation = get_args(annotation)[-1 if get_origin(annotation) is AbstractMapping else 0]
    return _Spot(tuple(location), section, is_key=False)


def _bare(annotation: Any) -> Any:  # any: any form of type annotation
    """The annotation without `Annotated` and without `| None`."""
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if get_origin(annotation) in (Union, UnionType):
        rest = [member for member in get_args(annotation) if member is not NoneType]
        return _bare(rest[0]) if len(rest) == 1 else annotation
    return annotation


def _members(annotation: Any) -> list[type[BaseModel]]:  # any: any form of type annotation
    """Section classes of a tagged union; empty for any other type."""
    if get_origin(annotation) not in (Union, UnionType):
        return []
    bare = [_bare(member) for member in get_args(annotation)]
    return [member for member in bare if isinstance(member, type) and issubclass(member, BaseModel)]


def _tag(member: type[BaseModel]) -> str:
    """Tag of a member of a tagged union: the default of its first field."""
    return str(next(iter(member.model_fields.values())).default)
