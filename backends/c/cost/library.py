"""Functions of the C library and of the compiler's runtime that emitted C calls, and the flash that they take.

A function brings the members of the archives that it needs in turn, each of which is linked once. Which ones those are
and how large they are is measured by `benchmarks/code_size.py --fit` with newlib and libgcc of
arm-none-eabi-gcc. On a core without an instruction for it the compiler calls the runtime: for every float operation
without a floating-point unit, for division and products of 64 bits on ARMv6-M.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from ..target import Machine
from .code_size import Counts

_TABLE = Path(__file__).parent / "measured" / "library.json"
_CALL = re.compile(r"\b([a-z]\w*)\(")
_REAL_ARITHMETIC = ("real add", "real multiply")
_REAL_OPERATIONS = ("__aeabi_fadd", "__aeabi_fsub", "__aeabi_fmul")
_REAL_COMPARISONS = ("__aeabi_fcmplt", "__aeabi_fcmpgt", "__aeabi_fcmpeq", "__aeabi_fcmpun")
_WIDE_QUOTIENT = re.compile(r"int64_t[^;]*[/%]")


def library_bytes(texts: Iterable[tuple[str, Counts]], machine: Machine) -> int:
    """Bytes of all members that functions of these texts bring; the counts are those of `code_size`."""
    table = _measured()[machine.core]
    called = {name for text, counts in texts for name in _called(text, counts, machine)}
    members: dict[str, int] = {}
    for name in called & table.keys():
        members.update(table[name])
    return sum(members.values())


def _called(text: str, counts: Counts, machine: Machine) -> Iterator[str]:
    yield from _CALL.findall(text)
    real = "float" in text
    if real and not machine.fpu:
        if any(counts.get(name, 0) for name in _REAL_ARITHMETIC):
            yield from _REAL_OPERATIONS
        if counts.get("real compare", 0):
            yield from _REAL_COMPARISONS
        if counts.get("real divide", 0):
            yield "__aeabi_fdiv"
        if "(float)" in text:
            yield "__aeabi_i2f"
        if re.search(r"\(u?int\d+_t\)", text):
            yield "__aeabi_f2iz"
    if machine.few_registers:
        if not real and counts.get("divide", 0):
            yield from ("__aeabi_idiv", "__aeabi_uidiv")
        if "int64_t" in text and counts.get("multiply", 0):
            yield "__aeabi_lmul"
    if _WIDE_QUOTIENT.search(text):
        yield "__aeabi_ldivmod"


@cache
def _measured() -> dict[str, dict[str, dict[str, int]]]:
    """For each core and function the members with their bytes."""
    found = json.loads(_TABLE.read_text(encoding="utf-8"))
    return {
        core: {
            name: {m: sizes["members"][m] for m in members} for name, members in sizes["functions"].items()
        }
        for core, sizes in found.items()
    }
