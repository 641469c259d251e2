"""Targets: those of fxpress, those of a user, and changes of a target in a spec."""

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from fxpress.specs import SpecError, TargetChoice, Toolchain, list_targets, load_spec, load_target

Write = Callable[..., Path]
BOARD = """\
name: board
description: a board of ours
isa: armv7e-m
ram: 20 KiB
flash: 64 kB
features: [dsp]
toolchain: {commands: [arm-none-eabi-gcc], flags: [-mcpu=cortex-m4]}
"""


def test_the_targets_are_those_that_were_promised() -> None:
    promised = {"cortex-m0plus", "cortex-m3", "cortex-m4f", "cortex-m7", "cortex-m33", "cortex-m55"}
    assert promised | {"esp32-c3", "riscv32", "host"} <= set(list_targets())


@pytest.mark.parametrize("name", list_targets())
def test_a_target_says_all_that_compiling_for_it_takes(name: str, tmp_path: Path) -> None:
    target = load_target(name)
    assert target.name == name
    assert (target.ram is None) == (target.isa == "host")
    assert ("dsp" in target.features) == (target.isa in ("armv7e-m", "armv8-m.main", "armv8.1-m.main"))
    command = next(filter(None, map(shutil.which, target.toolchain.commands)), None)
    if command is None:
        pytest.skip(f"none of {', '.join(target.toolchain.commands)} is installed")
    source = tmp_path / "a.c"
    source.write_text("float half(float x) { return x * 0.5f; }\n")
    flags = [*target.toolchain.flags, "-c", str(source), "-o", str(tmp_path / "a.o")]
    subprocess.run([command, *flags], check=True)


def test_features_agree_with_what_the_compiler_is_told() -> None:
    macros = {"dsp": "__ARM_FEATURE_DSP", "fpu": "__ARM_FP"}
    command = shutil.which("arm-none-eabi-gcc")
    if command is None:
        pytest.skip("arm-none-eabi-gcc is not installed")
    for target in map(load_target, list_targets()):
        if not target.isa.startswith("arm"):
            continue
        done = subprocess.run(
            [command, *target.toolchain.flags, "-dM", "-E", "-x", "c", "-"],
            input="",
            capture_output=True,
            text=True,
            check=True,
        )
        defined = {line.split()[1] for line in done.stdout.splitlines()}
        assert {f for f, macro in macros.items() if macro in defined} == set(target.features) & set(macros), (
            target.name
        )


def test_a_choice_changes_what_it_names_and_nothing_else() -> None:
    plain = load_target("cortex-m4f")
    choice = TargetChoice(name="cortex-m4f", ram="20 KiB", toolchain=Toolchain(commands=("clang",)))  # type: ignore[arg-type]
    changed = load_target("cortex-m4f", choice)
    assert (changed.ram, changed.toolchain.commands) == (20 * 1024, ("clang",))
    assert changed.model_copy(update={"ram": plain.ram, "toolchain": plain.toolchain}) == plain


def test_a_target_of_ones_own_is_a_file(write: Write, sound: str) -> None:
    board = write(BOARD, "boards/board.yaml")
    assert load_target(board).flash == 64_000
    loaded = load_spec(write(sound.replace("cortex-m4f", "boards/board.yaml")))
    assert loaded.target.name == "board"
    assert loaded.files == (loaded.path, board)


def test_a_target_file_with_faults_shows_them_beside_those_of_the_spec(write: Write, sound: str) -> None:
    write(BOARD.replace("20 KiB", "20").replace("isa", "cpu"), "board.yaml")
    with pytest.raises(SpecError) as caught:
        load_spec(write(sound.replace("cortex-m4f", "board.yaml").replace("[1, 3,", "[0, 3,")))
    assert sorted((p.code, str(p.place).rpartition("/")[2]) for p in caught.value.problems) == [
        ("S201", "board.yaml:3:1"), ("S202", "board.yaml:1:1"), ("S205", "net.yaml:5:17"), ("S206", "board.yaml:4:6"),
    ]  # fmt: skip


def test_an_unknown_target_names_the_nearest() -> None:
    with pytest.raises(SpecError, match=r'unknown target "cortexm4f"; did you mean "cortex-m4f"\? \[S309\]'):
        load_target("cortexm4f")
    with pytest.raises(SpecError, match=r'file not found: "none.yaml"'):
        load_target("none.yaml")


