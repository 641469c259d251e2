"""Faults at random: damaged output directories and faulty invocations, each run and judged.

    python tests/compiler/fault_generator.py --count 300      # prints the table; what `make faults` runs

Every case must end in exit status 2 with a message that has a code and a place: no traceback, no internal error,
no silent run. A case runs in a forked child of this process, one in twenty in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from sample_project import write_project

from fxpress.compiler import compile_model
from fxpress.compiler.cli import main as fxpress

LIMIT_SECONDS = 180
OWN_PROCESS = 20
"""One case in so many runs as a process of its own."""

Spoil = Callable[[Path], object]


@dataclass(frozen=True)
class Case:
    """A fault: its kind, the change of a copy of the project, and the command that runs in it."""

    kind: str
    spoil: Spoil
    command: tuple[str, ...]


@dataclass(frozen=True)
class Verdict:
    """Outcome of a case; `wrong` is empty if the outcome is as required."""

    case: Case
    status: int
    message: str
    wrong: str


def make_project(folder: Path) -> Path:
    """The sample project with its output directory `out`, and `other`, compiled from other weights."""
    folder.mkdir(parents=True, exist_ok=True)
    write_project(folder)
    compile_model(folder / "net.yaml", overrides=["outputs.torch={form: qdq}"]).write(folder / "out")
    other = ["model.args={width: 4}", "passes[2].per_channel=false", "outputs.torch={form: qdq}"]
    compile_model(folder / "net.yaml", overrides=other).write(folder / "other")
    return folder


def judge(case: Case, project: Path, *, own_process: bool) -> Verdict:
    """Run a case in a copy of the project."""
    with tempfile.TemporaryDirectory(prefix="fault-") as folder:
        copy = Path(folder, "project")
        shutil.copytree(project, copy)
        case.spoil(copy)
        before = _contents(copy)
        run = _in_process if own_process else _forked
        status, message = run(case.command, copy, Path(folder, "messages"))
        changed = [name for name, content in _contents(copy).items() if before.get(name) != content]
    wrong = ""
    if "Traceback" in message or "internal error" in message:
        wrong = "internal error"
    elif status != 2:
        wrong = f"exit status {status}"
    elif not re.search(r"\[[A-Z]\d{3}\]|error: ", message):
        wrong = "no code"
    elif changed:
        wrong = f"wrote {changed[0]}"
    return Verdict(case, status, message, wrong)


def _contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.is_symlink() and "__pycache__" not in path.parts
    }


def _in_process(command: Sequence[str], folder: Path, _: Path) -> tuple[int, str]:
    words = [sys.executable, "-m", "fxpress.compiler.cli", *command]
    done = subprocess.run(
        words,
        cwd=folder,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
        timeout=LIMIT_SECONDS,
    )
    return done.returncode, done.stderr


def _forked(command: Sequence[str], folder: Path, messages: Path) -> tuple[int, str]:
    child = os.fork()
    if child == 0:
        _child(command, folder, messages)
    end = time.monotonic() + LIMIT_SECONDS
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status), messages.read_text(errors="replace")
        time.sleep(0.005)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return -9, f"no end within {LIMIT_SECONDS} seconds"


def _child(command: Sequence[str], folder: Path, messages: Path) -> None:
    status = 99
    try:
        sys.stderr = messages.open("w", errors="backslashreplace")
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115 the process ends with it
        os.chdir(folder)
        try:
            status = fxpress(command)
        except SystemExit as err:
            status = err.code if isinstance(err.code, int) else 1
    except BaseException:
        traceback.print_exc(file=sys.stderr)
    finally:
        sys.stderr.flush()
        os._exit(status)


# ---------------------------------------------------------------------------------------------------------------------
# Damaged output directories


def damages(count: int, *, seed: int = 0) -> Iterator[Case]:
    """Cases in which a good output directory is damaged, and then read by some command."""
    chance = random.Random(seed)
    kinds = sorted(DAMAGES)
    for index in range(count):
        kind = kinds[index % len(kinds)]
        yield Case(f"damage: {kind}", DAMAGES[kind](random.Random(chance.random())), _reader(chance))


def _reader(chance: random.Random) -> tuple[str, ...]:
    place = chance.choice(["integer", "torch", "host", "cortex-m4"])
    return chance.choice(
        [
            ("run", "out", "--on", place, "--data", "data.npz", "--input", "image=x", "--samples", "2"),
            ("explain", "out", chance.choice(["head", "stem.0", "nothing"])),
            ("diff", "out", "other"),
            ("diff", "other", "out"),
        ]
    )


def _on_file(change: Callable[[Path, random.Random], object]) -> Callable[[random.Random], Spoil]:
    """A damage to a file that the random numbers choose."""

    def make(chance: random.Random) -> Spoil:
        def spoil(project: Path) -> None:
            files = sorted(p for p in (project / "out").rglob("*") if p.is_file())
            change(chance.choice(files), chance)

        return spoil

    return make


def _on_lock(
    change: Callable[[dict[str, object], random.Random], object],
) -> Callable[[random.Random], Spoil]:
    def make(chance: random.Random) -> Spoil:
        def spoil(project: Path) -> None:
            path = project / "out" / "spec.lock"
            lock = json.loads(path.read_text())
            change(lock, chance)
            path.write_text(json.dumps(lock))

        return spoil

    return make


def _on_folder(change: Callable[[Path, random.Random], object]) -> Callable[[random.Random], Spoil]:
    return lambda chance: lambda project: change(project / "out", chance)


def _flip(path: Path, chance: random.Random) -> None:
    content = bytearray(path.read_bytes())
    content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    path.write_bytes(bytes(content))


def _cut(path: Path, chance: random.Random) -> None:
    path.write_bytes(path.read_bytes()[: chance.randrange(path.stat().st_size)])


def _replace(make: Callable[[Path], object]) -> Callable[[Path, random.Random], object]:
    def change(path: Path, _: random.Random) -> None:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        make(path)

    return change


def _swap(path: Path, chance: random.Random) -> None:
    others = [p for p in path.parent.rglob("*") if p.is_file() and p.read_bytes() != path.read_bytes()]
    if not others:
        return path.write_bytes(b"")
    other = chance.choice(sorted(others))
    mine, theirs = path.read_bytes(), other.read_bytes()
    path.write_bytes(theirs)
    other.write_bytes(mine)


def _from_other(path: Path, _: random.Random) -> None:
    root = next(p for p in path.parents if p.name == "out")
    other = root.parent / "other" / path.relative_to(root)
    if other.read_bytes() == path.read_bytes():
        path.write_bytes(other.read_bytes() + b"\n")
    else:
        shutil.copy(other, path)


def _part(folder: Path, chance: random.Random) -> Path:
    return folder / chance.choice(["c", "torch"])


DAMAGES: dict[str, Callable[[random.Random], Spoil]] = {
    "bit": _on_file(_flip),
    "byte more": _on_file(lambda p, r: p.write_bytes(p.read_bytes() + r.randbytes(r.randint(1, 9)))),
    "cut": _on_file(_cut),
    "deleted": _on_file(lambda p, _: p.unlink()),
    "device": _on_file(_replace(lambda p: p.symlink_to("/dev/zero"))),
    "directory in place": _on_file(_replace(Path.mkdir)),
    "empty": _on_file(lambda p, _: p.write_bytes(b"")),
    "file of another": _on_file(_from_other),
    "link to itself": _on_file(_replace(lambda p: p.symlink_to(p))),
    "link to nothing": _on_file(_replace(lambda p: p.symlink_to("nowhere"))),
    "pipe": _on_file(_replace(os.mkfifo)),
    "random bytes": _on_file(lambda p, r: p.write_bytes(r.randbytes(p.stat().st_size))),
    "renamed": _on_file(lambda p, _: p.rename(p.with_suffix(".old"))),
    "swapped": _on_file(_swap),
    "zeros": _on_file(lambda p, _: p.write_bytes(bytes(p.stat().st_size))),
    "part deleted": _on_folder(lambda f, r: shutil.rmtree(_part(f, r))),
    "part a file": _on_folder(lambda f, r: _replace(lambda p: p.write_text("x"))(_part(f, r), r)),
    "part a loop": _on_folder(lambda f, r: _replace(lambda p: p.symlink_to(p))(_part(f, r), r)),
    "all deleted": _on_folder(lambda f, _: [shutil.rmtree(f), f.mkdir()]),
    "all a file": _on_folder(_replace(lambda p: p.write_text("x"))),
    "all missing": _on_folder(lambda f, _: shutil.rmtree(f)),
    "all a loop": _on_folder(_replace(lambda p: p.symlink_to(p))),
    "lock: version": _on_lock(lambda k, r: k.update(lock_version=r.choice([0, 1, 3, "2", None]))),
    "lock: key less": _on_lock(lambda k, r: k.pop(r.choice(sorted(k)))),
    "lock: key more": _on_lock(lambda k, _: k.update(more=1)),
    "lock: file less": _on_lock(lambda k, r: k["outputs"].pop(r.choice(sorted(k["outputs"])))),  # type: ignore[attr-defined,call-overload]
    "lock: file outside": _on_lock(lambda k, _: k["outputs"].update({"../../etc/passwd": "0"})),  # type: ignore[attr-defined]
    "lock: wrong type": _on_lock(
        lambda k, r: k.update({r.choice(sorted(k)): r.choice([None, 1.5, [], "x"])})
    ),
    "lock: other digest": _on_lock(lambda k, r: k["outputs"].update({r.choice(sorted(k["outputs"])): "0"})),  # type: ignore[attr-defined,call-overload]
    "lock: nested": _on_folder(lambda f, r: (f / "spec.lock").write_text("[" * r.randint(1, 100_000))),
    "lock: not text": _on_folder(lambda f, r: (f / "spec.lock").write_bytes(b"\xff\xfe" + r.randbytes(99))),
}

# ---------------------------------------------------------------------------------------------------------------------
# Faulty invocations

_COMPILE = ("compile", "net.yaml", "-o", "new")
_PLAN = ("plan", "net.yaml")
_SENSE = ("sensitivity", "net.yaml")
_INIT = ("init", "net.py:Net", "--input", "image=1x3x8x8", "-o", "made.yaml")
_RUN = ("run", "out", "--on", "integer", "--data", "data.npz", "--input", "image=x", "--labels", "y")
_BODY = "return self.head("
_LONG = "a/" * 2500 + "b"
_SURROGATE = os.fsdecode(b"a\xff")


def invocations(count: int, *, seed: int = 0) -> Iterator[Case]:
    """Cases in which a spec, a model, weights, data or a command line is faulty."""
    chance = random.Random(seed)
    families = [_spec_case, _model_case, _weights_case, _data_case, _words_case, _words_case]
    for index in range(count):
        yield families[index % len(families)](random.Random(chance.random()))


def _spec_case(chance: random.Random) -> Case:
    kind, change = chance.choice(
        [
            ("key misspelt", _misspelt),
            ("value of no type", _odd_value),
            ("cut", lambda text, r: text[: r.randrange(len(text) - 30)].encode()),
            ("random bytes", lambda text, r: r.randbytes(200)),
            ("control character", lambda text, r: _inserted(text, r.choice("\0\a\x1b\x7f"), r).encode()),
            ("surrogate", lambda text, r: text.replace("name: net", r'name: "\ud800"').encode()),
            ("line twice", lambda text, r: text.replace("passes:", "passes: []\npasses:").encode()),
            ("nested", lambda text, r: b"[" * r.randint(200, 100_000)),
        ]
    )
    command = chance.choice(
        [("check", "net.yaml"), _COMPILE, _PLAN, _SENSE, ("explain", "net.yaml", "passes")]
    )

    def spoil(project: Path) -> None:
        path = project / "net.yaml"
        path.write_bytes(change(path.read_text(), chance))

    return Case(f"spec: {kind}", spoil, command)


def _misspelt(text: str, chance: random.Random) -> bytes:
    keys = list(
        re.finditer(r"\b(fxpress|model|source|inputs|data|file|target|name|pass|passes|outputs)(?=:)", text)
    )
    key = chance.choice(keys)
    return (text[: key.end()] + chance.choice("qxz") + text[key.end() :]).encode()


def _odd_value(text: str, chance: random.Random) -> bytes:
    values = list(
        re.finditer(r"(?<=: )(net\.py:Net|16|cortex-m4f|quantize|data\.npz|top1|\[1, 3, 8, 8\])", text)
    )
    value = chance.choice(values)
    odd = chance.choice(
        [".nan", "1e999", "*nope", "!!python/name:os.system x", "{", "-1", "{a: 1}", "'\\0'", "9" * 400]
    )
    return (text[: value.start()] + odd + text[value.end() :]).encode()


def _inserted(text: str, piece: str, chance: random.Random) -> str:
    at = chance.randrange(len(text))
    return text[:at] + piece + text[at:]


def _model_case(chance: random.Random) -> Case:
    raised = chance.choice(["ValueError", "KeyError", "OSError", "RecursionError", "AssertionError"])
    bodies = {
        "raises": f"raise {raised}('x')",
        "gives nothing": "return None",
        "gives text": "return 'x'",
        "gives an object": "return object()",
        "depends on data": "image = image if image.sum() > 0 else -image",
        "random": "image = image + __import__('torch').rand(1)",
        "train mode": "self.train()",
        "exits": f"raise SystemExit({chance.choice(['0', '1', repr('x')])})",
        "recursion": "return self.forward(image)",
        "wrong shape": f"image = image[:, :{chance.randint(1, 2)}]",
        "attribute": "image = self.nothing(image)",
        "stateful": "self.n = getattr(self, 'n', 0) + 1; image = image * self.n",
        "no memory": "image = image + __import__('torch').zeros(10**15).sum()",
        "all NaN": "image = image * float('nan')",
        "complex": "image = image.to(__import__('torch').complex64)",
        "deletes": "del self.head",
    }
    files = {
        "import raises": b"raise ImportError('x')",
        "syntax": b"class Net(:",
        "not text": b"\xff\xfe\0",
        "empty": b"",
        "no module": b"Net = 3",
        "gives no module": b"def Net(): return 3",
        "constructor raises": b"def Net(): raise MemoryError('x')",
        "exits at import": b"import sys; sys.exit(0)",
        "lazy": b"from torch import nn\ndef Net(): return nn.Sequential(nn.Flatten(), nn.LazyLinear(5))",
        "meta": b"from torch import nn\ndef Net(): return nn.Linear(8, 5, device='meta')",
    }
    command = chance.choice([_COMPILE, _PLAN, _SENSE, _INIT])
    kind = chance.choice(sorted(bodies) + sorted(files))

    def spoil(project: Path) -> None:
        path = project / "net.py"
        if kind in files:
            path.write_bytes(files[kind])
            return
        path.write_text(path.read_text().replace(_BODY, f"{bodies[kind]}\n        {_BODY}"))

    if kind in ("all NaN", "meta", "lazy") and command == _INIT:
        command = _COMPILE  # init looks at no numbers
    return Case(f"model: {kind}", spoil, command)


def _weights_case(chance: random.Random) -> Case:
    def tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Spoil:
        def spoil(project: Path) -> None:
            found = load_file(project / "net.safetensors")
            change(found)
            save_file(found, project / "net.safetensors")

        return spoil

    def pickled(change: Callable[[dict[object, object]], object]) -> Spoil:
        def spoil(project: Path) -> None:
            found: dict[object, object] = dict(load_file(project / "net.safetensors"))
            change(found)
            torch.save(found, project / "net.pt")
            spec = project / "net.yaml"
            spec.write_text(spec.read_text().replace("net.safetensors", "net.pt"))

        return spoil

    name = chance.choice(["stem.0.weight", "stem.0.bias", "head.weight", "head.bias"])
    kinds: dict[str, Spoil] = {
        "missing": lambda p: (p / "net.safetensors").unlink(),
        "cut": lambda p: _cut(p / "net.safetensors", chance),
        "random bytes": lambda p: (p / "net.safetensors").write_bytes(chance.randbytes(500)),
        "empty": lambda p: (p / "net.safetensors").write_bytes(b""),
        "directory": lambda p: _replace(Path.mkdir)(p / "net.safetensors", chance),
        "pipe": lambda p: _replace(os.mkfifo)(p / "net.safetensors", chance),
        "tensor less": tensors(lambda t: t.pop(name)),
        "tensor more": tensors(lambda t: t.update(more=torch.ones(2))),
        "other shape": tensors(lambda t: t.update({name: torch.ones(chance.randint(6, 9))})),
        "NaN": tensors(lambda t: t[name].view(-1).__setitem__(0, float("nan"))),
        "infinite": tensors(lambda t: t[name].view(-1).__setitem__(0, float("inf"))),
        "sparse": pickled(lambda t: t.update({name: t[name].to_sparse()})),  # type: ignore[attr-defined,call-overload]
        "meta": pickled(lambda t: t.update({name: t[name].to("meta")})),  # type: ignore[attr-defined,call-overload]
        "no tensor": pickled(lambda t: t.update({name: 3})),
        "names of numbers": pickled(lambda t: t.update({3: torch.ones(1)})),
        "complex": pickled(lambda t: t.update({name: t[name].to(torch.complex64)})),  # type: ignore[attr-defined,call-overload]
        "surrogate": pickled(lambda t: t.update({"\ud800": torch.ones(1)})),
    }
    kind = chance.choice(sorted(kinds))
    return Case(f"weights: {kind}", kinds[kind], chance.choice([_COMPILE, _PLAN, _SENSE]))


def _data_case(chance: random.Random) -> Case:
    def arrays(change: Callable[[dict[str, np.ndarray]], object]) -> Spoil:
        def spoil(project: Path) -> None:
            found = dict(np.load(project / "data.npz"))
            change(found)
            np.savez(project / "data.npz", **found)

        return spoil

    def member(content: bytes) -> Spoil:
        def spoil(project: Path) -> None:
            with zipfile.ZipFile(project / "data.npz", "w") as archive:
                archive.writestr(chance.choice(["x", "x.npy"]), content)

        return spoil

    index = chance.randrange(16)
    kinds: dict[str, Spoil] = {
        "missing": lambda p: (p / "data.npz").unlink(),
        "npy": lambda p: np.save((p / "data.npz").open("wb"), np.ones((4, 3, 8, 8))),
        "cut": lambda p: _cut(p / "data.npz", chance),
        "random bytes": lambda p: (p / "data.npz").write_bytes(b"PK\3\4" + chance.randbytes(300)),
        "empty": lambda p: (p / "data.npz").write_bytes(b""),
        "pipe": lambda p: _replace(os.mkfifo)(p / "data.npz", chance),
        "member": member(chance.randbytes(chance.randint(0, 300))),
        "member cut": member(b"\x93NUMPY\1\0" + chance.randbytes(50)),
        "array less": arrays(lambda a: a.pop(chance.choice(["x", "y"]))),
        "objects": arrays(lambda a: a.update(x=np.array([{}] * 24, dtype=object))),
        "structured": arrays(lambda a: a.update(x=np.zeros((24, 3, 8, 8), "i4,f4"))),
        "text": arrays(lambda a: a.update(x=a["x"].astype(str))),
        "complex": arrays(lambda a: a.update(x=a["x"] + 1j)),
        "NaN": arrays(lambda a: a["x"][index].__setitem__((0, 0, 0), np.nan)),
        "no samples": arrays(lambda a: a.update(x=a["x"][:0], y=a["y"][:0])),
        "one number": arrays(lambda a: a.update(x=np.float32(1))),
        "other shape": arrays(lambda a: a.update(x=a["x"][:, :, : chance.randint(1, 7)])),
        "other length": arrays(lambda a: a.update(x=a["x"][: chance.randint(1, 20)])),
        "label too large": arrays(lambda a: a["y"].__setitem__(index, 5 + index)),
        "label negative": arrays(lambda a: a["y"].__setitem__(index, -1 - index)),
        "label with a fraction": arrays(lambda a: a.update(y=a["y"] + 0.25)),
        "labels of no class": arrays(lambda a: a.update(y=np.stack([a["y"]] * 2, 1))),
    }
    kind = chance.choice(sorted(kinds))
    return Case(f"data: {kind}", kinds[kind], chance.choice([_COMPILE, _PLAN, _RUN]))


def _words_case(chance: random.Random) -> Case:
    bad_place = chance.choice(["no/where", "net.py/x", _LONG, "/dev/null", "out", "/proc/x"])
    bad_file = chance.choice(
        ["no.yaml", "out", "/dev/null", f"{_LONG}.yaml", "net.py", "data.npz", _SURROGATE]
    )
    bad_directory = chance.choice(["nothing", "net.py", _LONG, "/dev/null", ".", _SURROGATE, "/proc"])
    count = f"--samples={chance.choice(['-3', '0', 'x', '1.5', '', '1e3'])}"
    override = chance.choice(
        [
            "passes",
            "=",
            "passes[9].samples=1",
            "passes[2].weights=int3",
            "a.b.c=1",
            "passes[2]=[",
            "\ud800=1",
            "fxpress=9",
        ]
    )
    words: tuple[str, ...] = chance.choice(
        [
            (chance.choice(["compil", "", "--nothing", _SURROGATE]),),
            (),
            ("compile", "net.yaml"),
            ("check", bad_file),
            ("compile", bad_file, "-o", "new"),
            ("plan", bad_file),
            ("plan", "net.yaml", "--set", override),
            ("check", "net.yaml", "--set", override),
            (
                "compile",
                "net.yaml",
                "-o",
                chance.choice([".", "net.py", "net.py/new", _LONG, "/proc/x", "/dev/null"]),
            ),
            (*_COMPILE, "--dump-after", chance.choice(["fuze", "", "clean ", "\ud800"])),
            (*_COMPILE, "--locked", chance.choice(["no.lock", "out", "net.py", "/dev/null", _LONG])),
            (*_COMPILE, "--locked", "other/spec.lock"),
            (*_SENSE, "-o", bad_place),
            (*_SENSE, count),
            (*_SENSE, "--bits", chance.choice(["3", "x", "8;4", "-8", "1e1"])),
            (*_SENSE, "--method", "guess"),
            ("run", bad_directory, "--data", "data.npz"),
            (*_RUN, count),
            (*_RUN, "--save", bad_place),
            (*_RUN, "--input", chance.choice(["image", "imago=x", "=x", "image=z", "image=", "\ud800=x"])),
            (*_RUN, "--labels", chance.choice(["z", "x", ""]))
            if chance.random() < 0.5
            else (*_RUN, "--output", "z"),
            (*_RUN, "--on", chance.choice(["moon", "cortex-a9", "", _SURROGATE])),
            ("run", "out", "--data", chance.choice(["no.npz", "net.py", "out", "/dev/zero", _LONG])),
            ("explain", bad_directory, "head"),
            ("explain", "out", chance.choice(["nothing", "", _SURROGATE, "a" * 5000])),
            ("explain", "net.yaml", chance.choice(["nothing", "passes[9]", "", "[", "a" * 5000])),
            ("explain", chance.choice(["M999", "M12", "", "out", "net.yaml", _SURROGATE, _LONG])),
            ("diff", "out", bad_directory),
            ("diff", bad_directory, "out"),
            (
                "init",
                chance.choice(
                    ["net.py", "net.py:", ":Net", "no.py:Net", "net.py:No", _SURROGATE, "no.such:Net"]
                ),
            ),
            (
                "init",
                "net.py:Net",
                "--input",
                chance.choice(["image", "image=", "image=1x0", "image=1xx3", "=1", "image=ax3"]),
            ),
            ("init", "net.py:Net", "--input", chance.choice(["image=1x3", "image=1x2x8x8", "image=3x8x8"])),
            (*_INIT[:-1], chance.choice(["no/made.yaml", "net.yaml", "out", _LONG, "/dev/null", "net.py/x"])),
            (*_INIT, "--target", chance.choice(["cortex", "net.py", "no.yaml", ""])),
            (*_INIT, "--weights", chance.choice(["no.pt", "net.py", "out", "data.npz", _LONG])),
        ]
    )
    return Case(f"words: {words[0] if words else 'none'}", lambda project: None, words)


def report(verdicts: Sequence[Verdict]) -> str:
    """A row for each kind, then the failures."""
    total = Counter(v.case.kind for v in verdicts)
    wrong = Counter(v.case.kind for v in verdicts if v.wrong)
    rows = [f"{kind:<32} {count:>5} {wrong[kind]:>6}" for kind, count in sorted(total.items())]
    faults = [
        f"\n{v.case.kind}: {v.wrong}\n  {' '.join(w[:80] for w in v.case.command)!a}\n  {v.message[-1500:]!s}"
        for v in verdicts
        if v.wrong
    ]
    ended = Counter(v.wrong or "exit status 2 with a message" for v in verdicts)
    summary = ", ".join(f"{count} {what}" for what, count in ended.most_common())
    return "\n".join(
        [f"{'kind':<32} {'cases':>5} {'wrong':>6}", *rows, *faults, "", f"{len(verdicts)} cases: {summary}"]
    )


def main() -> int:
    """Run both generators; exit status 1 where a case went wrong."""
    parser = argparse.ArgumentParser(description="Damaged output directories and faulty invocations.")
    parser.add_argument("--count", type=int, default=300, help="cases of each (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        project = make_project(Path(folder, "project"))
        found = []
        for cases in (
            damages(options.count, seed=options.seed),
            invocations(options.count, seed=options.seed),
        ):
            found.append(
                [judge(case, project, own_process=i % OWN_PROCESS == 0) for i, case in enumerate(cases)]
            )
            print(report(found[-1]), end="\n\n", flush=True)
    return int(any(v.wrong for verdicts in found for v in verdicts))


if __name__ == "__main__":
    sys.exit(main())
