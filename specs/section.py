"""Base class of all sections of a spec (strict, frozen, no unknown keys), and the types of their values.

Validators report problems with the codes of this project; `diagnosis` adds the position.
"""

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    SerializationInfo,
    StringConstraints,
    ValidationError,
    WithJsonSchema,
)
from pydantic_core import PydanticCustomError

from .diagnosis import diagnose
from .errors import Place, SpecError
from .root_error import ArgumentError, shown
from .tree import LocatedText, node_of

if TYPE_CHECKING:
    from pydantic._internal._model_construction import ModelMetaclass
else:
    ModelMetaclass = type(BaseModel)


class _MadeByName(ModelMetaclass):
    """Makes sections from Python values: converts lists to tuples, and raises SpecError as for a file."""

    if not TYPE_CHECKING:  # the signature is that of the section

        def __call__(cls, *args: object, **values: object) -> object:  # noqa: N805  # of a metaclass
            """A section with these values."""
            call = f"{cls.__name__}(...)"
            if args:
                hint = f"help({cls.__name__}) lists the names"
                raise ArgumentError(call, f"takes keyword arguments only, got {shown(args[0])}", hint)
            try:
                return super().__call__(**{name: _with_tuples(value) for name, value in values.items()})
            except ValidationError as err:
                problems = diagnose(err, node_of(values, Place(call, 1, 1, "")), cls)
                found = (replace(p, place=None, message=f"{call}: {p.message}") for p in problems)
                raise SpecError(found) from err


def _with_tuples(value: object) -> object:
    """The value with a tuple for each list."""
    return tuple(map(_with_tuples, value)) if isinstance(value, list) else value


class Section(BaseModel, metaclass=_MadeByName):
    """A mapping of a spec: immutable, without unknown keys or conversion of types."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Selects:
    """Marks a field whose patterns select layers of the model."""


def fault(code: str, message: str, *, hint: str = "") -> PydanticCustomError:
    """An error of a validator, with a code from `errors.CODES`."""
    return PydanticCustomError("fault", "{message}", {"code": code, "message": message, "hint": hint})


def resolve(path: str, *, folder_of: str) -> Path:
    """The path, relative to the folder of the file in which the text `folder_of` was written."""
    folder = folder_of.folder if isinstance(folder_of, LocatedText) else Path.cwd()
    return Path(os.path.normpath(folder / os.path.expanduser(path)))


def is_file(path: Path) -> bool:
    """True if the path is that of a file; False for invalid file names, too."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def why_no_file(path: Path) -> str:
    """Reason why a path is not that of a file."""
    if os.path.isdir(path):
        return "is a directory, not a file"
    return "is not a regular file" if os.path.exists(path) else "does not exist"


def shown_path(path: Path, info: SerializationInfo) -> str:
    """The path as text, relative to the folder in the context of a dump, if it has one."""
    return os.path.relpath(path, info.context["folder"]) if info.context else str(path)


def _file(value: Any) -> Any:  # any: a value from a spec, checked here
    if isinstance(value, Path):
        return value
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        raise fault("S203", "expects the path of a file")
    return resolve(value, folder_of=value)


def _pattern(value: str) -> str:
    if not all(part.strip() for part in value.split(".")):
        hint = "write the components of a layer's name with single dots, for example `blocks.*.conv`"
        raise fault("S207", "is not a layer pattern: a component is empty", hint=hint)
    return value


FilePath = Annotated[
    Path,
    BeforeValidator(_file),
    PlainSerializer(shown_path),
    WithJsonSchema(
        {"type": "string", "minLength": 1, "description": "path, relative to the file it is written in"}
    ),
]
"""Path of a file, absolute once it is read."""

LayerPattern = Annotated[str, AfterValidator(_pattern)]
"""Dot-anchored glob over layer names; see `selectors`."""

LayerPatterns = Annotated[tuple[LayerPattern, ...], Selects()]
"""List of patterns; each must match a layer."""

Name = Annotated[str, StringConstraints(min_length=1, max_length=200)]
"""Name of an input, an output or an array."""

Positive = Annotated[int, Field(gt=0, lt=2**31)]
"""A count of at least one."""
