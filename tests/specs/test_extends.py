"""`extends`: inherited options, search paths, and refusals."""

from collections.abc import Callable
from pathlib import Path

import pytest

from fxpress.specs import QuantizeOptions, SpecError, list_presets, load_spec, render

Write = Callable[..., Path]
MODEL = "model: {source: net.py:Net, inputs: {x: {shape: [1, 8]}}}\n"


def test_mappings_are_merged_and_lists_replaced(write: Write, sound: str) -> None:
    write(sound, "base.yaml")
    text = "extends: base.yaml\ntarget: {ram: 8 KiB}\npasses: [{pass: clean}]\noutputs: {c: {self_test: 0}}\n"
    loaded = load_spec(write(text, "top.yaml"))
    assert (loaded.spec.target.name, loaded.spec.target.ram) == ("cortex-m4f", 8 * 1024)
    assert [step.name for step in loaded.spec.passes] == ["clean"]
    assert loaded.spec.outputs.c is not None
    assert (loaded.spec.outputs.c.name, loaded.spec.outputs.c.self_test) == ("net", 0)
    assert [file.name for file in loaded.files] == ["top.yaml", "base.yaml"]
    assert str(loaded.origin("outputs.c.name")).endswith("base.yaml:14:13")
    assert str(loaded.origin("outputs.c.self_test")).endswith("top.yaml:4:26")


def test_relative_paths_are_relative_to_the_file_they_are_written_in(write: Write, sound: str) -> None:
    base = write(sound, "shared/base.yaml")
    write("", "pyproject.toml")
    text = "extends: ../shared/base.yaml\nmodel: {weights: net.safetensors}\n"
    spec = load_spec(write(text, "nets/top.yaml")).spec
    assert spec.data.calibration is not None
    assert spec.data.calibration.file == base.parent / "train.npz"
    assert spec.model.weights == base.parent.parent / "nets" / "net.safetensors"


def test_a_chain_of_three_is_merged_from_the_bottom(write: Write, sound: str) -> None:
    write(sound, "a.yaml")
    write("extends: a.yaml\noutputs: {c: {name: b}}\n", "b.yaml")
    spec = load_spec(write("extends: b.yaml\noutputs: {c: {self_test: 1}}\n", "c.yaml")).spec
    assert spec.outputs.c is not None
    assert (spec.outputs.c.name, spec.outputs.c.self_test) == ("b", 1)


@pytest.mark.parametrize("preset", list_presets())
def test_a_preset_needs_a_model_and_data_only(write: Write, preset: str) -> None:
    text = f"extends: {preset}\n{MODEL}data: {{calibration: {{file: c.npz}}}}\n"
    loaded = load_spec(write(text))
    assert str(loaded.origin("passes[0].pass")).startswith(f"{preset}:")
    assert loaded.spec.outputs.c or loaded.spec.outputs.torch


def test_the_presets_are_those_that_the_documentation_names() -> None:
    assert list_presets() == ("preset/fuse-only", "preset/int8-mcu", "preset/int8-torch")


def test_an_int8_preset_still_quantizes_when_the_target_is_another(write: Write) -> None:
    text = f"extends: preset/int8-mcu\n{MODEL}data: {{calibration: {{file: c.npz}}}}\ntarget: {{name: cortex-m0plus}}\n"
    loaded = load_spec(write(text))
    assert loaded.target.name == "cortex-m0plus"
    assert any(isinstance(step, QuantizeOptions) for step in loaded.spec.passes)


@pytest.mark.parametrize(
    ("base", "code", "message"),
    [
        ("none.yaml", "S122", 'file not found: "none.yaml"; known presets are preset/fuse-only'),
        ("preset/int8-mpu", "S122", 'unknown preset "int8-mpu"; did you mean "preset/int8-mcu"?'),
        ("preset/../int8-mcu", "S122", "unknown preset"),
        ("../net.yaml", "S123", '"../net.yaml" is outside the project; the project is the folder'),
        ("/etc/passwd", "S123", "is outside the project"),
        ("net.yaml", "S121", "a cycle, net.yaml -> net.yaml; remove one of the links"),
        ("'7'", "S122", "file not found:"),
        ("7", "S203", "extends: expects a text, got 7"),
    ],
)
def test_a_base_that_cannot_be_is_told_at_its_place(
    write: Write, sound: str, base: str, code: str, message: str
) -> None:
    with pytest.raises(SpecError) as caught:
        load_spec(write(f"{sound}extends: {base}\n"))
    assert [problem.code for problem in caught.value.problems] == [code]
    assert message in render(caught.value.problems)
    assert "net.yaml:15:10: extends: " in render(caught.value.problems)


def test_a_cycle_of_three_names_all_of_them(write: Write) -> None:
    for name, base in (("a", "b"), ("b", "c"), ("c", "a")):
        write(f"extends: {base}.yaml\n", f"{name}.yaml")
    with pytest.raises(
        SpecError, match=r"c\.yaml:1:10: extends: a cycle, a.yaml -> b.yaml -> c.yaml -> a.yaml"
    ):
        load_spec(write("extends: b.yaml\n", "a.yaml"))


def test_a_link_out_of_the_project_is_followed_before_it_is_judged(
    write: Write, sound: str, tmp_path: Path
) -> None:
    outside = write(sound, "outside.yaml")
    inside = write("extends: base.yaml\n", "project/net.yaml")
    (inside.parent / "base.yaml").symlink_to(outside)
    with pytest.raises(SpecError, match="S123"):
        load_spec(inside)
    (tmp_path / "pyproject.toml").touch()
    assert load_spec(inside).spec.model.inputs


def test_a_fault_in_a_base_is_told_where_it_stands(write: Write, sound: str) -> None:
    write(sound.replace("[1, 3, 8, 8]", '[1, "3", 8, 8]'), "base.yaml")
    with pytest.raises(
        SpecError, match=r"base\.yaml:5:20: model\.inputs\.x\.shape\[1\]: expects a whole number"
    ):
        load_spec(write("extends: base.yaml\n"))


def test_a_base_that_is_not_yaml_is_told_with_what_was_wrong_before_it(write: Write) -> None:
    write("a: [1\n", "base.yaml")
    with pytest.raises(SpecError) as caught:
        load_spec(write("extends: base.yaml\nmodel: .nan\n"))
    assert [problem.code for problem in caught.value.problems] == ["S103", "S112"]
