"""An output directory is read only as it was written: its lock names every file by digest, and itself."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from fxpress.compiler import UserError
from fxpress.compiler.cli import main
from fxpress.compiler.lock import check_outputs

Damage = Callable[[Path], object]


@pytest.fixture
def output(tmp_path: Path, compiled_project: Path) -> Path:
    shutil.copytree(compiled_project, tmp_path, dirs_exist_ok=True)
    return tmp_path / "out"


def _lock_field(change: Callable[[dict[str, object]], object]) -> Damage:
    def damage(output: Path) -> None:
        lock = json.loads((output / "spec.lock").read_text())
        change(lock)
        (output / "spec.lock").write_text(json.dumps(lock))

    return damage


def _replace(name: str, make: Callable[[Path], object]) -> Damage:
    def damage(output: Path) -> None:
        (output / name).unlink()
        make(output / name)

    return damage


DAMAGES: dict[str, tuple[Damage, str]] = {
    "one byte": (lambda out: (out / "c/net.c").open("ab").write(b" "), r"c/net\.c: was changed[\s\S]*R411"),
    "no file": (lambda out: (out / "graph.txt").unlink(), r"graph\.txt: cannot be read: No such file.*R410"),
    "no folder": (lambda out: shutil.rmtree(out / "torch"), "torch/model.py: cannot be read.*R410"),
    "a folder": (
        _replace("report.json", Path.mkdir),
        "report.json: cannot be read: .*not a regular file.*R410",
    ),
    "a pipe": (_replace("interface.json", os.mkfifo), "interface.json: cannot be read: .*not a regular file"),
    "a loop": (_replace("graph.txt", lambda path: path.symlink_to(path)), "Too many levels.*R410"),
    "no lock": (
        lambda out: (out / "spec.lock").unlink(),
        r"out: has no spec\.lock; name an output directory.*R404",
    ),
    "lock: a version": (
        _lock_field(lambda lock: lock.update(spec="0")),
        "spec.lock: was changed: its digest",
    ),
    "lock: a line more": (
        lambda out: (out / "spec.lock").open("ab").write(b"\n"),
        "spec.lock: was changed: its digest is wrong.*L502",
    ),
    "lock: a file less": (_lock_field(lambda lock: lock["outputs"].popitem()), "its digest is wrong.*L502"),  # type: ignore[attr-defined]
    "lock: older": (_lock_field(lambda lock: lock.update(lock_version=1)), "not a lock of this version"),
    "lock: a pipe": (_replace("spec.lock", os.mkfifo), r"has no spec\.lock"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_directory_is_refused_by_every_reader(
    name: str, output: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    check_outputs(output)
    damage, words = DAMAGES[name]
    damage(output)
    with pytest.raises(UserError, match=words):
        check_outputs(output)
    monkeypatch.chdir(output.parent)
    for command in (
        ("run", "out", "--data", "data.npz", "--input", "image=x"),
        ("explain", "out", "head"),
        ("diff", "out", "out"),
    ):
        assert main(command) == 2
        assert "nothing was written" in capsys.readouterr().err
