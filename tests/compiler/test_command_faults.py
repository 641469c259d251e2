"""Faulty command lines, places that cannot be written, and remaining files if standard output or the folder fails."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fxpress.compiler import crash
from fxpress.compiler.cli import main

LONG = "a/" * 2500 + "b"
INIT = ("init", "net.py:Net", "--input", "image=1x3x8x8")
RUN = ("run", "out", "--on", "integer", "--data", "data.npz", "--input", "image=x")

FAULTY: dict[str, tuple[tuple[str, ...], str]] = {
    "spec: long path": (("check", f"{LONG}.yaml"), "too long.*S101"),
    "spec: pipe": (("check", "pipe"), "pipe or a device.*S101"),
    "init: in no directory": ((*INIT, "-o", "no/spec.yaml"), "is not in a directory; make no first.*O308"),
    "init: below a file": ((*INIT, "-o", "net.py/spec.yaml"), "is not in a directory.*O308"),
    "init: directory": ((*INIT, "-o", "out"), "exists already.*O306"),
    "init: long path": ((*INIT, "-o", LONG), r"…[a/]*b: is not in a directory.*O308"),
    "init: unknown target": ((*INIT, "--target", "cortex"), 'unknown target "cortex".*S309'),
    "compile: below a file": (("compile", "net.yaml", "-o", "net.py/out"), "net.py is a file.*O302"),
    "compile: long path": (("compile", "net.yaml", "-o", LONG), "too long.*O30"),
    "compile: unknown pass to dump": (
        ("compile", "net.yaml", "-o", "new", "--dump-after", "fuze"),
        "--dump-after fuze: is not a pass of the spec; there are clean, fuse, quantize.*R414",
    ),
    "run: save in no directory": ((*RUN, "--save", "no/y.npz"), "is not in a directory.*O308"),
    "run: save over a device": ((*RUN, "--save", "/dev/null"), "not a regular file.*O302"),
    "run: save over a directory": ((*RUN, "--save", "out"), "not a regular file.*O302"),
    "run: save over a spec": (
        (*RUN, "--save", "net.yaml"),
        "exists and is not an npz file of output; .*O306",
    ),
    "run: save over weights": ((*RUN, "--save", "net.safetensors"), "exists and is not an npz file.*O306"),
    "run: save over the data": (
        (*RUN, "--save", "./data.npz"),
        "is an input, which would be overwritten.*O312",
    ),
    "run: save over other data": (
        (*RUN, "--save", "other.npz"),
        "exists and is not an npz file of output.*O306",
    ),
    "run: save among the outputs": (
        (*RUN, "--save", "out/y.npz"),
        "is in out, which the next compilation.*O312",
    ),
    "run: unknown input": ((*RUN, "--input", "imago=x"), "no input 'imago'; the network takes image.*R408"),
    "run: input twice": ((*RUN, "--input", "image=y"), "'image' is given twice.*R408"),
    "run: pipe as data": (("run", "out", "--data", "pipe"), "D100"),
    "run: long path": (("run", LONG, "--data", "data.npz"), "is not a directory.*R404"),
}


@pytest.mark.parametrize("name", FAULTY)
def test_a_faulty_command_line_gets_its_message(
    name: str,
    compiled_project: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(compiled_project)
    os.mkfifo(tmp_path / "pipe")
    np.savez("other.npz", x=np.zeros(3))
    command, words = FAULTY[name]
    before = _contents(compiled_project)
    assert main([str(tmp_path / "pipe") if word == "pipe" else word for word in command]) == 2
    assert re.search(words, capsys.readouterr().err)
    assert _contents(compiled_project) == before


def _contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("count", ["-3", "0", "1.5", "many", "1e3"])
@pytest.mark.parametrize("command", [RUN, ("sensitivity", "net.yaml")])
def test_a_count_of_samples_is_at_least_one(
    command: tuple[str, ...], count: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main((*command, f"--samples={count}"))
    assert f"'{count}' is not a whole number of at least 1" in capsys.readouterr().err


def test_outputs_are_saved_under_the_name_that_is_given(
    compiled_project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(compiled_project)
    assert main((*RUN, "--samples", "3", "--save", str(tmp_path / "y.outputs"))) == 0
    with np.load(tmp_path / "y.outputs") as saved:
        assert [saved[name].shape for name in saved.files] == [(3, 5)]
    assert main((*RUN, "--samples", "2", "--save", str(tmp_path / "y.outputs"))) == 0
    with np.load(tmp_path / "y.outputs") as saved:
        assert [saved[name].shape for name in saved.files] == [(2, 5)]


@pytest.mark.parametrize("redirection", ["> /dev/full", ">&-"])
def test_a_full_or_closed_standard_output_ends_without_a_traceback(redirection: str) -> None:
    line = f"{sys.executable} -m fxpress.compiler.cli targets {redirection}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=False)
    assert done.returncode == (2 if "full" in redirection else 0)
    assert "Traceback" not in done.stderr and "ignored" not in done.stderr


def test_memory_that_runs_out_is_no_internal_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(name: str) -> None:
        raise RuntimeError(
            "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory"
        )

    monkeypatch.setattr("fxpress.compiler.cli.load_target", fail)
    assert main(["targets"]) == 2
    assert "memory: out of memory: RuntimeError" in capsys.readouterr().err


def test_an_internal_error_is_reported_where_the_folder_cannot_be_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(name: str) -> None:
        raise ZeroDivisionError("planted")

    gone, temporary = tmp_path / "gone", tmp_path / "temporary"
    gone.mkdir()
    temporary.mkdir()
    monkeypatch.setattr("fxpress.compiler.cli.load_target", fail)
    monkeypatch.setattr(crash.tempfile, "gettempdir", lambda: str(temporary))
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert main(["targets"]) == 1
    assert f"please report it with {temporary}/fxpress-crash.txt" in capsys.readouterr().err
    assert "planted" in (temporary / "fxpress-crash.txt").read_text()
    (temporary / "fxpress-crash.txt").unlink()
    temporary.rmdir()
    assert (
        main(
            [
                "targets",
            ]
        )
        == 1
    )
    assert "ZeroDivisionError: planted" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("function", "arguments", "doing"),
    [
        ("def Net", ("plan", "net.yaml"), "construction of the model"),
        ("def Net", (*INIT, "-o", "new.yaml"), "construction of the model"),
        (
            "def endless",
            ("plan", "net.yaml", "--set", "data.calibration={source: 'net.py:endless'}"),
            "construction of the samples",
        ),
    ],
)
def test_code_that_never_ends_meets_the_time_limit(
    project: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    function: str,
    arguments: tuple[str, ...],
    doing: str,
) -> None:
    monkeypatch.chdir(project)
    with (project / "net.py").open("a") as file:
        file.write(f"\n\n{function}():\n    while True:\n        pass\n")
    assert main([*arguments, "--time-limit", "3"]) == 2
    assert re.search(f"{doing} takes more than 3 s; .*--time-limit.*M108", capsys.readouterr().err)


def test_compile_does_not_remove_what_its_spec_reads(
    project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project)
    assert main(["compile", "net.yaml", "-o", "out"]) == 0
    for name in ("data.npz", "net.safetensors", "net.py", "net.yaml"):
        (project / "out" / name).write_bytes((project / name).read_bytes())
    assert main(["compile", "out/net.yaml", "-o", "out"]) == 2
    words = "out: contains data.npz, net.py, net.safetensors, net.yaml, an input that would be removed"
    assert words in capsys.readouterr().err
    assert (project / "out" / "data.npz").read_bytes() == (project / "data.npz").read_bytes()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("haed", "near: head.*R403"),
        ("zz", "is no layer of this report; known here: stem.0, pool, head, .*R403"),
    ],
)
def test_explain_of_an_unknown_layer_names_the_known_ones(
    compiled_project: Path, capsys: pytest.CaptureFixture[str], name: str, words: str
) -> None:
    assert main(["explain", str(compiled_project / "out"), name]) == 2
    assert re.search(words, capsys.readouterr().err)
