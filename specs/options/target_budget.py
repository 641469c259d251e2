"""The budget `target`: flash and RAM of the target."""

from typing import Any

from pydantic import GetJsonSchemaHandler
from pydantic_core import CoreSchema


def in_full(value: Any) -> Any:  # any: a value from a spec, checked by the model
    """The word `target` as the equivalent mapping; other values unchanged."""
    return {"target": True} if value == "target" else value


class TargetInSchema:
    """Adds the word `target` alone as an alternative to the JSON schema."""

    def __get_pydantic_json_schema__(
        self, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:  # any: a JSON schema
        return {"anyOf": [{"const": "target"}, handler(core_schema)]}
