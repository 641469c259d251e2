"""Base class of pass options: the key `pass`, order constraints, and required data."""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal, TypeAlias

from pydantic import ConfigDict

from ..section import Section, Selects
from ..tree import Location

Need: TypeAlias = Literal["calibration", "labels"]
"""Data that a pass needs: samples, or samples with labels."""


def _require_pass(schema: dict[str, Any]) -> None:  # any: a JSON schema
    schema["required"] = ["pass", *schema.get("required", [])]


class PassOptions(Section):
    """Options of one pass. A subclass declares `pass_` with its name, and the class variables that differ
    from these.
    """

    model_config = ConfigDict(json_schema_extra=_require_pass)

    before: ClassVar[tuple[str, ...]] = ()
    """Passes that must not run before this one."""
    after: ClassVar[tuple[str, ...]] = ()
    """Passes that must all run before this one."""
    followed_by: ClassVar[tuple[str, ...]] = ()
    """Passes that must all run after this one."""
    is_last: ClassVar[bool] = False
    """True if no other pass can run after this one."""
    repeatable: ClassVar[bool] = False
    """True if the pass can occur more than once."""
    predicted: ClassVar[bool] = True
    """True if cost predictions for earlier passes run this pass; False for passes that train or that decide by costs.
    """
    needs: ClassVar[frozenset[Need]] = frozenset()
    """Data that the pass always needs; `needed` adds the data that depends on options."""
    written: ClassVar[frozenset[str]] = frozenset()
    """Options that name files which the pass writes; files in all other options must exist."""
    fits_microcontrollers: ClassVar[bool] = True
    """True if C for targets other than `host` can be written for the graph that the pass returns."""
    why: ClassVar[str] = ""
    """The reason for `before` and `after`, as the end of a message."""

    @classmethod
    def pass_name(cls) -> str:
        """The name of the pass, as the spec writes it."""
        return str(cls.model_fields["pass_"].default)

    @property
    def name(self) -> str:
        """The name of the pass, as the spec writes it."""
        return self.pass_name()

    @property
    def takes_all_samples(self) -> bool:
        """True if the pass trains, and uses all samples by default."""
        return False

    def needed(self) -> Iterator[tuple[Need, Location]]:
        """Data that the pass needs, each with the location of the option that requires it."""
        for need in sorted(self.needs):
            yield need, ()
        for name, inner in self._inner():
            yield from ((need, (name, *location)) for need, location in inner.needed())

    def _inner(self) -> Iterator[tuple[str, "PassOptions"]]:
        """Nested options of another pass, such as those of a training between steps."""
        for name in type(self).model_fields:
            value = getattr(self, name)
            if isinstance(value, PassOptions):
                yield name, value

    def layer_patterns(self) -> Iterator[tuple[Location, str]]:
        """All layer patterns in the options, each with its location inside them."""
        for name, inner in self._inner():
            yield from (((name, *location), pattern) for location, pattern in inner.layer_patterns())
        yield from _own_patterns(self)


def _own_patterns(section: Section) -> Iterator[tuple[Location, str]]:
    """Patterns over layer names in the fields of a section, and of sections in it that are no options of a pass."""
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, Section) and not isinstance(value, PassOptions):
            yield from (((name, *location), pattern) for location, pattern in _own_patterns(value))
        if not any(isinstance(mark, Selects) for mark in field.metadata):
            continue
        is_mapping = isinstance(value, Mapping)
        yield from (((name, p if is_mapping else i), p) for i, p in enumerate(value))
