"""`fxpress sensitivity`: the table on the terminal and as JSON, reuse, processes that share the work, bad input."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fxpress.compiler.cli import main
from fxpress.passes.sensitivity import SensitivityTable


@pytest.fixture(autouse=True)
def in_the_project(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)


def test_the_table_is_printed_and_written_and_read_the_next_time(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sensitivity", "net.yaml", "-o", "table.json", "--activation-bits", "8"]) == 0
    printed = capsys.readouterr().out
    assert "stem.0" in printed and "activation" in printed and "wrote table.json" in printed
    text = (project / "table.json").read_text()
    table = SensitivityTable.from_json(text)
    assert table.layers() == ("stem.0", "head") and table.samples == 16 and table.objective == "classes"
    assert main(["sensitivity", "net.yaml", "-o", "table.json", "--activation-bits", "8"]) == 0
    assert "read from table.json" in capsys.readouterr().out
    assert main(["sensitivity", "net.yaml", "-o", "table.json", "--samples", "5"]) == 0
    assert "wrote table.json" in capsys.readouterr().out
    assert SensitivityTable.from_json((project / "table.json").read_text()).samples == 5


def test_batch_norms_are_folded_although_the_spec_does_not_ask_for_it(project: Path) -> None:
    assert main(["sensitivity", "net.yaml", "-o", "fused.json"]) == 0
    spec = (project / "net.yaml").read_text().replace("  - pass: fuse\n", "")
    (project / "plain.yaml").write_text(spec)
    assert main(["sensitivity", "plain.yaml", "-o", "plain.json"]) == 0
    fused, plain = (
        SensitivityTable.from_json((project / name).read_text()) for name in ("fused.json", "plain.json")
    )
    assert [s.loss for s in plain.scores] == pytest.approx([s.loss for s in fused.scores], rel=1e-5)


@pytest.mark.parametrize("processes", [pytest.param(count, marks=pytest.mark.slow) for count in (2, 3)])
def test_any_number_of_processes_gives_the_same_bytes(project: Path, processes: int) -> None:
    alone, together = "alone.json", "together.json"
    arguments = ["sensitivity", "net.yaml", "--activation-bits", "8", "-o"]
    assert main([*arguments, alone]) == 0
    launch = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        str(processes),
    ]
    command = [*launch, "-m", "fxpress.compiler", *arguments, together]
    done = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("wrote") == 1
    assert (project / alone).read_bytes() == (project / together).read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--bits", "2,5"], "--bits 2,5: is not a list of widths out of 2, 4, 8, 16"),
        (
            ["--method", "hawq", "--activation-bits", "8"],
            "net.yaml (sensitivity): method hawq scores weights",
        ),
        (["-o", "net.py"], "net.py: exists and is not a sensitivity table"),
        (["-o", "net.py", "--class-axis", "1"], "net.py: exists and is not a sensitivity table"),
        (["-o", "data.npz", "--class-axis", "1"], "data.npz: exists and is not a sensitivity table"),
        (["-o", "nowhere/table.json"], "nowhere/table.json: is not in a directory; make nowhere first"),
        (["--set", "data.calibration.samples=0"], "data.calibration.samples"),
    ],
)
def test_bad_input_is_answered(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sensitivity", "net.yaml", *arguments]) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_a_spec_without_calibration_is_refused(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [line for line in (project / "net.yaml").read_text().splitlines() if "calibration" not in line]
    bare = "\n".join(line for line in lines if "quantize" not in line)
    (project / "bare.yaml").write_text(bare.replace("target: {name: cortex-m4f}", "target: {name: host}"))
    assert main(["sensitivity", "bare.yaml"]) == 2
    assert "bare.yaml: sensitivity needs data" in capsys.readouterr().err
