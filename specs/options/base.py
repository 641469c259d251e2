"""Base class of pass options: the key `pass`, ordering constraints, and needed inputs."""

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal, TypeAlias

from pydantic import ConfigDict

from ..section import Section, Selects
from ..tree import Location

Need: TypeAlias = Literal["calibration", "labels"]
"""Data that a pass works on: samples, and what is right for each."""


def _require_pass(schema: dict[str, Any]) -> None:  # any: a JSON schema
    schema["required"] = ["pass", *schema.get("required", [])]


class PassOptions(Section):
    """Options of one pass. A subclass declares `pass_` with its name, and the class variables that differ."""

    model_config = ConfigDict(json_schema_extra=_require_pass)

    before: ClassVar[tuple[str, ...]] = ()
    """Passes that must not stand before this one."""
    after: ClassVar[tuple[str, ...]] = ()
    """Passes of which each must stand before this one."""
    followed_by: ClassVar[tuple[str, ...]] = ()
    """Passes of which each must stand behind this one."""
    is_last: ClassVar[bool] = False
    """Whether no other pass can run after it."""
    repeatable: ClassVar[bool] = False
    """Whether a second one can make sense."""
    predicted: ClassVar[bool] = True
    """Whether predictions of costs for earlier passes run it; not where it trains or itself decides by costs."""
    needs: ClassVar[frozenset[Need]] = frozenset()
    """The data without which the pass cannot run, whatever its options are; `needed` adds what options ask for."""
    written: ClassVar[frozenset[str]] = frozenset()
    """Options whose files the pass writes; all others that name files must be there."""
    fits_microcontrollers: ClassVar[bool] = True
    """Whether C can be written for other targets than computers for the graph that the pass makes."""
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
    def trains(self) -> bool:
        """Whether the pass learns from its samples, so that it takes all that there are by default."""
        return False

    def needed(self) -> Iterator[tuple[Need, Location]]:
        """The data without which the pass cannot run, each with the location of the option that asks for it."""
        for need in sorted(self.needs):
            yield need, ()
        for name, inner in self._inner():
            yield from ((need, (name, *location)) for need, location in inner.needed())

    def _inner(self) -> Iterator[tuple[str, "PassOptions"]]:
        """Options of another pass among these, such as those of a training between steps."""
        for name in type(self).model_fields:
            value = getattr(self, name)
            if isinstance(value, PassOptions):
                yield name, value

    def layer_patterns(self) -> Iterator[tuple[Location, str]]:
        """Every pattern over layer names in the options, with its location inside them."""
        for name, inner in self._inner():
            yield from (((name, *location), pattern) for location, pattern in inner.layer_patterns())
        for name, field in type(self).model_fields.items():
            if not any(isinstance(mark, Selects) for mark in field.metadata):
                continue
            patterns = getattr(self, name)
            is_mapping = isinstance(patterns, Mapping)
            yield from (((name, p if is_mapping else i), p) for i, p in enumerate(patterns))
