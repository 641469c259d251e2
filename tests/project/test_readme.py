"""Every command and every program in the README and the docs runs, as a newcomer would run them."""

from __future__ import annotations

import contextlib
import io
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fxpress.compiler.cli import main

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
EXAMPLES = sorted((ROOT / "examples").rglob("*.md"))  # their specs run in tests/examples, where the data are
MODEL = """
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3, stride=4), nn.ReLU())
        self.head = nn.Linear(256, 3)

    def forward(self, x):
        return self.head(self.features(x).flatten(1))
"""
SPEC = """
fxpress: 1
extends: preset/int8-mcu
model: {source: model.py:Net, inputs: {x: {shape: [1, 3, 32, 32]}}}
data:
  calibration: {file: test.npz}
  evaluation: {file: test.npz, labels: y}
target: {name: cortex-m4f}
"""


def _commands(tool: str) -> list[str]:
    """Commands in backquotes or after a prompt that begin with `tool`, without placeholders."""
    found = []
    for page in [*PAGES, *EXAMPLES] if tool == "make" else PAGES:
        text = page.read_text()
        found += re.findall(rf"`({tool} [^`\n]+)`", text) + re.findall(
            rf"^\$ ({tool} [^#\n]+)", text, re.MULTILINE
        )
    return [c.strip() for c in dict.fromkeys(found) if not re.search(r"\b[A-Z]{3,}\b|\.\.\.", c)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A newcomer's folder: a model, data, a spec, and outputs to look at."""
    folder = tmp_path_factory.mktemp("newcomer")
    (folder / "model.py").write_text(MODEL)
    (folder / "net.yaml").write_text(SPEC)
    generator = np.random.default_rng(0)
    np.savez(
        folder / "test.npz",
        x=generator.normal(size=(8, 3, 32, 32)).astype("f4"),
        y=generator.integers(0, 3, 8),
    )
    with contextlib.chdir(folder), contextlib.redirect_stdout(io.StringIO()):
        for name in ("out", "a", "b"):
            assert main(["compile", "net.yaml", "-o", name]) == 0
    return folder


def test_there_are_commands_to_run() -> None:
    assert len(_commands("fxpress")) >= 8 and len(_commands("make")) >= 4


@pytest.mark.parametrize("command", _commands("fxpress"))
def test_this_command_of_the_docs_runs(command: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    (folder / "spec.yaml").unlink(missing_ok=True)
    if "spec.yaml" in command:
        (folder / "spec.yaml").write_text(SPEC)
    words = shlex.split(command.partition(">")[0])
    assert main(words[1:]) == 0


def test_the_first_run_of_the_readme_works_line_by_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.py").write_text(MODEL)
    blocks = re.findall(r"```console\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (block,) = (block for block in blocks if "fxpress init" in block)
    for line in re.findall(r"^\$ (.*?)(?: {2,}#.*)?$", block, re.MULTILINE):
        tool, *words = shlex.split(line)
        if tool == "python":
            subprocess.run([sys.executable, *words], check=True)
        else:
            assert tool == "fxpress" and main(words) == 0
    assert (tmp_path / "out" / "report.html").exists() and (tmp_path / "out" / "c" / "net.c").exists()


@pytest.mark.parametrize("command", _commands("make"))
def test_this_make_command_of_the_docs_exists(command: str) -> None:
    target = command.split()[1]
    subprocess.run(["make", "--dry-run", target], cwd=ROOT, check=True, capture_output=True)


def test_the_spec_of_the_readme_is_sound(tmp_path: Path) -> None:
    spec = re.findall(r"```yaml\n(fxpress: 1.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[0]
    (tmp_path / "build").mkdir()
    (tmp_path / "model.py").write_text("class DigitNet: ...\n")
    (tmp_path / "build" / "weights.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
    for name in ("calibration", "evaluation"):
        np.savez(tmp_path / "build" / f"{name}.npz", x=np.zeros((1, 1, 8, 8), "f4"), y=np.zeros(1, int))
    (tmp_path / "net.yaml").write_text(spec)
    assert main(["check", str(tmp_path / "net.yaml")]) == 0


def test_the_python_of_the_report_page_runs() -> None:
    code = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "report.md").read_text(), re.DOTALL)[0]
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(code, {})
    assert '"resources"' in out.getvalue()


def test_the_python_of_the_networkx_page_runs() -> None:
    code = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "networkx.md").read_text(), re.DOTALL)
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec("".join(code), {})
    path, macs, *cuts = out.getvalue().splitlines()
    assert path == "['stem', 'wide', 'relu', 'add', 'head']"
    assert macs == "206,848 of 206,848 multiply-accumulates"
    assert [line.split(":")[1] for line in cuts] == [" 3,072 bytes", " 8,192 bytes", " 8,192 bytes"]


@pytest.mark.parametrize(
    ("page", "said"),
    [("capture", "conv"), ("pruning", "True\n"), ("sensitivity", "e-"), ("streaming", "'input_past'")],
)
def test_the_python_of_this_page_runs(
    page: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / f"{page}.md").read_text(), re.DOTALL)
    torch.manual_seed(0)
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec("".join(code), {})
    assert said in out.getvalue()


def test_links_between_the_pages_lead_somewhere() -> None:
    for page in [*PAGES, *EXAMPLES]:
        for target in re.findall(r"\]\((?!http)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_python_of_the_python_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "python.md").read_text(), re.DOTALL)
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec("".join(code), {})
    assert "('input',) cortex-m4f" in out.getvalue()


def test_the_python_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[0]
    images = torch.rand(8, 1, 8, 8)
    names = {
        "net": nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval(),
        "images": images,
        "image": images[:1],
    }
    exec(code, names)
    assert names["scores"].shape == (8, 10) and (tmp_path / "out" / "c" / "model.c").is_file()
