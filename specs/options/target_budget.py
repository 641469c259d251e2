"""The budget `target`: flash and RAM of the target."""

from typing import Any

from pydantic import GetJsonSchemaHandler
from pydantic_core import CoreSchema


def in_full(value: Any) -> Any:  # any: whatever the user wrote, checked by the model
    """The word as the equivalent mapping."""
    return {"target": True} if value == "target" else value


class TargetInSchema:
    """Tells the JSON schema that the word `target` alone will do."""

    def __get_pydantic_json_schema__(
        self, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:  # any: a JSON schema
        return {"anyOf": [{"const": "target"}, handler(core_schema)]}
