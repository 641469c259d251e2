"""Input that is unusual but sound: it compiles, and the C gives the results of the integer graph."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from fxpress.compiler import commands, compile_model
from fxpress.compiler.cli import main
from fxpress.compiler.execution import execute

Array = NDArray[np.float32]


def _constant_channel(x: Array) -> Array:
    x[:, 1] = 0.25
    return x


def _outlier(x: Array) -> Array:
    x[5, 0, 0, 0] = 1e30
    return x


DATA: dict[str, Callable[[Array], Array]] = {
    "one sample": lambda x: x[:1],
    "a constant channel": _constant_channel,
    "nothing but zeros": np.zeros_like,
    "an outlier of 1e30": _outlier,
    "negative values only": lambda x: -np.abs(x) - 1,
    "tiny values": lambda x: x * np.float32(1e-20),
}


@pytest.mark.parametrize("what", DATA)
def test_unusual_data_calibrate_a_network_whose_c_equals_its_integers(what: str, project: Path) -> None:
    arrays = dict(np.load(project / "data.npz"))
    spoilt = DATA[what](arrays["x"].copy())
    np.savez(project / "data.npz", x=spoilt, y=arrays["y"][: len(spoilt)])
    _compile_and_compare(project)


class Odd(nn.Module):
    """A model of one function, for unusual kinds of `forward`."""

    def __init__(self, function: Callable[..., object], layer: nn.Module | None = None) -> None:
        super().__init__()
        self.function = function
        if layer is not None:
            self.layer = layer

    def forward(self, image: torch.Tensor) -> object:
        return self.function(self, image)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "an input that is the output": lambda: Odd(lambda self, x: x),
    "no parameters": lambda: Odd(lambda self, x: torch.relu(x).mean((2, 3))),
    "an output twice, and the input": lambda: Odd(
        lambda self, x: (self.layer(x), self.layer(x), x), nn.Conv2d(3, 2, 1)
    ),
    "no dimension but the batch left": lambda: Odd(
        lambda self, x: self.layer(x).mean((1, 2, 3)), nn.Conv2d(3, 2, 1)
    ),
}


@pytest.mark.parametrize("what", MODELS)
def test_unusual_models_compile_and_their_c_equals_their_integers(what: str, project: Path) -> None:
    _compile_and_compare(project, MODELS[what]().eval())


def test_hostile_layer_names_stay_inside_comments(project: Path) -> None:
    model = nn.Sequential()
    for name in ("*/ int evil(void){} /*", 'quote " and \\', "line\nbreak", "int", "a-b", "a_b", "n" * 5000):
        model.add_module(name, nn.Conv2d(3, 3, 1))
    _compile_and_compare(project, model.eval())


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_half_and_double_weights_are_refused_on_a_microcontroller_with_what_to_do(
    dtype: str, project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(project)
    text = (project / "net.py").read_text()
    (project / "net.py").write_text(
        f"{text}\n\ndef cast():\n    import torch\n    return Net().to(torch.{dtype})\n"
    )
    spec = (project / "net.yaml").read_text().replace("net.py:Net", "net.py:cast")
    (project / "net.yaml").write_text(spec.replace("8, 8]}", f"8, 8], dtype: {dtype}}}"))
    assert main(["compile", "net.yaml", "-o", "out", "--set", "passes=[{pass: fuse}]"]) == 2
    message = capsys.readouterr().err
    assert "[C703]" in message and "float32" in message
    assert not (project / "out").exists()


def _compile_and_compare(
    project: Path, model: nn.Module | None = None, overrides: tuple[str, ...] | list[str] = ()
) -> None:
    changes = [*overrides, "data.evaluation=null"]
    compiled = compile_model(project / "net.yaml", model=model, overrides=changes)
    compiled.write(project / "out")
    samples = compiled.session.calibration
    assert samples is not None
    few = samples.first(4)
    host = execute(project / "out", few, on="host")
    integer = execute(project / "out", few, on="integer")
    for c, exact in zip(host.outputs, integer.outputs, strict=True):
        assert torch.equal(c, exact)


def test_ctrl_c_writes_nothing(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    (project / "net.py").write_text("def Net():\n    raise KeyboardInterrupt\n")
    assert main(["compile", "net.yaml", "-o", "out"]) == 130
    assert not (project / "out").exists()


def test_a_missing_compiler_is_named_with_what_to_install(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(project)
    assert main(["compile", "net.yaml", "-o", "out"]) == 0
    monkeypatch.setenv("PATH", str(project))
    for place, tool in (("host", "gcc"), ("cortex-m4", "arm-none-eabi-gcc")):
        assert main(["run", "out", "--on", place, "--data", "data.npz", "--input", "image=x"]) == 2
        said = capsys.readouterr().err
        assert f"{tool} is not installed" in said and "; on Debian or Ubuntu: apt-get install" in said


def test_a_fault_of_fxpress_leaves_a_file_to_report(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def faulty(*_: object, **__: object) -> None:
        raise ZeroDivisionError("planted")

    monkeypatch.chdir(project)
    assert main(["compile", "net.yaml", "-o", "out"]) == 0
    monkeypatch.setattr(commands, "execute", faulty)
    assert main(["run", "out", "--data", "data.npz", "--input", "image=x"]) == 1
    assert "please report it with fxpress-crash.txt" in capsys.readouterr().err
    assert "Traceback" in (project / "fxpress-crash.txt").read_text()


def test_two_runs_into_one_directory_leave_one_whole_output(project: Path) -> None:
    first, second = (
        compile_model(project / "net.yaml", overrides=[f"outputs.c.name={n}"]) for n in ("one", "two")
    )
    first.write(project / "out")
    second.write(project / "out")
    assert {p.name for p in (project / "out" / "c").iterdir()} == {
        p.removeprefix("c/") for p in second.files if p.startswith("c/")
    }
