"""YAML text of values and sections is read back as the same values."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fxpress.specs import FuseOptions, MseSearch, QuantizeOptions, SpecError, load_spec, parse_spec
from fxpress.specs.options import PASSES, LayerBits, PruneOptions
from fxpress.specs.reader import read_text
from fxpress.specs.root_error import ArgumentError
from fxpress.specs.tree import plain
from fxpress.specs.write import read_values, section_values, yaml_text

EXAMPLE_FOLDER = Path(__file__).parents[2] / "examples"
EXAMPLES = sorted(p for p in EXAMPLE_FOLDER.rglob("*.yaml") if "plugins" not in p.parts)
TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"])) | st.sampled_from(
    [
        "null",
        "True",
        "1e5",
        "~",
        ".inf",
        "-",
        "a: b",
        "x #y",
        "64 KiB",
        "0x1f",
        "nhwc->nchw",
        "net.py:Net",
        "*.head",
    ]
)
SCALARS = st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.floats(-1e9, 1e9) | TEXTS
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS.filter(bool), inner, max_size=3),
)


def read(text: str) -> object:
    return plain(read_text(text, name="text", folder=Path()).root)


def as_read(value: Any) -> object:
    """The value with the reader's types."""
    if isinstance(value, dict):
        return {key: as_read(item) for key, item in value.items()}
    return tuple(map(as_read, value)) if isinstance(value, list) else value


@given(st.dictionaries(TEXTS.filter(bool), VALUES, min_size=1, max_size=4))
def test_values_read_back_as_they_were(values: dict[str, object]) -> None:
    assert read(yaml_text(values)) == as_read(values)


def test_a_section_is_written_with_what_was_given_and_what_tells_its_kind() -> None:
    options = QuantizeOptions(observer=MseSearch(candidates=50), layers={"head": LayerBits(weights="int4")})
    assert yaml_text(options) == (
        "pass: quantize\nobserver: {kind: mse, candidates: 50}\nlayers: {head: {weights: int4}}"
    )


def test_quantities_keep_their_units() -> None:
    options = read_values(PruneOptions, {"budget": {"macs": "60 %", "ram": "64 KiB"}}, name="prune(...)")
    assert yaml_text(options) == "pass: prune\nbudget: {macs: 60 %, ram: 65536 B}"
    assert read_values(PruneOptions, {"budget": options.budget}, name="again").budget == options.budget


@pytest.mark.parametrize("name", PASSES)
def test_the_defaults_of_every_pass_are_one_key(name: str) -> None:
    needs_more = {"assign_bits", "prune", "sparsify", "stream"}
    if name not in needs_more:
        assert yaml_text(read_values(PASSES[name], {"pass": name}, name=name)) == f"pass: {name}"


def test_paths_are_written_relative_to_a_folder(tmp_path: Path) -> None:
    options = read_values(PruneOptions, {"plan": tmp_path / "plans" / "a.json"}, name="prune(...)")
    assert section_values(options, tmp_path) == {"pass": "prune", "plan": "plans/a.json"}


def test_a_value_that_is_wrong_is_shown_as_yaml() -> None:
    with pytest.raises(SpecError) as caught:
        read_values(FuseOptions, {"disable": ["batchnrom"], "kepe": ["x"]}, name="fuse(...)")
    assert str(caught.value) == (
        'fuse(...):1:11: disable[0]: the text "batchnrom" is not one of batchnorm, activation, residual, pad, linear, '
        'magnitude, product; did you mean "batchnorm"? [S204]\n'
        "    1 | disable: [batchnrom]\n"
        "      |           ^\n"
        'fuse(...):2:1: unknown key "kepe"; did you mean "keep"? [S201]\n'
        "    2 | kepe: [x]\n"
        "      | ^"
    )


def test_an_object_is_no_value_of_a_spec() -> None:
    with pytest.raises(ArgumentError, match=r"a spec cannot hold an object; give texts.*A101"):
        yaml_text({"keep": object()})


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_spec_that_is_written_says_the_same(path: Path) -> None:
    loaded = load_spec(path)
    text = loaded.spec.to_yaml(folder=path.parent)
    again = parse_spec(text, path.with_name("written.yaml"))
    assert again.canonical_text() == loaded.canonical_text()
    assert "extends" not in text and again.spec.to_yaml(folder=path.parent) == text
