"""Reproducer of an internal error: the command, versions, the spec, and the traceback."""

from __future__ import annotations

import contextlib
import platform
import shlex
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

from ..specs.section import is_file

_TOOLS = ("fxpress", "torch", "numpy", "networkx", "pydantic", "jinja2")
_LONGEST_SPEC = 100_000


def write_reproducer(error: Exception, command: Sequence[str]) -> str:
    """Writes `fxpress-crash.txt` (or a numbered name), and returns a sentence with its path.

    It is in the working directory, or in the folder for temporary files; if neither can be written, the sentence has
    the content instead.
    """
    parts = [
        f"command: {shlex.join([Path(command[0]).name, *command[1:]])}",
        f"python {platform.python_version()}, {platform.system()} {platform.machine()}",
        *(f"{name} {version(name)}" for name in _TOOLS),
        "".join(traceback.format_exception(error)),
        *_specs(command),
    ]
    content = ("\n".join(parts) + "\n").encode(errors="backslashreplace")
    for folder in _folders():
        with contextlib.suppress(OSError):
            return f"please report it with {_written(folder, content)}"
    return f"please report it with the following\n{content.decode()}"


def _folders() -> Iterator[Path]:
    yield Path()
    with contextlib.suppress(OSError):  # no folder for temporary files either
        yield Path(tempfile.gettempdir())


def _specs(command: Sequence[str]) -> Iterator[str]:
    for word in command[1:]:
        path = Path(word)
        if path.suffix in (".yaml", ".yml", ".json") and is_file(path):
            with contextlib.suppress(OSError):
                yield f"--- {path}\n{path.read_text(errors='replace')[:_LONGEST_SPEC]}"


def _written(folder: Path, content: bytes) -> Path:
    """Writes the file under the first unused name."""
    number = 0
    while True:
        path = folder / (f"fxpress-crash-{number}.txt" if number else "fxpress-crash.txt")
        try:
            with path.open("xb") as file:
                file.write(content)
            return path
        except FileExistsError:
            number += 1
