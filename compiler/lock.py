"""spec.lock: digests of everything that a compilation read, and of everything that it wrote.

The same lock gives the same bytes: compiling with `--locked` refuses inputs that differ, and outputs that do.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from .errors import Problem, UserError

LOCK_FILE = "spec.lock"
_TOOLS = ("fxpress", "torch", "numpy", "networkx", "pydantic", "jinja2")


class Lock(BaseModel):
    """Digests are SHA-256 in hexadecimal."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    lock_version: int = 1
    spec: str = Field(description="digest of the spec after inheritance and overrides")
    inputs: dict[str, str] = Field(description="digests of model source, weights and data files, by role")
    versions: dict[str, str] = Field(description="versions of fxpress and of what it computes with")
    outputs: dict[str, str] = Field(description="digests of the written files, by path")

    def to_bytes(self) -> bytes:
        """The file's content."""
        return (self.model_dump_json(indent=2) + "\n").encode()


def make_lock(spec_text: str, inputs: Mapping[str, Path], outputs: Mapping[str, bytes]) -> Lock:
    """The lock of a compilation: the spec in canonical form, the files read by role, the files written."""
    return Lock(
        spec=_digest(spec_text.encode()),
        inputs={role: file_digest(path) for role, path in sorted(inputs.items())},
        versions=tool_versions(),
        outputs={name: _digest(content) for name, content in sorted(outputs.items())},
    )


def read_lock(path: Path) -> Lock:
    """The lock in a file; UserError when it is missing or damaged."""
    try:
        return Lock.model_validate_json(path.read_text())
    except OSError as err:
        raise UserError(
            Problem("L501", str(path), "cannot be read", "compile once without --locked")
        ) from err
    except (ValidationError, UnicodeDecodeError) as err:
        raise UserError(
            Problem("L502", str(path), "is not a lock of this version", "compile without --locked")
        ) from err


def check_lock(expected: Lock, actual: Lock, path: Path) -> None:
    """UserError that lists everything in which a compilation differs from its lock."""
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
    return {name: version(name) for name in _TOOLS}


def file_digest(path: Path) -> str:
    """SHA-256 of a file; of its files' names and digests in order for a directory."""
    if path.is_dir():
        rows = [f"{p.relative_to(path)} {file_digest(p)}" for p in sorted(path.rglob("*")) if p.is_file()]
        return _digest("\n".join(rows).encode())
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
