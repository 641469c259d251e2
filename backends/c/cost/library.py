"""Functions of the C library and of the compiler's runtime that emitted C calls, and their size in flash.

A function is linked with the archive members that it needs in turn, each of them once. The members and their sizes are
measured by `benchmarks/code_size.py --fit`, with newlib and libgcc of arm-none-eabi-gcc and with picolibc and libgcc
of riscv64-unknown-elf-gcc. On a core without an instruction for it the compiler calls the runtime: for every float
operation without a floating-point unit, for some divisions and products of 64 bits.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType

from ..target import Machine
from .constructs import Content, Counts

_TABLE = Path(__file__).parent / "measured" / "library.json"

# Constructs by the functions that replace them, with the names of Arm's runtime ABI and those of libgcc.
_REAL = MappingProxyType(
    {
        "real add": ("__aeabi_fadd", "__addsf3"),
        "real subtract": ("__aeabi_fsub", "__subsf3"),
        "real multiply": ("__aeabi_fmul", "__mulsf3"),
        "real divide": ("__aeabi_fdiv", "__divsf3"),
        "real less": ("__aeabi_fcmplt", "__ltsf2"),
        "real greater": ("__aeabi_fcmpgt", "__gtsf2"),
        "real equal": ("__aeabi_fcmpeq", "__eqsf2"),
        "real unordered": ("__aeabi_fcmpun", "__unordsf2"),
        "to real": ("__aeabi_i2f", "__floatsisf"),
        "to integer": ("__aeabi_f2iz", "__fixsfsi"),
        "wide to real": ("__aeabi_l2f", "__floatdisf"),
        "wide to integer": ("__aeabi_f2lz", "__fixsfdi"),
    }
)
_WIDE = MappingProxyType(
    {name: ("__aeabi_ldivmod", "__divdi3") for name in ("wide divide", "wide divide number")}
)
# ARMv6-M has products and quotients of 32 bits at most: it multiplies, and divides by no power of two, in software.
_SMALL = MappingProxyType(
    {
        "divide": ("__aeabi_idiv",),
        "divide number": ("__aeabi_idiv",),
        "wide multiply": ("__aeabi_lmul",),
        "wide multiply number": ("__aeabi_lmul",),
    }
)


def library_bytes(contents: Iterable[Content], machine: Machine) -> int:
    """Bytes of all library members that functions with these contents are linked with."""
    table = _measured().get(machine.core, {})
    called = {name for content in contents for name in (*content.library, *_runtime(content.counts, machine))}
    members: dict[str, int] = {}
    for name in called & table.keys():
        members.update(table[name])
    return sum(members.values())


def _runtime(counts: Counts, machine: Machine) -> Iterator[str]:
    tables: list[Mapping[str, tuple[str, ...]]] = [_WIDE]
    if not machine.fpu:
        tables.append(_REAL)
    if machine.few_registers:
        tables.append(_SMALL)
    for table in tables:
        for kind, names in table.items():
            if counts.get(kind, 0):
                yield from names
    for name in ("memcpy", "memset"):  # a core without unaligned words calls them for short blocks, too
        if counts.get(f"{name} long 1", 0) and machine.aligned_only:
            yield name


@cache
def _measured() -> dict[str, dict[str, dict[str, int]]]:
    """The linked members, with their bytes, for each core and function."""
    found = json.loads(_TABLE.read_text(encoding="utf-8"))
    return {
        core: {
            name: {m: sizes["members"][m] for m in members} for name, members in sizes["functions"].items()
        }
        for core, sizes in found.items()
    }
