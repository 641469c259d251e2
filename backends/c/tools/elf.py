"""Reader of ELF files: segments to load, sections by kind, symbols; 32 and 64 bits, little-endian.

One reader for the objects of all compilers, so that sizes and undefined symbols need no `size` or `nm` per target.
Source: Tool Interface Standard, Executable and Linking Format, version 1.2; the 64-bit extension of the gABI.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ...errors import BuildError

_MAGIC = b"\x7fELF"
_PT_LOAD = 1
_SHT_SYMTAB = 2
_SHT_NOBITS = 8
_SHF_WRITE, _SHF_ALLOC, _SHF_EXECINSTR = 1, 2, 4
_STT_FUNC = 2
_SHN_UNDEF = 0


@dataclass(frozen=True, slots=True)
class Segment:
    """Bytes that a loader stores at `address`; `size` also counts the zeros after them."""

    address: int
    size: int
    data: bytes
    writable: bool


@dataclass(frozen=True, slots=True)
class Symbol:
    """A name with an address (in an object, one within its section); section 0 marks symbols that another object must
    define.
    """

    name: str
    address: int
    size: int
    is_function: bool
    section: int

    @property
    def defined(self) -> bool:
        """True if this file defines it."""
        return self.section != _SHN_UNDEF


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes of an object or image by kind: in flash, and in memory besides the arena."""

    code: int
    constants: int
    initialised: int
    zeroed: int

    @property
    def flash(self) -> int:
        """Code, constants, and the initial values of variables."""
        return self.code + self.constants + self.initialised


@dataclass(frozen=True)
class Elf:
    """ELF file written by a compiler or linker."""

    segments: tuple[Segment, ...]
    symbols: tuple[Symbol, ...]
    footprint: Footprint

    def address(self, name: str) -> int:
        """Address of a defined symbol, without the Thumb bit."""
        for symbol in self.symbols:
            if symbol.name == name and symbol.defined:
                return symbol.address & ~1 if symbol.is_function else symbol.address
        raise KeyError(f"no symbol {name!r}")

    @cached_property
    def functions(self) -> tuple[Symbol, ...]:
        """Defined functions in order of address."""
        found = [s for s in self.symbols if s.is_function and s.defined]
        return tuple(sorted(found, key=lambda s: s.address))

    def function_at(self, address: int) -> Symbol | None:
        """The function that contains the code at `address`."""
        functions = self.functions
        index = bisect_right(functions, address, key=lambda symbol: symbol.address & ~1) - 1
        return functions[index] if index >= 0 else None

    def code(self, address: int, size: int) -> bytes:
        """Bytes of the loaded image at `address`."""
        for segment in self.segments:
            start = address - segment.address
            if 0 <= start < len(segment.data):
                return segment.data[start : start + size]
        raise KeyError(f"nothing is loaded at {address:#x}")

    @property
    def undefined(self) -> frozenset[str]:
        """Names that another object must define."""
        return frozenset(s.name for s in self.symbols if not s.defined and s.name)


def read_elf(path: Path) -> Elf:
    """The file's segments, symbols and sizes."""
    data = path.read_bytes()
    if len(data) < 52 or data[:4] != _MAGIC or data[5] != 1:
        raise BuildError(f"{path}: not a little-endian ELF file")
    form = _ELF64 if data[4] == 2 else _ELF32
    header = struct.unpack_from(form.header, data, 16)
    sections = list(_table(data, form.section, header[5], header[11]))
    return Elf(
        segments=tuple(_segments(data, form, header[4], header[9])),
        symbols=tuple(_symbols(data, form, sections)),
        footprint=_footprint(sections),
    )


@dataclass(frozen=True, slots=True)
class _Form:
    """Struct formats of one word size, and the positions of the fields of a segment and of a symbol in them."""

    header: str
    segment: str
    section: str
    symbol: str
    segment_fields: tuple[int, int, int, int, int]
    symbol_fields: tuple[int, int, int, int, int]


# segment fields: offset, address, file size, memory size, flags; symbol fields: name, value, size, info, section
_ELF32 = _Form("<HHIIIIIHHHHHH", "<8I", "<10I", "<IIIBBH", (1, 2, 4, 5, 6), (0, 1, 2, 3, 5))
_ELF64 = _Form("<HHIQQQIHHHHHH", "<IIQQQQQQ", "<IIQQQQIIQQ", "<IBBHQQ", (2, 3, 5, 6, 1), (0, 4, 5, 1, 3))


def _table(data: bytes, form: str, offset: int, count: int) -> Iterator[tuple[int, ...]]:
    step = struct.calcsize(form)
    for index in range(count):
        yield struct.unpack_from(form, data, offset + index * step)


def _segments(data: bytes, form: _Form, offset: int, count: int) -> Iterator[Segment]:
    for row in _table(data, form.segment, offset, count):
        start, address, file_size, size, flags = (row[field] for field in form.segment_fields)
        if row[0] == _PT_LOAD and size:
            yield Segment(address, size, data[start : start + file_size], bool(flags & 2))


def _symbols(data: bytes, form: _Form, sections: list[tuple[int, ...]]) -> Iterator[Symbol]:
    for section in sections:
        if section[1] != _SHT_SYMTAB:
            continue
        names = sections[section[6]][4]
        count = section[5] // struct.calcsize(form.symbol)
        for row in _table(data, form.symbol, section[4], count):
            name, value, size, info, index = (row[field] for field in form.symbol_fields)
            text = data[names + name : data.index(b"\0", names + name)].decode()
            yield Symbol(text, value, size, info & 15 == _STT_FUNC, index)


def _footprint(sections: list[tuple[int, ...]]) -> Footprint:
    code = constants = initialised = zeroed = 0
    for _, kind, flags, _, _, size, *_ in sections:
        if not flags & _SHF_ALLOC:
            continue
        if kind == _SHT_NOBITS:
            zeroed += size
        elif flags & _SHF_EXECINSTR:
            code += size
        elif flags & _SHF_WRITE:
            initialised += size
        else:
            constants += size
    return Footprint(code, constants, initialised, zeroed)
