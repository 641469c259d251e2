"""Options of one of several kinds: a name alone, or a mapping with `kind` and the parameters of that kind."""

from collections.abc import Sequence
from typing import Any

from pydantic import GetJsonSchemaHandler
from pydantic_core import CoreSchema

from ..section import Section


def named(value: Any) -> Any:  # any: a value from a spec, checked by the models
    """A name as the equivalent mapping; other values unchanged."""
    return {"kind": value} if isinstance(value, str) else value


class NamesInSchema:
    """Adds the name of a kind alone as an alternative to the JSON schema."""

    def __init__(self, kinds: Sequence[type[Section]]) -> None:
        self._kinds = kinds

    def __get_pydantic_json_schema__(
        self, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:  # any: a JSON schema
        names = [member.model_fields["kind"].default for member in self._kinds]
        return {"anyOf": [{"enum": names}, handler(core_schema)]}
