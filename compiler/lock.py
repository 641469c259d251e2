"""Model of spec.lock: digests of all files that a compilation read and of all files that it wrote.

The same lock gives the same bytes: compilation with `--locked` refuses inputs and outputs that differ. An output
directory is read only if every file in it has the digest in its lock.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError

from ..ir.errors import IRError
from ..ir.tensor_files import INDEX_SUFFIX, shard_files
from ..specs import plugins
from ..specs.section import is_file
from .errors import Problem, UserError, first_line
from .file_contents import Files

LOCK_FILE = "spec.lock"
_TOOLS = ("fxpress", "torch", "numpy", "networkx", "pydantic", "jinja2")


class Lock(BaseModel):
    """Digests are SHA-256 in hexadecimal."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    lock_version: Literal[2]
    spec: str = Field(description="digest of the spec after inheritance and overrides")
    inputs: dict[str, str] = Field(description="digests of model source, weights and data files, by role")
    versions: dict[str, str] = Field(description="versions of fxpress and of the packages that compute")
    outputs: dict[str, str] = Field(description="digests of the written files, by path")
    digest: str = Field(default="", description="digest of all other fields")

    @property
    def content_digest(self) -> str:
        """Digest of all fields but `digest`."""
        return _digest(self.model_dump_json(exclude={"digest"}).encode())

    def to_bytes(self) -> bytes:
        """The file's content."""
        return (self.model_dump_json(indent=2) + "\n").encode()


def make_lock(spec_text: str, inputs: Mapping[str, Path | bytes], outputs: Files) -> Lock:
    """The lock of a compilation: the spec in canonical form, files that were read by role, and the written files."""
    lock = Lock(
        lock_version=2,
        spec=_digest(spec_text.encode()),
        inputs={
            role: _digest(read) if isinstance(read, bytes) else file_digest(read)
            for role, read in sorted(inputs.items())
        },
        versions=tool_versions(),
        outputs={name: outputs.digest(name) for name in sorted(outputs)},
    )
    return lock.model_copy(update={"digest": lock.content_digest})


def read_lock(path: Path) -> Lock:
    """The lock in a file; UserError if it is missing or damaged."""
    advice = "compile again, which writes a new lock"
    try:
        _refuse_special_file(path)
        content = path.read_bytes()
        lock = Lock.model_validate_json(content)
    except (OSError, ValueError) as err:
        if isinstance(err, ValidationError):
            raise UserError(Problem("L502", str(path), "is not a lock of this version", advice)) from err
        fact = f"cannot be read: {_reason(err)}"
        raise UserError(Problem("L501", str(path), fact, advice)) from err
    if lock.digest != lock.content_digest or lock.to_bytes() != content:
        raise UserError(Problem("L502", str(path), "was changed: its digest is wrong", advice))
    return lock


def check_outputs(directory: Path) -> Lock:
    """The lock of an output directory; UserError unless all its files exist and are unchanged."""
    problems, advice = [], "compile again, or restore the file"
    if not is_file(directory / LOCK_FILE):
        missing = f"has no {LOCK_FILE}" if os.path.isdir(directory) else "is not a directory"
        hint = "name an output directory of `fxpress compile`"
        raise UserError(Problem("R404", str(directory), missing, hint))
    lock = read_lock(directory / LOCK_FILE)
    for name, expected in lock.outputs.items():
        path = directory / name
        try:
            _refuse_outside(name)
            _refuse_special_file(path)
            found = _file_digest(path)
        except (OSError, ValueError) as err:
            problems.append(Problem("R410", str(path), f"cannot be read: {_reason(err)}", advice))
            continue
        if found != expected:
            fact = f"was changed: its digest is not that in {LOCK_FILE}"
            problems.append(Problem("R411", str(path), fact, advice))
    if problems:
        raise UserError(problems)
    return lock


@contextmanager
def read_by_this_version(path: Path, lock: Lock) -> Iterator[None]:
    """UserError if an unchanged file cannot be read: another version wrote it."""
    try:
        yield
    except (ValueError, IRError, SafetensorError, OSError) as err:
        fact = f"cannot be read by this version: {_reason(err)}"
        advice = f"compile again (fxpress {lock.versions.get('fxpress')} wrote it)"
        raise UserError(Problem("R412", str(path), fact, advice)) from err


def check_lock(expected: Lock, actual: Lock, path: Path) -> None:
    """UserError with all differences between a compilation and its lock."""
    problems = []
    if expected.spec != actual.spec:
        problems.append(Problem("L503", str(path), "the spec has changed since the lock was written"))
    for what, old, new in (
        ("input", expected.inputs, actual.inputs),
        ("version of", expected.versions, actual.versions),
        ("output", expected.outputs, actual.outputs),
    ):
        changed = [k for k in sorted(old.keys() | new.keys()) if old.get(k) != new.get(k)]
        problems += [Problem("L504", str(path), f"{what} {name} differs from the lock") for name in changed]
    if problems:
        raise UserError(problems)


def tool_versions() -> dict[str, str]:
    """Versions of the packages that can change a result."""
    return {name: version(name) for name in _TOOLS} | plugins.versions()


def file_digest(path: Path) -> str:
    """SHA-256 of a file; for a directory, or the index file of shards, of the names and digests of its files in
    order.
    """
    if path.name.endswith(INDEX_SUFFIX):
        rows = [f"{p.name} {file_digest(p)}" for p in shard_files(path)]
        return _digest("\n".join([path.read_text(), *rows]).encode())
    if path.is_dir():
        rows = [f"{p.relative_to(path)} {file_digest(p)}" for p in sorted(path.rglob("*")) if p.is_file()]
        return _digest("\n".join(rows).encode())
    return _file_digest(path)


def _file_digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _refuse_special_file(path: Path) -> None:
    """ValueError unless the path is a regular file; reading a pipe or a device may never end."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError("it is not a regular file")


def _refuse_outside(name: str) -> None:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError("it is outside the directory")


def _reason(err: Exception) -> str:
    if isinstance(err, ValidationError):
        first = err.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return (err.strerror if isinstance(err, OSError) else None) or first_line(err)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
