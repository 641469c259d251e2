"""JSON schema of specs, for editors."""

from typing import Any

from .spec import VERSION, Spec


def json_schema() -> dict[str, Any]:  # any: JSON
    """The JSON schema (draft 2020-12) of a spec file, with a description of every key.

    A base spec may provide any key, so required keys are required only in a spec without `extends`.
    """
    schema = Spec.model_json_schema(by_alias=True)
    required = schema.pop("required")
    head = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"fxpress spec, version {VERSION}",
    }
    return {**schema, **head, "anyOf": [{"required": required}, {"required": ["extends"]}]}