def test_a_target_file_with_its_own_compiler_does_not_take_the_core_s_way_to_install_it(write: Write) -> None:
    board = "name: board\ndescription: d\ncore: cortex-m4\n"
    core = load_target("cortex-m4").toolchain
    assert load_target(write(board, "plain.yaml")).toolchain == core and core.install
    flags = load_target(write(board + "toolchain: {flags: [-O1]}\n", "flags.yaml")).toolchain
    assert (flags.commands, flags.install) == (core.commands, core.install)
    other = load_target(write(board + "toolchain: {commands: [mycc]}\n", "other.yaml")).toolchain
    assert (other.commands, other.flags, other.install) == (("mycc",), core.flags, None)


@pytest.mark.parametrize(
    ("key", "value", "hint"),
    [("simulator", "UC_CPU_ARM_CORTEX_M5", "UC_CPU_ARM_CORTEX_M"), ("measured", "cortexm4", "cortex-m4")],
)
def test_a_name_of_a_core_that_there_is_not_is_refused(write: Write, key: str, value: str, hint: str) -> None:
    with pytest.raises(
        SpecError, match=rf'{key}: the text "{value}" is not one of .*did you mean "{hint}.*S204'
    ):
        load_target(write(f"{BOARD}{key}: {value}\n", "board.yaml"))


def test_the_core_that_the_docs_show_is_one(write: Write) -> None:
    page = (Path(__file__).parents[2] / "docs" / "spec.md").read_text()
    core = re.search(r"```yaml\n# boards/(cores/m33-plain.yaml)\n(.*?)```", page, re.DOTALL)
    assert core is not None
    write(core[2], core[1])
    target = load_target(write(f"name: board\ndescription: d\ncore: {core[1]}\n", "board.yaml"))
    assert (target.isa, target.features, target.simulator) == ("armv8-m.main", (), "UC_CPU_ARM_CORTEX_M33")


def test_bits_that_the_kernels_of_a_target_lack_are_refused(write: Write, sound: str) -> None:
    write(BOARD, "board.yaml")
    spec = sound.replace("cortex-m4f", "board.yaml")
    for bits, problem in (
        ("activations: int16", "board has no kernel for int16 activations; it has int8"),
        ("weights: int2", "board has no kernel for int2 weights; it has int8"),
        ("residual: int16", "board has no kernel for int16 residual; it has int8"),
        ("gates: int16", "board has no kernel for int16 gates; it has int8"),
        ("outputs: int16", "board has no kernel for int16 outputs; it has int8"),
        ("layers: {head: {weights: int2}}", "layers.head.weights: board has no kernel for int2 weights"),
        ("layers: {head: {activations: int16}}", "layers.head.activations: board has no kernel for int16"),
    ):
        with pytest.raises(SpecError, match="S305") as caught:
            load_spec(write(spec.replace("pass: quantize", f"pass: quantize\n    {bits}")))
        assert problem in str(caught.value)


def test_bits_to_choose_from_are_refused_where_they_are_named_and_the_target_lacks_them(
    write: Write, sound: str
) -> None:
    write(BOARD, "board.yaml")
    spec = sound.replace("cortex-m4f", "board.yaml")
    step = "pass: assign_bits\n    budget: {weights: 50 %}\n"
    load_spec(write(spec.replace("pass: quantize", f"{step}  - pass: quantize")))
    for bits in ("weights: [4, 8]", "activations: [8, 16]"):
        with pytest.raises(
            SpecError, match=r"board has no kernel for int(4 weights|16 activations)"
        ) as caught:
            load_spec(write(spec.replace("pass: quantize", f"{step}    {bits}\n  - pass: quantize")))
        assert "S305" in str(caught.value)


def test_a_budget_of_cycles_is_refused_where_the_cycles_of_the_target_are_not_known(
    write: Write, sound: str
) -> None:
    step = "pass: {}\n    budget: {{{}: 50 %}}\n  - pass: quantize"
    for name in ("assign_bits", "prune"):
        cycles, instructions = (step.format(name, unit) for unit in ("cycles", "instructions"))
        load_spec(write(sound.replace("pass: quantize", cycles)))  # on a Cortex-M4
        elsewhere = sound.replace("cortex-m4f", "cortex-m7")
        load_spec(write(elsewhere.replace("pass: quantize", instructions)))
        with pytest.raises(SpecError, match=r"cortex-m7 has no cycle counts") as caught:
            load_spec(write(elsewhere.replace("pass: quantize", cycles)))
        assert "S310" in str(caught.value) and "write `instructions`" in str(caught.value)
