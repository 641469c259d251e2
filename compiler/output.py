"""Output directories that appear complete or not at all.

Files are written to a hidden sibling directory, which then replaces the target in one rename. A directory that
fxpress did not write is never replaced; remains of a killed run are removed by the next one.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from ..specs.section import is_file
from .errors import Problem, UserError, shorten
from .file_contents import Files
from .lock import LOCK_FILE, read_lock

MARKER = LOCK_FILE
_PARTIAL = ".partial-"
_OLD = ".old-"


def check_destination(directory: Path, *, inputs: Iterable[Path] = ()) -> None:
    """UserError unless `directory` can be created, or is an earlier output that may be replaced.

    It may contain files of `inputs`, those that a compilation reads, only if an earlier compilation wrote them.
    """
    if directory.is_symlink():
        raise _refusal("O301", directory, "is a symbolic link", "name the directory that it points to")
    if os.path.exists(directory) and not directory.is_dir():
        raise _refusal("O302", directory, "exists and is not a directory", "choose another name")
    if os.path.isdir(directory) and any(directory.iterdir()) and not (directory / MARKER).is_file():
        raise _refusal(
            "O303",
            directory,
            f"is not empty and has no {MARKER} of an earlier run",
            "choose an empty directory",
        )
    precious = _precious(directory, inputs)
    if precious:
        fact = f"contains {', '.join(map(str, precious))}, an input that would be removed"
        raise _refusal("O312", directory, fact, "choose another directory, or move the file")
    parent = _existing_ancestor(directory)
    if not parent.is_dir():
        raise _refusal(
            "O302", directory, f"cannot be created: {shorten(str(parent))} is a file", "choose another name"
        )
    if not os.access(parent, os.W_OK | os.X_OK):
        raise _refusal("O304", directory, f"cannot be written: {parent} is read-only", "choose another path")


def publish(directory: Path, files: Files, *, inputs: Iterable[Path] = ()) -> None:
    """Writes exactly `files`, by relative path, to `directory`, and replaces an earlier output in one step.

    UserError if the disk is full or the directory cannot be written; an earlier output is then unchanged.
    """
    check_destination(directory, inputs=inputs)
    directory = directory.absolute()
    partial = directory.with_name(f".{directory.name}{_PARTIAL}{os.getpid()}")
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        with _locked(directory.parent):
            _sweep(directory)
            try:
                _write(partial, files)
                _swap(partial, directory)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    except OSError as err:
        reason = err.strerror or str(err)
        raise _refusal(
            "O305", directory, f"could not be written: {reason}", "nothing was changed there"
        ) from err


def check_arrays(path: Path, names: Sequence[str], *, inputs: Sequence[Path], directory: Path) -> None:
    """UserError unless an npz file of arrays with these names may be written to `path`.

    It may replace such a file, but none of `inputs`, and may not be in the output directory, which the next
    compilation replaces as a whole.
    """
    check_file(path)
    if path.resolve().is_relative_to(directory.resolve()):
        fact, advice = (
            f"is in {shorten(str(directory))}, which the next compilation replaces",
            "choose another path",
        )
        raise _refusal("O312", path, fact, advice)
    if not os.path.exists(path):
        return
    if any(os.path.exists(other) and path.samefile(other) for other in inputs):
        raise _refusal("O312", path, "is an input, which would be overwritten", "choose another name")
    if _members(path) != {f"{name}.npy" for name in names}:
        fact = f"exists and is not an npz file of {', '.join(names)}"
        raise _refusal("O306", path, fact, "choose another name, or remove it")


def check_file(path: Path) -> None:
    """UserError unless `path` can be created, or is a regular file that may be replaced."""
    if os.path.lexists(path) and not is_file(path):
        raise _refusal("O302", path, "exists and is not a regular file", "choose another name")
    if not os.path.isdir(path.absolute().parent):
        raise _refusal("O308", path, "is not in a directory", f"make {shorten(str(path.parent))} first")
    if not os.access(path.absolute().parent, os.W_OK | os.X_OK):
        raise _refusal("O304", path, "cannot be written: its directory is read-only", "choose another path")


def write_file(path: Path, content: bytes) -> None:
    """Writes one file, completely or not at all, in place of an earlier one; UserError if that fails."""
    check_file(path)
    partial = path.with_name(f".{path.name}{_PARTIAL}{os.getpid()}")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    except OSError as err:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        reason = err.strerror or str(err)
        raise _refusal("O305", path, f"could not be written: {reason}", "choose another path") from err


def _precious(directory: Path, inputs: Iterable[Path]) -> list[Path]:
    """The inputs below `directory` that no compilation wrote there, relative to it."""
    root = directory.resolve()
    inside = {
        p.resolve().relative_to(root) for p in inputs if is_file(p) and p.resolve().is_relative_to(root)
    }
    written = {MARKER}
    if inside:
        with contextlib.suppress(UserError):  # the lock is damaged: all inputs are kept
            written |= read_lock(root / MARKER).outputs.keys()
    return sorted(path for path in inside if path.as_posix() not in written)


def _members(path: Path) -> set[str] | None:
    """Names of the members of a zip archive; None for another file."""
    try:
        with zipfile.ZipFile(path) as archive:
            return set(archive.namelist())
    except (zipfile.BadZipFile, OSError):
        return None


def _write(root: Path, files: Files) -> None:
    for name in sorted(files):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            file.writelines(files.parts(name))


def _swap(partial: Path, directory: Path) -> None:
    old = directory.with_name(f".{directory.name}{_OLD}{os.getpid()}")
    if directory.exists():
        directory.rename(old)
    try:
        partial.rename(directory)
    except OSError:
        if old.exists():
            old.rename(directory)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _sweep(directory: Path) -> None:
    """Removes remains of killed runs; restores an output that was set aside for one that was never completed."""
    for old in sorted(directory.parent.glob(f".{directory.name}{_OLD}*")):
        if directory.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.rename(directory)
    for partial in directory.parent.glob(f".{directory.name}{_PARTIAL}*"):
        shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Holds an exclusive lock on `directory` itself: runs publish one after the other, and no lock file remains."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _existing_ancestor(path: Path) -> Path:
    path = path.absolute()
    while not os.path.exists(path):
        path = path.parent
    return path


def _refusal(code: str, directory: Path, fact: str, advice: str) -> UserError:
    return UserError(Problem(code, shorten(str(directory)), fact, advice))
