"""Worst-case stack of a C function, from the frames and the call graph that GCC writes for its objects.

The bound is the longest path of frames from the function; recursion and calls through pointers have none and are
refused. Pushes of an inline assembly block are not in GCC's frames, but are in the simulator's high-water mark.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from ...errors import StackError
from .elf import read_elf

# Upper bounds for what the compiler and the library bring, which carry no frame sizes of their own: the deepest seen
# over newlib and libgcc for Cortex-M (a test measures them in the simulator), rounded up.
LIBRARY_STACK_BYTES = MappingProxyType({"memcpy": 32, "memset": 32, "memmove": 32})
_HELPER_STACK_BYTES = 96
_MATH_STACK_BYTES = 192
_MATH = frozenset(
    f"{name}{suffix}"
    for name in (
        "acos",
        "acosh",
        "asin",
        "asinh",
        "atan",
        "atan2",
        "atanh",
        "cosh",
        "exp",
        "exp2",
        "expm1",
        "erf",
        "log",
        "log10",
        "log1p",
        "log2",
        "sinh",
        "tan",
        "tanh",
        "sqrt",
        "floor",
        "ceil",
        "round",
        "rint",
        "pow",
        "sin",
    )
    for suffix in ("", "f")
) | {"cosf", "cos", "fabsf", "fmaxf", "fminf", "lroundf", "lrintf", "copysignf", "truncf", "fmodf"}

# Arithmetic of libgcc: on Arm by the names of its run-time interface, else by operation and type.
_HELPER = re.compile(r"__(aeabi|gnu)_\w+|__[a-z]+(si|di|sf|df)(si|di|sf|df)?\d?")

_NODE = re.compile(r'node: \{ title: "([^"]*)" label: "([^"]*)"')
_EDGE = re.compile(r'edge: \{ sourcename: "([^"]*)" targetname: "([^"]*)"')
_FRAME = re.compile(r"\\n(\d+) bytes \((static|dynamic|dynamic,bounded)\)")


@dataclass(frozen=True, slots=True)
class _Calls:
    """Frame bytes of each compiled function, and the call graph."""

    frames: Mapping[str, int]
    callees: Mapping[str, tuple[str, ...]]


def worst_case_stack(objects: Sequence[Path], entry: str) -> int:
    """Upper bound of the stack of a call of `entry` in bytes, return addresses and saved registers included.

    `objects` come from `compile_objects` with a compiler that `reports_stack`.
    """
    calls = _read(objects)
    if entry not in calls.frames:
        raise StackError(f"no function {entry!r} in {', '.join(path.name for path in objects)}")
    return _depth(calls, entry)


def stack_by_function(objects: Sequence[Path]) -> dict[str, int]:
    """The same for every compiled function, by its name in C; the name of a clone has a suffix after a dot."""
    calls = _read(objects)
    return {title.rpartition(":")[2]: _depth(calls, title) for title in calls.frames}


def _read(objects: Sequence[Path]) -> _Calls:
    frames: dict[str, int] = {}
    callees: dict[str, list[str]] = {}
    for path in objects:
        text = path.with_suffix(".ci").read_text()
        for title, label in _NODE.findall(text):
            found = _FRAME.search(label)
            if found is None:
                continue
            if found[2] == "dynamic":
                raise StackError(f"{title}: a frame of variable size (a variable-length array or alloca)")
            frames[title] = int(found[1])
        for caller, callee in _EDGE.findall(text):
            callees.setdefault(caller, []).append(callee)
        for folded, kept in _folded(path, frames, callees):
            frames[folded] = frames[kept]
            callees[folded] = callees.get(kept, [])
    return _Calls(frames, {name: tuple(dict.fromkeys(found)) for name, found in callees.items()})


def _folded(
    path: Path, frames: Mapping[str, int], callees: Mapping[str, Sequence[str]]
) -> Iterator[tuple[str, str]]:
    """Functions of an object that GCC merged with equal ones, each with the function whose code they share."""
    functions = read_elf(path).functions
    code = {symbol.name: (symbol.section, symbol.address) for symbol in functions}
    kept = {code[name]: title for title in frames if (name := title.rpartition(":")[2]) in code}
    for title in {callee for found in callees.values() for callee in found} - frames.keys():
        name = title.rpartition(":")[2]
        if name in code:
            yield title, kept[code[name]]


def _depth(calls: _Calls, entry: str) -> int:
    """Longest path of frames, by a depth-first walk with its own stack (call chains may be long)."""
    done: dict[str, int] = {}
    path: list[str] = [entry]
    while path:
        name = path[-1]
        if name not in calls.frames:
            done[name] = _library(name)
        waiting = [callee for callee in calls.callees.get(name, ()) if callee not in done]
        if name not in done and waiting:
            if waiting[0] in path:
                raise StackError(f"recursion through {waiting[0]!r} has no bound")
            path.append(waiting[0])
            continue
        if name not in done:
            below = max((done[callee] for callee in calls.callees.get(name, ())), default=0)
            done[name] = calls.frames[name] + below
        path.pop()
    return done[entry]


def _library(name: str) -> int:
    if name in LIBRARY_STACK_BYTES:
        return LIBRARY_STACK_BYTES[name]
    if _HELPER.fullmatch(name):
        return _HELPER_STACK_BYTES
    if name in _MATH:
        return _MATH_STACK_BYTES
    if name == "__indirect_call":
        raise StackError("a call through a pointer has no bound")
    raise StackError(f"{name!r}: a function of unknown stack use")
