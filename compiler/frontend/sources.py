"""Locations in the user's code of traced nodes and exceptions: the innermost frame outside torch."""

from __future__ import annotations

import os
import re
import sysconfig
import traceback
from dataclasses import replace
from pathlib import Path

import torch
from torch import fx

from ...ir import Graph, Source

_FRAME = re.compile(r'File "([^"\n]+)", line (\d+), in ')
_STANDARD_LIBRARY = sysconfig.get_paths()["stdlib"] + os.sep
_OWN = str(Path(__file__).parents[1]) + os.sep
_TORCH = tuple(str(Path(torch.__file__).parent.parent / name) + os.sep for name in ("torch", "functorch"))


def source_of(node: fx.Node) -> Source:
    """Module path and innermost line outside torch of a traced node; either is empty if unknown."""
    stack = node.meta.get("nn_module_stack") or {}
    path, _ = next(reversed(stack.values()), ("", None))
    frames = _FRAME.findall(node.meta.get("stack_trace") or "")
    own = [(file, int(line)) for file, line in frames if _is_user_code(file)]
    return Source(re.sub(r"@\d+$", "", path), _shown(*own[-1]) if own else "")


def location_of(error: BaseException) -> str:
    """The user's innermost line inside torch's tracer when `error` was raised; empty if there is none."""
    cause: BaseException | None = error
    while cause is not None:
        frames = traceback.extract_tb(cause.__traceback__)
        entered = next((i for i, f in enumerate(frames) if f.filename.startswith(_TORCH)), len(frames))
        own = [f for f in frames[entered:] if _is_user_code(f.filename)]
        if own:
            return _shown(own[-1].filename, own[-1].lineno or 0)
        cause = cause.__cause__ or cause.__context__
    return ""


def user_line(error: BaseException) -> str:
    """The user's innermost line in a traceback, or the line of a syntax error; empty if there is neither."""
    if isinstance(error, SyntaxError) and error.filename and _is_user_code(error.filename):
        return _shown(error.filename, error.lineno or 0)
    own = [f for f in traceback.extract_tb(error.__traceback__) if _is_user_code(f.filename)]
    return _shown(own[-1].filename, own[-1].lineno or 0) if own else ""


def _is_user_code(file: str) -> bool:
    if file.startswith("<") or file.startswith((*_TORCH, _OWN)):
        return False
    return not file.startswith(_STANDARD_LIBRARY) or "site-packages" in file


def _shown(file: str, line: int) -> str:
    relative = os.path.relpath(file)
    return f"{file if relative.startswith(os.pardir) else relative}:{line}"


def portable(graph: Graph, folder: Path) -> Graph:
    """`graph` with locations that are independent of the machine: below `folder`, below site-packages, or by name."""
    nodes = tuple(
        replace(n, source=replace(n.source, location=_portable(n.source.location, folder)))
        for n in graph.nodes
    )
    return replace(graph, nodes=nodes)


def _portable(location: str, folder: Path) -> str:
    file, _, line = location.rpartition(":")
    if not file:
        return location
    path = Path(os.path.abspath(file))
    if path.is_relative_to(folder.absolute()):
        return f"{path.relative_to(folder.absolute()).as_posix()}:{line}"
    below_packages = path.as_posix().rpartition("/site-packages/")[2]
    return f"{below_packages if '/site-packages/' in path.as_posix() else path.name}:{line}"
