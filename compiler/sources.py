"""Where things stand in the user's code: of traced nodes and of exceptions, walking outward from torch's own frames."""

from __future__ import annotations

import os
import re
import sysconfig
import traceback
from pathlib import Path

import torch
from torch import fx

from ..ir import Source

_FRAME = re.compile(r'File "([^"\n]+)", line (\d+), in ')
_STANDARD_LIBRARY = sysconfig.get_paths()["stdlib"] + os.sep
_OWN = str(Path(__file__).parent) + os.sep
_TORCH = tuple(str(Path(torch.__file__).parent.parent / name) + os.sep for name in ("torch", "functorch"))


def source_of(node: fx.Node) -> Source:
    """Module path and innermost line outside torch of a traced node; either is empty when it is not known."""
    stack = node.meta.get("nn_module_stack") or {}
    path, _ = next(reversed(stack.values()), ("", None))
    frames = _FRAME.findall(node.meta.get("stack_trace") or "")
    own = [(file, int(line)) for file, line in frames if _is_user_code(file)]
    return Source(re.sub(r"@\d+$", "", path), _shown(*own[-1]) if own else "")


def location_of(error: BaseException) -> str:
    """The user's innermost line that was running inside torch's tracer when `error` was raised, or an empty text."""
    cause: BaseException | None = error
    while cause is not None:
        frames = traceback.extract_tb(cause.__traceback__)
        entered = next((i for i, f in enumerate(frames) if f.filename.startswith(_TORCH)), len(frames))
        own = [f for f in frames[entered:] if _is_user_code(f.filename)]
        if own:
            return _shown(own[-1].filename, own[-1].lineno or 0)
        cause = cause.__cause__ or cause.__context__
    return ""


def _is_user_code(file: str) -> bool:
    if file.startswith("<") or file.startswith((*_TORCH, _OWN)):
        return False
    return not file.startswith(_STANDARD_LIBRARY) or "site-packages" in file


def _shown(file: str, line: int) -> str:
    relative = os.path.relpath(file)
    return f"{file if relative.startswith(os.pardir) else relative}:{line}"
