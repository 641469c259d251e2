"""The JSON schema of specs, for editors."""

from typing import Any

from .spec import VERSION, Spec


def json_schema() -> dict[str, Any]:  # any: JSON
    """The JSON schema (draft 2020-12) of a spec file, with a description on every key.

    What a spec extends may supply any key, so the keys that a whole spec must have are asked for only in a spec
    that extends nothing.
    """
    schema = Spec.model_json_schema(by_alias=True)
    required = schema.pop("required")
    head = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"fxpress spec, version {VERSION}",
    }
    return {**schema, **head, "anyOf": [{"required": required}, {"required": ["extends"]}]}
