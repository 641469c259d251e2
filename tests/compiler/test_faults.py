"""Bad input, as a user meets it: exit status 2, one message a problem, no traceback, nothing written.

`pytest tests/compiler/test_faults.py --fault-table` prints every entry with the message it gets.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from fxpress.compiler.cli import main

COMPILE = ("compile", "net.yaml", "-o", "out")
Edit = Callable[[Path], object]


@dataclass(frozen=True)
class Fault:
    """A fault in a sound project, the command, and the code and words of the answer."""

    spoil: Edit
    code: str
    words: str
    command: tuple[str, ...] = COMPILE
    also: tuple[str, ...] = field(default=())


def _spec(old: str, new: str) -> Edit:
    def spoil(project: Path) -> None:
        text = (project / "net.yaml").read_text()
        assert old in text
        (project / "net.yaml").write_text(text.replace(old, new, 1))

    return spoil


def _whole_spec(content: str | bytes) -> Edit:
    data = content.encode() if isinstance(content, str) else content
    return lambda project: (project / "net.yaml").write_bytes(data)


def _model(old: str, new: str) -> Edit:
    def spoil(project: Path) -> None:
        text = (project / "net.py").read_text()
        assert old in text
        (project / "net.py").write_text(text.replace(old, new, 1))

    return spoil


def _weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Edit:
    def spoil(project: Path) -> None:
        tensors = load_file(project / "net.safetensors")
        change(tensors)
        save_file(tensors, project / "net.safetensors")

    return spoil


def _data(change: Callable[[dict[str, np.ndarray]], object]) -> Edit:
    def spoil(project: Path) -> None:
        arrays = dict(np.load(project / "data.npz"))
        change(arrays)
        np.savez(project / "data.npz", **arrays)

    return spoil


def _both(*edits: Edit) -> Edit:
    return lambda project: [edit(project) for edit in edits]


def _bytes(name: str, content: bytes) -> Edit:
    return lambda project: (project / name).write_bytes(content)


_BOARD = b"""
name: board
description: a board whose kernels take int8
isa: armv7e-m
toolchain: {commands: [arm-none-eabi-gcc]}
"""


def _pickled_code(project: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (project / "pwned",))

    torch.save({"stem.0.weight": Evil()}, project / "net.pt")
    _spec("net.safetensors", "net.pt")(project)


def _expanding(project: Path) -> None:
    torch.save({"stem.0.weight": torch.zeros(1).expand(10**9)}, project / "net.pt")
    _spec("net.safetensors", "net.pt")(project)


def _lying_header(project: Path) -> None:
    header = json.dumps(
        {"stem.0.weight": {"dtype": "F32", "shape": [10**6], "data_offsets": [0, 4_000_000]}}
    ).encode()
    (project / "net.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)


def _nan_sample(arrays: dict[str, np.ndarray]) -> None:
    arrays["x"][3, 0, 0, 0] = np.nan


def _drop(arrays: dict[str, np.ndarray], name: str) -> None:
    del arrays[name]


def _not_ours(project: Path) -> None:
    (project / "out").mkdir()
    (project / "out" / "thesis.tex").write_text("precious")


def _body(code: str) -> Edit:
    return _model("        return self.head(", f"        {code}\n        return self.head(")


FAULTS: dict[str, Fault] = {
    "spec: empty file": Fault(_whole_spec(""), "S107", "empty"),
    "spec: tab": Fault(_spec("  source", "\tsource"), "S103", "tab"),
    "spec: unclosed bracket": Fault(_spec("[1, 3, 8, 8]", "[1, 3, 8"), "S103", r"net\.yaml:\d+:\d+"),
    "spec: duplicate key": Fault(_spec("target:", "model: {}\ntarget:"), "S108", "twice"),
    "spec: unknown key": Fault(_spec("  weights:", "  wieghts:"), "S201", 'did you mean "weights"'),
    "spec: unknown pass": Fault(_spec("pass: quantize", "pass: quantise"), "S204", 'did you mean "quantize"'),
    "spec: yes for a number": Fault(_spec("samples: 16", "samples: yes"), "S203", "whole number"),
    "spec: text for a number": Fault(_spec("samples: 16", 'samples: "8"'), "S203", "whole number"),
    "spec: 8.0 for a whole number": Fault(_spec("samples: 16", "samples: 8.0"), "S203", "whole number"),
    "spec: nan": Fault(_spec("samples: 16", "samples: .nan"), "S112", "not a number"),
    "spec: 1e999": Fault(_spec("samples: 16", "samples: 1e999"), "S112", "finite|large"),
    "spec: 10**400": Fault(_spec("samples: 16", f"samples: 1{'0' * 400}"), "S112", "large"),
    "spec: python tag": Fault(
        _spec("target:", "x: !!python/object/apply:os.system [ls]\ntarget:"), "S109", "tag"
    ),
    "spec: alias bomb": Fault(
        _whole_spec(
            "a: &a [x,x,x,x,x,x,x,x,x]\n"
            + "".join(
                f"{b}: &{b} [{','.join(['*' + a] * 9)}]\n"
                for a, b in zip("abcdefgh", "bcdefghi", strict=True)
            )
        ),
        "S110",
        "alias",
    ),
    "spec: self-alias": Fault(_whole_spec("fxpress: 1\nmodel: &m {source: *m}\n"), "S110", "alias"),
    "spec: 100 kB of [": Fault(_whole_spec("[" * 100_000), "S104", "nested"),
    "spec: two documents": Fault(_spec("outputs:", "---\noutputs:"), "S106", "document"),
    "spec: NUL": Fault(_whole_spec(b"fxpress: 1\n\0"), "S102", "control character"),
    "spec: extends itself": Fault(_spec("fxpress: 1", "fxpress: 1\nextends: net.yaml"), "S121", "cycle"),
    "spec: extends nothing": Fault(
        _spec("fxpress: 1", "fxpress: 1\nextends: nowhere.yaml"), "S122", "nowhere"
    ),
    "spec: layer pattern matches nothing": Fault(
        _spec("pass: quantize", "pass: quantize\n    layers: {haed: float32}"),
        "S401",
        "nearest layers are head",
    ),
    "spec: passes in the wrong order": Fault(
        _spec("  - pass: fuse\n  - pass: quantize", "  - pass: quantize\n  - pass: fuse"),
        "S301",
        "clean, fuse, quantize",
    ),
    "spec: bits without a kernel": Fault(
        lambda p: (
            _bytes("board.yaml", _BOARD)(p),
            _spec("cortex-m4f", "board.yaml")(p),
            _spec("pass: quantize", "pass: quantize\n    weights: int2")(p),
        ),
        "S305",
        "int2|2 bits|2-bit",
    ),
    "spec: unknown target": Fault(_spec("cortex-m4f", "cortex-m5"), "S309", "cortex-m"),
    "spec: budget zero": Fault(
        _spec("{name: cortex-m4f}", "{name: cortex-m4f, ram: 0 KiB}"), "S205", "more than zero"
    ),
    "spec: budget negative": Fault(
        _spec("{name: cortex-m4f}", "{name: cortex-m4f, ram: -4 KiB}"), "S205", "more than zero"
    ),
    "spec: budget without a unit": Fault(
        _spec("{name: cortex-m4f}", "{name: cortex-m4f, ram: 64}"), "S206", "KiB"
    ),
    "spec: newer version": Fault(_spec("fxpress: 1", "fxpress: 2"), "S208", "newer fxpress"),
    "spec: three mistakes at once": Fault(
        lambda p: (
            _spec("  weights:", "  wieghts:")(p),
            _spec("samples: 16", "samples: yes")(p),
            _spec("cortex-m4f", "cm4")(p),
        ),
        "S201",
        "wieghts",
        also=("S203", "S309"),
    ),
    "model: file missing": Fault(lambda p: (p / "net.py").unlink(), "M100", r"net\.py"),
    "model: class missing": Fault(_spec("net.py:Net", "net.py:Network"), "M102", "did you mean .Net."),
    "model: weights missing": Fault(lambda p: (p / "net.safetensors").unlink(), "M110", "does not exist"),
    "model: import raises": Fault(
        _bytes("net.py", b"raise RuntimeError('no GPU')\n"), "M101", r"no GPU[\s\S]*net\.py:1"
    ),
    "model: pickle that runs code": Fault(_pickled_code, "M111", "more than tensors"),
    "model: truncated safetensors": Fault(
        lambda p: (p / "net.safetensors").write_bytes((p / "net.safetensors").read_bytes()[:-8]),
        "M111",
        "valid safetensors",
    ),
    "model: lying safetensors header": Fault(_lying_header, "M111", "valid safetensors"),
    "model: small file that expands": Fault(_expanding, "M115", "1,000,000,000 elements"),
    "model: NaN weights": Fault(
        _weights(lambda t: t["stem.0.weight"].fill_(float("nan"))), "M121", "NaN or infinity"
    ),
    "model: inf weights": Fault(
        _weights(lambda t: t["head.bias"].fill_(float("inf"))), "M121", "NaN or infinity"
    ),
    "model: tensors missing in the file": Fault(
        _weights(lambda t: t.pop("head.bias")), "M112", r"lacks head\.bias"
    ),
    "model: weights of another shape": Fault(
        _weights(lambda t: t.update({"head.bias": torch.zeros(7)})), "M114", r"head\.bias is \(7,\)"
    ),
    "model: meta-device weights": Fault(
        lambda p: (
            _model(
                "self.head = nn.Linear(width * 16, 5)", "self.head = nn.Linear(width * 16, 5, device='meta')"
            )(p),
            _spec("  weights: net.safetensors\n", "")(p),
        ),
        "M120",
        "meta device",
    ),
    "model: left in train mode": Fault(_body("self.train()"), "M2", r"net\.py"),
    "model: data-dependent control flow": Fault(
        _body("image = image if image.sum() > 0 else -image"), "M2", r"net\.py:\d+"
    ),
    "model: torch.rand in forward": Fault(
        _body("image = image + __import__('torch').rand(1)"), "M2", r"net\.py:\d+"
    ),
    "model: unsupported on the target, all at once": Fault(
        _body("image = image.digamma().lgamma()"), "C702", "digamma", also=("lgamma", r"net\.py:\d+")
    ),
    "model: batch above one on a microcontroller": Fault(
        _spec("[1, 3, 8, 8]", "[2, 3, 8, 8]"), "C701", "batch"
    ),
    "model: wrong inputs": Fault(
        _spec("{image: {shape: [1, 3, 8, 8]}}", "{image: {shape: [1, 3, 8, 8]}, other: {shape: [1]}}"),
        "M104",
        "has no argument .other.",
    ),
    "model: shapes that do not fit": Fault(_spec("[1, 3, 8, 8]", "[1, 4, 8, 8]"), "M2", r"stem|net\.py"),
    "data: file missing": Fault(lambda p: (p / "data.npz").unlink(), "D100", "does not exist"),
    "data: not an npz": Fault(_bytes("data.npz", b"hello"), "D101", "readable npz"),
    "data: calibration empty": Fault(
        _data(lambda a: a.update(x=a["x"][:0], y=a["y"][:0])), "D105", "no samples"
    ),
    "data: wrong shape": Fault(
        _data(lambda a: a.update(x=a["x"][:, :2])), "D103", r"\(2, 8, 8\); the model takes \(3, 8, 8\)"
    ),
    "data: wrong dtype": Fault(_data(lambda a: a.update(x=a["x"].astype(str))), "D103", "numbers are needed"),
    "data: NaN sample": Fault(_data(_nan_sample), "D106", "sample 3"),
    "data: labels missing": Fault(_data(lambda a: _drop(a, "y")), "D102", "'y'"),
    "data: labels are names": Fault(
        _data(lambda a: a.update(y=a["y"].astype(str))), "D103", "'y' has dtype <U.*numbers are needed"
    ),
    "data: a label is NaN": Fault(
        _data(lambda a: a.update(y=np.where(np.arange(len(a["y"])) == 3, np.nan, a["y"]))), "D106", "sample 3"
    ),
    "data: several labels for a sample": Fault(
        _data(lambda a: a.update(y=np.stack([a["y"]] * 2, 1))), "D109", "labels of shape 24x2 have no class"
    ),
    "data: fewer labels than numbers": Fault(
        _spec("metric: top1", "metric: mse"), "D109", "labels of shape 24 are not 5 numbers"
    ),
    "data: a single value": Fault(
        _data(lambda a: a.update(x=np.float32(3))), "D103", "'x' is a single value"
    ),
    "data: samples that no reshape fits": Fault(
        _both(
            _data(lambda a: a.update(x=a["x"][:, :2])),
            _spec("target:", "  transform: {image: {reshape: [3, 8, 8]}}\ntarget:"),
        ),
        "D103",
        r"samples of 128 numbers; `reshape` makes \(3, 8, 8\)",
    ),
    "data: fewer samples than a batch": Fault(
        _both(
            _data(lambda a: a.update(x=a["x"][:1], y=a["y"][:1])),
            _spec("[1, 3, 8, 8]", "[2, 3, 8, 8]"),
        ),
        "D105",
        "1 samples are fewer than the 2",
    ),
    "data: array missing": Fault(_spec("{image: x}, samples", "{image: z}, samples"), "D102", "'z'"),
    "data: pickled array": Fault(
        _data(lambda a: a.update(x=np.array([{}], dtype=object))), "D10", "pickle|numbers|readable"
    ),
    "run: output of somebody else": Fault(_not_ours, "O303", "is not empty"),
    "run: output is a symbolic link": Fault(lambda p: (p / "out").symlink_to(p), "O301", "symbolic link"),
    "run: ../../etc": Fault(
        lambda p: None,
        "O30",
        "is not empty|read-only",
        command=("compile", "net.yaml", "-o", "../../../../../../../etc"),
    ),
    "run: budget that cannot be met": Fault(
        _spec("{name: cortex-m4f}", "{name: cortex-m4f, ram: 100 B}"), "C707", "the target has 100"
    ),
    "run: flash that cannot be met": Fault(
        _spec("{name: cortex-m4f}", "{name: cortex-m4f, flash: 100 B}"), "C708", "the target has 100"
    ),
    "run: lock that is damaged": Fault(
        _bytes("old.lock", b"{"), "L502", "not a lock", command=(*COMPILE, "--locked", "old.lock")
    ),
    "run: no such spec": Fault(lambda p: (p / "net.yaml").unlink(), "S101", r"net\.yaml"),
    "run: directory without a compilation": Fault(
        lambda p: (p / "empty").mkdir(), "R404", "has no", command=("run", "empty", "--data", "data.npz")
    ),
    "run: override without a value": Fault(
        lambda p: None, "S131", "path=value", command=(*COMPILE, "--set", "passes")
    ),
}


@pytest.mark.parametrize("entry", FAULTS)
def test_bad_input_gets_its_message(
    entry: str,
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    fault_table: list[tuple[str, str]],
) -> None:
    fault = FAULTS[entry]
    monkeypatch.chdir(project)
    fault.spoil(project)
    before = {p: p.read_bytes() for p in project.rglob("*") if p.is_file()}
    status = main(fault.command)
    message = capsys.readouterr().err
    fault_table.append((entry, message.splitlines()[0] if message else ""))
    assert status == 2, message
    assert f"[{fault.code}" in message and re.search(fault.words, message), message
    assert all(re.search(words, message) for words in fault.also), message
    assert "Traceback" not in message
    after = {p: p.read_bytes() for p in project.rglob("*") if p.is_file() and p.suffix != ".pyc"}
    assert after == before
