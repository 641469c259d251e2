"""Reference of the spec language, generated from the models: every key with its type, default and meaning.

python -m fxpress.specs.reference docs/spec.md      # renews the part of the page between the two marks
"""

import json
import sys
from pathlib import Path
from typing import Any

from .load import PRESETS, list_presets
from .options import PASSES
from .spec import Spec
from .target import CORES, Target, list_targets

BEGIN, END = "<!-- begin of the generated reference -->", "<!-- end of the generated reference -->"

_KINDS = {
    "integer": "whole number",
    "number": "number",
    "string": "text",
    "boolean": "`true`, `false`",
    "object": "mapping",
}

Schema = dict[str, Any]  # any: JSON


def reference() -> str:
    """The reference as Markdown."""
    schema = Spec.model_json_schema(by_alias=True)
    sections = _reachable(schema)
    parts = ["## Every key", _section("A spec", schema)]
    parts += [_section(_title(name), definition) for name, definition in sections.items()]
    target = Target.model_json_schema()
    parts += ["## Target files", _section("A target file", target)]
    parts += [_section(_title(name), d) for name, d in _reachable(target).items() if name not in sections]
    parts += [_targets()]
    parts += ["## Presets", _presets()]
    return "\n\n".join(parts) + "\n"


def renewed(page: str) -> str:
    """The page with its generated part renewed."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{reference()}\n{END}{after}"


def _reachable(schema: Schema) -> dict[str, Schema]:
    """The definitions of a schema, in order of first use."""
    definitions, met = schema["$defs"], list[str]()
    todo = _references(schema["properties"])
    while todo:
        name = todo.pop(0)
        if name not in met:
            met.append(name)
            todo = _references(definitions[name].get("properties", {})) + todo
    return {name: definitions[name] for name in met if "properties" in definitions[name]}


def _references(schema: Any) -> list[str]:  # any: a part of a JSON schema
    if isinstance(schema, dict):
        own = [schema["$ref"].rpartition("/")[2]] if "$ref" in schema else []
        return own + [
            name for key, part in schema.items() if key != "discriminator" for name in _references(part)
        ]
    return [name for part in schema for name in _references(part)] if isinstance(schema, list) else []


def _title(name: str) -> str:
    """Title of a section on the page: the spec key of a pass, otherwise the class name."""
    return next((f"pass: {key}" for key, options in PASSES.items() if options.__name__ == name), name)


def _section(title: str, schema: Schema) -> str:
    if not schema["properties"]:
        return "\n".join([f"### {title}", "", f"{schema['description']} No options: `{{}}`."])
    rows = ["| key | type | default | meaning |", "|---|---|---|---|"]
    required = schema.get("required", [])
    for key, field in schema["properties"].items():
        default = "*required*" if key in required else _default(field)
        rows.append(f"| `{key}` | {_kind(field)} | {default} | {_meaning(field)} |")
    return "\n".join([f"### {title}", "", schema["description"], "", *rows])


def _default(field: Schema) -> str:
    """The default as written in a spec; empty for a section, or if omission has a meaning of its own."""
    value = field.get("default")
    return "" if value is None or "$ref" in field else f"`{json.dumps(value)}`"


def _meaning(field: Schema) -> str:
    return str(field.get("description", "")).replace("|", "\\|").replace("\n", " ")


def _kind(field: Schema) -> str:
    """The type of a key, in a few words."""
    if "$ref" in field:
        name = field["$ref"].rpartition("/")[2]
        return "any value" if name == "JsonValue" else f"[{_title(name)}](#{_anchor(_title(name))})"
    for key in ("anyOf", "oneOf"):
        if key in field:
            kinds = [_kind(part) for part in field[key] if part.get("type") != "null"]
            return " or ".join(dict.fromkeys(kinds))
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    if "const" in field:
        return f"`{field['const']}`"
    if field.get("type") == "array":
        return f"list: {_kind(field['items'])}"
    entries = field.get("additionalProperties") or next(
        iter(field.get("patternProperties", {}).values()), None
    )
    if entries:
        return f"mapping: {_kind(entries)}"
    if "pattern" in field and "examples" in field:
        return f"text like `{field['examples'][0]}`"
    return _KINDS.get(str(field.get("type", "")), "any value")


def _anchor(title: str) -> str:
    return title.lower().replace(":", "").replace(" ", "-")


def _targets() -> str:
    cores = ", ".join(f"`{path.stem}`" for path in sorted(CORES.glob("*.yaml")))
    return "\n\n".join(
        [
            "Targets that come with fxpress: " + ", ".join(f"`{name}`" for name in list_targets()) + ".",
            f"Cores that a target file can be based on: {cores}.",
        ]
    )


def _presets() -> str:
    blocks = []
    for name in list_presets():
        text = (PRESETS / f"{name.rpartition('/')[2]}.yaml").read_text(encoding="utf-8")
        blocks.append(f"`extends: {name}`\n\n```yaml\n{text}```")
    return "\n\n".join(blocks)


def main(arguments: list[str]) -> None:
    """Renews the generated part of each page."""
    for name in arguments:
        page = Path(name)
        page.write_text(renewed(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
