"""A board of the user: a target file that builds on a core, and is a target everywhere."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from fxpress.compiler.cli import main

BOARD = """\
name: sensor-board
description: our board
core: {core}
ram: 24 KiB
flash: 96 KiB
stack: 2 KiB
clock: 40 MHz
toolchain:
  commands: [{command}]
  flags: {flags}
"""
ARM = '["-Os", "-mcpu=cortex-m4", "-mthumb", "-mfloat-abi=hard", "-mfpu=fpv4-sp-d16", "-DBOARD=1"]'
RISCV = '["-O2", "-march=rv32imc", "-mabi=ilp32", "-specs=picolibc.specs"]'


def write_board(project: Path, core: str, command: str, flags: str) -> None:
    (project / "boards").mkdir(exist_ok=True)
    (project / "boards" / "board.yaml").write_text(BOARD.format(core=core, command=command, flags=flags))
    spec = (project / "net.yaml").read_text()
    (project / "net.yaml").write_text(spec.replace("name: cortex-m4f", "name: boards/board.yaml"))


@pytest.mark.parametrize(
    ("core", "command", "flags"),
    [("cortex-m4f", "arm-none-eabi-gcc", ARM), ("rv32imc", "riscv64-unknown-elf-gcc", RISCV)],
)
def test_a_board_is_a_target_everywhere(
    project: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    core: str,
    command: str,
    flags: str,
) -> None:
    if shutil.which(command) is None:
        pytest.skip(f"{command} is not installed")
    monkeypatch.chdir(project)
    write_board(project, core, command, flags)
    assert main(["check", "net.yaml"]) == 0
    assert main(["plan", "net.yaml"]) == 0
    assert main(["compile", "net.yaml", "-o", "out"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"flash .* 98,304 B", said) and re.search(r"arena .* 24,576 B", said)
    assert ("at 40 MHz" in said) == (core == "cortex-m4f")
    given = ["--data", "data.npz", "--input", "image=x", "--samples", "3"]
    assert main(["run", "out", "--on", "host", *given, "--save", "host.npz"]) == 0
    for place in ("sensor-board", "boards/board.yaml"):
        assert main(["run", "out", "--on", place, *given, "--save", "board.npz"]) == 0
        assert f"on {place}" in capsys.readouterr().out
        with np.load("host.npz") as host, np.load("board.npz") as board:
            assert all(np.array_equal(host[name], board[name]) for name in host)


def test_a_compiler_that_is_missing_is_named(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    write_board(project, "cortex-m4f", "no-such-gcc", "[-O2]")
    assert main(["compile", "net.yaml", "-o", "out"]) == 0
    assert main(["run", "out", "--on", "sensor-board", "--data", "data.npz", "--input", "image=x"]) == 2
    said = capsys.readouterr().err
    assert "no-such-gcc is not installed, the compiler for sensor-board; install it, or correct" in said
    assert "apt-get" not in said and "[T501]" in said


def test_a_core_of_the_user_is_compiled_for_and_simulated(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if shutil.which("arm-none-eabi-gcc") is None:
        pytest.skip("arm-none-eabi-gcc is not installed")
    page = (Path(__file__).parents[2] / "docs" / "spec.md").read_text()
    core = re.search(r"```yaml\n# boards/cores/m33-plain.yaml\n(.*?)```", page, re.DOTALL)
    assert core is not None
    monkeypatch.chdir(project)
    write_board(
        project, "cores/m33-plain.yaml", "arm-none-eabi-gcc", '["-O2", "-mcpu=cortex-m33+nodsp", "-mthumb"]'
    )
    (project / "boards" / "cores").mkdir()
    (project / "boards" / "cores" / "m33-plain.yaml").write_text(core[1])
    assert main(["compile", "net.yaml", "-o", "out"]) == 0
    assert (
        main(
            [
                "run",
                "out",
                "--on",
                "sensor-board",
                "--data",
                "data.npz",
                "--input",
                "image=x",
                "--samples",
                "1",
            ]
        )
        == 0
    )
    assert re.search(r"instructions +[1-9]", capsys.readouterr().out)


def test_a_core_that_does_not_exist_is_shown_where_it_is_named(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    write_board(project, "cortex-m4g", "gcc", "[]")
    assert main(["check", "net.yaml"]) == 2
    said = capsys.readouterr().err
    assert 'boards/board.yaml:3:7: core: unknown core "cortex-m4g"; did you mean "cortex-m4' in said


@pytest.mark.parametrize(
    ("place", "fact"),
    [
        ("cortex-m55", "has no simulator; the targets with one are cortex-m0plus"),
        ("moon", "is not a place to run; there are host, torch, integer, cortex-m0plus"),
        ("", "is not a place to run"),
        ("none.yaml", 'file not found: "none.yaml"'),
    ],
)
def test_a_place_that_cannot_run_is_refused(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, place: str, fact: str
) -> None:
    monkeypatch.chdir(project)
    assert main(["compile", "net.yaml", "-o", "out"]) == 0
    assert main(["run", "out", "--on", place, "--data", "data.npz", "--input", "image=x"]) == 2
    assert fact in capsys.readouterr().err
