"""Specs whose values are wrong, one by one and in relation to each other, and specs that are sound."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from fxpress.specs import (
    CODES,
    FileSource,
    ModuleSource,
    Percentile,
    Problem,
    QuantizeOptions,
    SpecError,
    load_spec,
    render,
)

ProblemsOf = Callable[..., tuple[Problem, ...]]
Write = Callable[..., Path]

FAULTS: dict[str, dict[str, str]] = yaml.safe_load(Path(__file__).with_name("faults.yaml").read_text())


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_value_is_told_with_its_place_and_what_to_do(
    problems_of: ProblemsOf, sound: str, fault: str
) -> None:
    told = FAULTS[fault]
    assert told["replace"] in sound
    problems = problems_of(sound.replace(told["replace"], told["by"], 1))
    assert [problem.code for problem in problems] == [told["code"]], render(problems)
    assert str(problems[0].place).endswith(f":{told['place']}"), render(problems)
    assert told["message"] in problems[0].message
    assert told["hint"] in problems[0].hint


def test_every_code_is_met_by_a_test() -> None:
    tests = "".join(path.read_text() for path in Path(__file__).parent.glob("*.*"))
    assert [code for code in CODES if not re.search(rf'"{code}"|\[{code}|code: {code}', tests)] == []


def test_all_problems_come_at_once_in_the_order_of_the_file(problems_of: ProblemsOf) -> None:
    problems = problems_of(
        "fxpress: 1\n"
        "model: {source: net.py:Net, inputs: {x: {shape: [1, 3.0]}}}\n"
        "target: {name: cortex-m4g, ram: 64}\n"
        "passes: [{pass: quantize, wieghts: int8}, {pass: fuse}]\n"
        "outputs: {c: {name: 9}, c: {}}\n"
    )
    assert [(p.code, str(p.place).partition(".yaml:")[2]) for p in problems] == [
        ("S203", "2:53"), ("S309", "3:16"), ("S206", "3:33"), ("S201", "4:27"), ("S301", "4:50"), ("S203", "5:21"),
        ("S108", "5:25"),
    ]  # fmt: skip


def test_c_takes_no_dynamic_dimensions(problems_of: ProblemsOf, sound: str) -> None:
    """C has fixed sizes, so one of `dynamic` and `outputs.c` must be removed."""
    text = re.sub(r"shape: (\[[^]]*\])", r"shape: \1, dynamic: {0: batch}", sound, count=1)
    (problem,) = problems_of(text)
    assert problem.code == "S209" and "C has fixed sizes" in problem.message


def test_a_problem_is_printed_with_its_line_and_a_caret(problems_of: ProblemsOf, sound: str) -> None:
    text = render(problems_of(sound.replace("pass: fuse", "pass: fuze")))
    first, line, caret = text.split("\n")
    assert first.endswith('net.yaml:11:11: passes[0].pass: unknown pass "fuze"; did you mean "fuse"? [S204]')
    assert line == "   11 |   - pass: fuze"
    assert caret == "      |           ^"


def test_an_ordinary_message_has_no_trace_of_pydantic(problems_of: ProblemsOf, sound: str) -> None:
    for fault in FAULTS.values():
        text = render(problems_of(sound.replace(fault["replace"], fault["by"], 1))).lower()
        assert "pydantic" not in text and "input should" not in text


def test_a_sound_spec_has_its_values_and_defaults(write: Write) -> None:
    loaded = load_spec(write())
    spec = loaded.spec
    assert spec.model.source == FileSource(loaded.path.parent / "net.py", "Net")
    assert spec.model.inputs["x"].shape == (1, 3, 8, 8)
    assert spec.data.calibration is not None
    assert spec.data.calibration.file == loaded.path.parent / "train.npz"
    assert spec.data.calibration.samples == 256
    assert [step.name for step in spec.passes] == ["fuse", "quantize"]
    assert loaded.target.name == "cortex-m4f"
    assert loaded.target.ram == 256 * 1024
    assert loaded.files == (loaded.path,)


def test_a_target_is_changed_by_the_spec(write: Write, sound: str) -> None:
    text = sound.replace("cortex-m4f", "cortex-m4f\n  ram: 64 KiB\n  features: [dsp]")
    target = load_spec(write(text)).target
    assert (target.ram, target.flash, target.features) == (64 * 1024, 1 << 20, ("dsp",))


def test_an_observer_is_a_name_or_a_mapping(write: Write, sound: str) -> None:
    for observer, coverage in (("percentile", 0.9999), ("{kind: percentile, coverage: 99 %}", 0.99)):
        text = sound.replace("pass: quantize", f"pass: quantize\n    observer: {observer}")
        quantize = load_spec(write(text)).spec.passes[1]
        assert isinstance(quantize, QuantizeOptions)
        assert isinstance(quantize.observer, Percentile)
        assert quantize.observer.coverage == coverage


def test_a_module_is_a_source(write: Write, sound: str) -> None:
    source = load_spec(write(sound.replace("net.py:Net", "torchvision.models:resnet18"))).spec.model.source
    assert source == ModuleSource("torchvision.models", "resnet18")


def test_arguments_of_the_network_are_plain_values(write: Write, sound: str) -> None:
    text = sound.replace(
        "net.py:Net", "net.py:Net\n  args: {widths: [8, [16, 2.5]], act: {name: relu, on: true}, x: null}"
    )
    args = load_spec(write(text)).spec.model.args
    assert args == {"widths": [8, [16, 2.5]], "act": {"name": "relu", "on": True}, "x": None}


def test_json_reads_like_yaml(write: Write) -> None:
    text = """{
  "fxpress": 1,
  "model": {"source": "net.py:Net", "inputs": {"x": {"shape": [1, 8], "dtype": "float32"}}},
  "passes": [],
  "outputs": {"torch": {}}
}"""
    loaded = load_spec(write(text, "net.json"))
    assert loaded.spec.outputs.torch is not None
    assert loaded.target.name == "host"


def test_integers_of_any_width_are_for_torch_too_where_no_c_is_written(write: Write, sound: str) -> None:
    text = sound.replace("pass: quantize", "pass: quantize\n    weights: int4").replace(
        "c: {name: net}", "torch: {}"
    )
    assert load_spec(write(text)).spec.outputs.c is None


def test_a_transform_tells_its_permutation(write: Write, sound: str) -> None:
    text = sound.replace("calibration", "transform: {x: {layout: NHWC -> nchw}}\n  calibration")
    transform = load_spec(write(text)).spec.data.transform["x"]
    assert (transform.layout, transform.permutation) == ("nhwc->nchw", (0, 3, 1, 2))


@pytest.mark.parametrize(
    ("described", "transform"),
    [
        ("shape: [6, 50]", "layout: ntc->nct"),
        ("shape: [6, 50]", "reshape: [6, 50]"),
        ("shape: [6, 50], batch: null", "layout: ntc->nct"),
        ("shape: [5, 1, 8], batch: 1", "reshape: [5, 8]"),
    ],
)
def test_a_transform_gives_whole_inputs_and_samples_without_their_batch(
    write: Write, sound: str, described: str, transform: str
) -> None:
    text = sound.replace("shape: [1, 3, 8, 8]", described)
    load_spec(write(text.replace("calibration", f"transform: {{x: {{{transform}}}}}\n  calibration")))


def test_values_cannot_be_changed(write: Write) -> None:
    spec = load_spec(write()).spec
    with pytest.raises(ValueError, match="frozen"):
        spec.fxpress = 2


def test_the_origin_of_a_value_is_its_place_or_a_default(write: Write) -> None:
    loaded = load_spec(write(), ["passes[1].samples=64"])
    assert str(loaded.origin("model.inputs.x.shape")).endswith("net.yaml:5:16")
    assert str(loaded.origin("passes[1].samples")) == "overrides:1:19"
    assert str(loaded.origin("passes[1].weights")) == "default"
    with pytest.raises(SpecError, match=r'"passes\[1\]\.wieghts" is not a key of the spec; did you mean'):
        loaded.origin("passes[1].wieghts")


def test_settings_are_every_value_with_its_meaning(write: Write) -> None:
    settings = {setting.path: setting for setting in load_spec(write()).settings()}
    assert settings["outputs.c.name"].value == "net"
    assert settings["passes[1].weights"].value == "int8"
    assert all(setting.description for setting in settings.values())


def test_the_canonical_text_depends_on_the_meaning_alone(write: Write, sound: str) -> None:
    text = load_spec(write()).canonical_text()
    elsewhere = sound.replace("name: cortex-m4f", 'name: "cortex-m4f"   # the board')
    assert load_spec(write(elsewhere, "other/net.yaml")).canonical_text() == text
    assert load_spec(write(sound.replace("train", "test"))).canonical_text() != text


def test_a_check_loads_none_of_the_libraries_that_take_seconds(write: Write) -> None:
    code = (
        "import sys; from fxpress.specs import load_spec; load_spec(sys.argv[1]);"
        "heavy = {'torch', 'numpy', 'networkx', 'scipy'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code, write()], check=True)
