"""The reproducer of an internal error: what was run, with which versions and spec, and where it broke."""

from __future__ import annotations

import platform
import shlex
import traceback
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

_TOOLS = ("fxpress", "torch", "numpy", "networkx", "pydantic", "jinja2")
_LONGEST_SPEC = 100_000


def write_reproducer(error: Exception, command: Sequence[str]) -> Path:
    """Write `fxpress-crash.txt` (or a numbered sibling) into the working directory; its path."""
    parts = [
        f"command: {shlex.join([Path(command[0]).name, *command[1:]])}",
        f"python {platform.python_version()}, {platform.system()} {platform.machine()}",
        *(f"{name} {version(name)}" for name in _TOOLS),
        "".join(traceback.format_exception(error)),
        *(f"--- {path}\n{path.read_text(errors='replace')[:_LONGEST_SPEC]}" for path in _specs(command)),
    ]
    path = _free_path()
    path.write_text("\n".join(parts) + "\n")
    return path


def _specs(command: Sequence[str]) -> list[Path]:
    named = [Path(word) for word in command[1:] if word.endswith((".yaml", ".yml", ".json"))]
    return [path for path in named if path.is_file()]


def _free_path() -> Path:
    path, number = Path("fxpress-crash.txt"), 1
    while path.exists():
        path, number = Path(f"fxpress-crash-{number}.txt"), number + 1
    return path
