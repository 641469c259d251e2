"""Parts that other packages add, found by entry points and loaded when they are used.

A part that cannot be loaded is an error only where a spec uses it. docs/plugins.md has an example of each kind.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoints, entry_points
from typing import Annotated, Any, TypeVar

from pydantic import Field, GetCoreSchemaHandler, GetJsonSchemaHandler, TypeAdapter
from pydantic_core import CoreSchema, core_schema

from .diagnosis import BROKEN
from .errors import nearest
from .root_error import FxpressError
from .section import Section, fault

SectionType = TypeVar("SectionType", bound=Section)


class PluginError(FxpressError):
    """A part of another package that cannot be loaded, or that no package provides."""

    code = "S210"


@dataclass(frozen=True)
class Seam:
    """A kind of part that packages add: the group of its entry points, and its noun in messages."""

    group: str
    noun: str

    def names(self) -> tuple[str, ...]:
        """Names of all parts; loads nothing."""
        return tuple(sorted({entry.name for entry in _entries(self.group)}))

    def load(self, name: str) -> object:
        """Loads the part with this name; PluginError with the error of its package."""
        for entry in _entries(self.group).select(name=name):
            try:
                return entry.load()
            except (Exception, SystemExit) as err:  # the package may raise anything
                raise PluginError(
                    f'{self.noun} "{name}" is part of a package that cannot be used: {entry.value} raises '
                    f"{type(err).__name__}: {err}"
                ) from err
        raise PluginError(f'no package provides the {self.noun} "{name}"')


PASS_OPTIONS = Seam("fxpress.options", "pass")
PASSES = Seam("fxpress.passes", "pass")
FUSION_RULES = Seam("fxpress.fusion_rules", "fusion rule")
OBSERVER_OPTIONS = Seam("fxpress.observer_options", "observer")
OBSERVERS = Seam("fxpress.observers", "observer")
SENSITIVITY_METHODS = Seam("fxpress.sensitivity_methods", "sensitivity method")
OPERATORS = Seam("fxpress.operators", "operator")
KERNELS = Seam("fxpress.kernels", "kernel")
TARGETS = Seam("fxpress.targets", "target")
BACKEND_OPTIONS = Seam("fxpress.backend_options", "backend")
BACKENDS = Seam("fxpress.backends", "backend")

SEAMS = (
    PASS_OPTIONS,
    PASSES,
    FUSION_RULES,
    OBSERVER_OPTIONS,
    OBSERVERS,
    SENSITIVITY_METHODS,
    OPERATORS,
    KERNELS,
    TARGETS,
    BACKEND_OPTIONS,
    BACKENDS,
)

_installed = cache(entry_points)  # every installed package is read once


def _entries(group: str) -> EntryPoints:
    return _installed().select(group=group)


def versions() -> dict[str, str]:
    """The versions of the packages that add parts."""
    found = (entry.dist for seam in SEAMS for entry in _entries(seam.group))
    return {dist.name: dist.version for dist in found if dist is not None}


def join(
    seam: Seam, base: type[SectionType], own: Mapping[str, type[SectionType]], *, kind: str | None = None
) -> dict[str, type[SectionType]]:
    """Sections of a kind, from fxpress and from packages, by the name that a spec uses.

    With `kind` the name is the default of the field of that name, which distinguishes the sections. Sections that
    cannot be used are recorded in `BROKEN`.
    """
    joined = dict(own)
    for entry in sorted(_entries(seam.group), key=lambda entry: entry.name):
        try:
            section = entry.load()
            name = entry.name if kind is None else section.model_fields[kind].default
            if not issubclass(section, base) or name in joined:
                raise TypeError(f"{entry.value} is not a {base.__name__} with its own name")
            if kind is not None and own:
                choice: Any = Annotated[
                    next(iter(own.values())) | section, Field(discriminator=kind)
                ]  # any: a type
                TypeAdapter(choice)
        except (Exception, SystemExit) as err:  # the package may raise anything
            BROKEN[seam.noun, entry.name] = f"{entry.value} raises {type(err).__name__}: {err}"
        else:
            joined[name] = section
    return joined


@dataclass(frozen=True)
class NamedPart:
    """Marks a text that names a part of fxpress or of a package."""

    seam: Seam
    own: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """All known names."""
        return (*self.own, *self.seam.names())

    def check(self, value: str) -> str:
        """The name itself; a fault if no such part exists."""
        if value in self.names:
            return value
        if not self.names:
            fact = f"names a {self.seam.noun} of a package, but no installed package has one"
            raise fault("S204", fact, hint="install the package, or remove the name")
        near = nearest(value, self.names)
        fact = f"is not one of {', '.join(self.names)}"
        raise fault("S204", fact, hint=f'did you mean "{near}"?' if near else "")

    def __get_pydantic_core_schema__(self, source: type[str], handler: GetCoreSchemaHandler) -> CoreSchema:
        """Schema of a text with `check` as validator."""
        return core_schema.no_info_after_validator_function(self.check, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """The known names as an enumeration, if there are any; any: JSON."""
        return {"enum": list(self.names), "type": "string"} if self.names else {"type": "string"}
