"""The JSON schema and the reference page, both made from the models."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from fxpress.specs import PASSES, SpecError, json_schema, list_presets, load_spec
from fxpress.specs.load import PRESETS
from fxpress.specs.reference import renewed

PAGE = Path(__file__).parents[2] / "docs" / "spec.md"
KINDS: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "boolean": (bool,),
    "integer": (int,),
    "number": (int, float),
    "null": (type(None),),
}
Schema = dict[str, Any]
Write = Callable[..., Path]


def _faults(value: Any, schema: Schema, root: Schema) -> list[str]:
    """Violations of a schema by a value; supports the part of draft 2020-12 that our schema uses."""
    if "$ref" in schema:
        schema = {
            **root["$defs"][schema["$ref"].rpartition("/")[2]],
            **{k: v for k, v in schema.items() if k != "$ref"},
        }
    found = []
    if "type" in schema and not isinstance(value, KINDS[schema["type"]]):
        return [f"{value!r} is no {schema['type']}"]
    if "enum" in schema and value not in schema["enum"]:
        found.append(f"{value!r} is none of {schema['enum']}")
    if "const" in schema and value != schema["const"]:
        found.append(f"{value!r} is not {schema['const']!r}")
    if "pattern" in schema and not re.search(schema["pattern"], value):
        found.append(f"{value!r} is not like {schema['pattern']}")
    for key, count in (("anyOf", 1), ("oneOf", 1)):
        if key in schema and sum(not _faults(value, part, root) for part in schema[key]) < count:
            found.append(f"{value!r} fits none of {key}")
    if isinstance(value, dict):
        found += [f"{key} is missing" for key in schema.get("required", []) if key not in value]
        for key, item in value.items():
            part = schema.get("properties", {}).get(key, schema.get("additionalProperties", True))
            found += (
                [f"{key} is unknown"] if part is False else [] if part is True else _faults(item, part, root)
            )
    if isinstance(value, list) and "items" in schema:
        found += [fault for item in value for fault in _faults(item, schema["items"], root)]
    return found


def _example() -> str:
    match = re.search(r"```yaml\n(# yaml-language-server.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert match
    return match[1]


def _described(schema: Schema) -> Iterator[tuple[str, Schema]]:
    for title, part in [("Spec", schema), *schema["$defs"].items()]:
        for key, field in part.get("properties", {}).items():
            yield f"{title}.{key}", field


def test_the_example_of_the_page_is_sound(write: Write) -> None:
    loaded = load_spec(write(_example()))
    assert [step.name for step in loaded.spec.passes] == ["clean", "fuse", "quantize", "remove_dead_channels"]


def test_the_schema_takes_what_the_loader_takes() -> None:
    schema = json_schema()
    assert _faults(yaml.safe_load(_example()), schema, schema) == []
    for preset in list_presets():
        text = (PRESETS / f"{preset.removeprefix('preset/')}.yaml").read_text()
        value = {**yaml.safe_load(text), "extends": preset}
        assert _faults(value, schema, schema) == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("fxpress: 1", "fxpress: 2"),
        ("ram: 64 KiB", "ram: 64"),
        ("pass: fuse", "pass: fuze"),
        ("metric: top1", "metric: top7"),
        ("  source", "  sorce"),
        ("self_test", "selftest"),
        ("coverage: 99.99 %", "coverage: 3"),
        ("form: qdq", "form: qqq"),
        ("- pass: clean", "- disable: []"),
        ("samples: 256", 'samples: "256"'),
        ("outputs:", "output:"),
    ],
)
def test_the_schema_refuses_what_the_loader_refuses(write: Write, old: str, new: str) -> None:
    text = _example().replace("c: {name: kws", "c: {self_test: 1, name: kws")
    assert old in text
    schema, wrong = json_schema(), text.replace(old, new, 1)
    assert _faults(yaml.safe_load(wrong), schema, schema)
    with pytest.raises(SpecError):
        load_spec(write(wrong))


def test_every_key_has_a_description() -> None:
    assert [name for name, field in _described(json_schema()) if not field.get("description")] == []


def test_every_default_in_the_schema_fits_its_own_schema() -> None:
    schema = json_schema()
    for name, field in _described(schema):
        if field.get("default") is not None and not isinstance(field["default"], dict):
            assert _faults(field["default"], field, schema) == [], name


def test_the_reference_page_is_what_the_models_say() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert renewed(page) == page, "run: python -m fxpress.specs.reference docs/spec.md"
    assert all(f"### pass: {name}" in page for name in PASSES)


def test_links_of_the_reference_page_lead_somewhere() -> None:
    page = PAGE.read_text(encoding="utf-8")
    titles = {
        title.lower().replace(":", "").replace(" ", "-")
        for title in re.findall(r"^#+ (.*)$", page, re.MULTILINE)
    }
    assert set(re.findall(r"\]\(#(.*?)\)", page)) <= titles
