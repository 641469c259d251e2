"""Error codes of commands, each provoked through the command line: code, place and exit status."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from torch import nn

from fxpress.compiler.cli import USER_ERROR, main
from fxpress.compiler.lock import LOCK_FILE, file_digest, read_lock

Change = Callable[[Path], object]


def edit(name: str, before: str, after: str) -> Change:
    """Replaces a text of a file, which must be there."""

    def change(folder: Path) -> None:
        text = (folder / name).read_text()
        assert before in text
        (folder / name).write_text(text.replace(before, after))

    return change


def relocked(name: str, content: str) -> Change:
    """Replaces a file of the output directory, and its digest in the lock: as another version would have written it."""

    def change(folder: Path) -> None:
        (folder / "out" / name).write_text(content)
        lock = read_lock(folder / "out" / LOCK_FILE)
        outputs = {**lock.outputs, name: file_digest(folder / "out" / name)}
        lock = lock.model_copy(update={"outputs": outputs})
        lock = lock.model_copy(update={"digest": lock.content_digest})
        (folder / "out" / LOCK_FILE).write_bytes(lock.to_bytes())

    return change


def sparse_weights(folder: Path) -> None:
    model = nn.Linear(2, 2).state_dict() | {"extra": torch.eye(3).to_sparse()}
    torch.save(model, folder / "sparse.pt")


def recompiled(setting: str) -> Change:
    """Compiles the project again with a setting."""

    def change(folder: Path) -> None:
        assert main(["compile", str(folder / "net.yaml"), "-o", str(folder / "out"), "--set", setting]) == 0

    return change


def broken_module(folder: Path) -> None:
    recompiled("outputs={torch: {}}")(folder)
    relocked("torch/model.py", "import no_such_package")(folder)


@dataclass(frozen=True)
class Fault:
    """A change of the sample project, the command, and the place at which its message begins."""

    command: str
    place: str
    change: Change = lambda folder: None
    settings: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)


PLAN = "plan net.yaml"
COMPILE = "compile net.yaml -o new"
RUN = "run out --data data.npz --input image=x"
FAULTS: dict[str, Fault] = {
    "C706": Fault(PLAN, "input image", settings=("passes[2].layers={stem: float32}", "outputs.c.io=int8")),
    "D107": Fault(
        PLAN,
        "data.npz",
        settings=("passes=[{pass: finetune}]", "data.calibration.samples=1", "outputs={torch: {}}"),
    ),
    "D108": Fault(
        "sensitivity net.yaml",
        "net.yaml",
        settings=("data={}", "passes=[{pass: clean}]", "outputs={torch: {}}"),
    ),
    "L501": Fault(f"{COMPILE} --locked absent.lock", "absent.lock"),
    "L503": Fault(f"{COMPILE} --locked out/spec.lock", "out/spec.lock", settings=("passes[2].observer=mse",)),
    "L504": Fault(
        f"{COMPILE} --locked out/spec.lock",
        "out/spec.lock",
        change=edit("net.py", "from torch import nn", "from torch import nn  # changed"),
    ),
    "M103": Fault(
        PLAN,
        "net.py:SIZE",
        change=edit("net.py", "class Net", "SIZE = 3\n\n\nclass Net"),
        settings=("model.source=net.py:SIZE",),
    ),
    "M105": Fault("init net.py:Net --input image=3x", "--input image=3x"),
    "M113": Fault(
        PLAN,
        "net.safetensors",
        change=edit("net.py", "        self.head =", "        self.tail ="),
    ),
    "M116": Fault(PLAN, "sparse.pt", change=sparse_weights, settings=("model.weights=sparse.pt",)),
    "O305": Fault(f"compile net.yaml -o {'n' * 250}", "n" * 90),
    "O306": Fault("init net.py:Net --input image=1x3x8x8 -o net.yaml", "net.yaml"),
    "O307": Fault("sensitivity net.yaml -o net.py", "net.py"),
    "P601": Fault(
        PLAN,
        "passes[0] (assign_bits)",
        settings=("passes=[{pass: assign_bits, budget: {weights: 1 %}}, {pass: quantize}]",),
    ),
    "P602": Fault("sensitivity net.yaml --method norm --activation-bits 8", "net.yaml (sensitivity)"),
    "P604": Fault(
        COMPILE, "passes[2] (quantize)", settings=("passes[2].min_snr=90 dB", "passes[2].on_low_snr=error")
    ),
    "R403": Fault("explain out haed", "haed"),
    "R405": Fault(f"{RUN} --on moon", "on moon"),
    "R406": Fault(f"{RUN} --on host", "out", change=recompiled("outputs={torch: {}}")),
    "R407": Fault(f"{RUN} --on torch", "out"),
    "R409": Fault("sensitivity net.yaml --bits 3", "--bits 3"),
    "R412": Fault(
        f"{RUN} --on integer", "out/graph.txt", change=relocked("graph.txt", "graph of another version")
    ),
    "R413": Fault(f"{RUN} --on torch", "out/torch/model.py", change=broken_module),
    "T501": Fault(f"{RUN} --on host", "--on host", environment={"PATH": "", "CC": ""}),
}


@pytest.fixture(scope="module")
def only_c(compiled_project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample project with an output directory that has no torch module."""
    folder = Path(shutil.copytree(compiled_project, tmp_path_factory.mktemp("codes") / "project"))
    shutil.rmtree(folder / "out")
    assert main(["compile", str(folder / "net.yaml"), "-o", str(folder / "out")]) == 0
    return folder


@pytest.mark.parametrize("code", FAULTS)
def test_the_code_is_reported_with_its_place(
    code: str,
    only_c: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fault = FAULTS[code]
    folder = Path(shutil.copytree(only_c, tmp_path / "project"))
    monkeypatch.chdir(folder)
    fault.change(folder)
    for name, value in fault.environment.items():
        monkeypatch.setenv(name, value)
    words = [*fault.command.split(), *(word for setting in fault.settings for word in ("--set", setting))]
    assert main(words) == USER_ERROR
    lines = [line for line in capsys.readouterr().err.splitlines() if f"[{code}]" in line]
    assert lines and all(
        fault.place in line.partition(": ")[0] or line.startswith(fault.place) for line in lines
    )
    assert not (folder / "new").exists()
