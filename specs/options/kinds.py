"""Options that are one of several kinds: a name alone, or a mapping with `kind` and the parameters of that kind."""

from collections.abc import Sequence
from typing import Any

from pydantic import GetJsonSchemaHandler
from pydantic_core import CoreSchema

from ..section import Section


def named(value: Any) -> Any:  # any: whatever the user wrote, checked by the models
    """A name as the equivalent mapping."""
    return {"kind": value} if isinstance(value, str) else value


class NamesInSchema:
    """Tells the JSON schema that the name of one of these kinds will do."""

    def __init__(self, kinds: Sequence[type[Section]]) -> None:
        self._kinds = kinds

    def __get_pydantic_json_schema__(
        self, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:  # any: a JSON schema
        names = [member.model_fields["kind"].default for member in self._kinds]
        return {"anyOf": [{"enum": names}, handler(core_schema)]}
