"""Emitted C as a syntax tree: the preprocessor's work, inline assembly as a number of instructions, then pycparser.

The emitted C is C99 with a few macros and GNU assembly, which a parser of standard C does not support: assembly
becomes a call of `fxp_assembly` with the number of its instructions, macros of linkage become storage classes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from pycparser.c_ast import FuncDef
from pycparser.c_parser import CParser, ParseError

from ..target import Machine

ASSEMBLY = "fxp_assembly"
_TYPES = (
    "typedef int int8_t, uint8_t, int16_t, uint16_t, int32_t, uint32_t, int64_t, uint64_t, "
    "size_t, ptrdiff_t, uintptr_t;\n"
)
_COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)
_CONTINUED = re.compile(r"\\\n")
_DIRECTIVE = re.compile(r"^\s*#\s*(if|ifdef|ifndef|elif|else|endif)\b(.*)$")
_MACRO = re.compile(r"^\s*#\s*define (\w+)(?:\(([^)]*)\))?\s*(.*)$")
_STRING = r"\"(?:[^\"\\]|\\.)*\""
_PARENTHESES = r"\((?:[^()]|\([^()]*\))*\)"  # of two levels
_ASSEMBLY_STATEMENT = re.compile(rf"__asm__(?: volatile)?\s*\(((?:[^()\"]|{_STRING}|{_PARENTHESES})*)\)\s*;")
_REGISTER = re.compile(r"\bregister\b|__asm__\(\"\w+\"\)|__attribute__\(\(.*?\)\)|\brestrict\b")
_QUOTED = re.compile(rf"{_STRING}|FXP_\w+(?:\([^()]*\))?")
_OPERANDS = re.compile(r"\s:\s")
_LINKAGE = re.compile(r"\b(FXP_INLINE|FXP_NOINLINE|FXP_NOCLONE|FXP_ONCE)\b")
_KINDS = {
    "FXP_INLINE": "static inline",
    "FXP_NOINLINE": "static",
    "FXP_NOCLONE": "static",
    "FXP_ONCE": "static",
}
_LANES = re.compile(r"^FXP_DEFINE_LANES\((\w+), .*\)$", re.MULTILINE)
_DEFINED_APART = re.compile(r"\b(?:FXP_NOINLINE|FXP_NOCLONE|FXP_ONCE)\b[^;{}()]*?(\w+)\(")


@dataclass(frozen=True, slots=True)
class Preprocessor:
    """Macros that the preprocessor of a core defines: DSP extension, ARMv6-M, fused multiply-add."""

    dsp: bool
    armv6m: bool
    fused: bool = False

    @staticmethod
    def of(machine: Machine) -> Preprocessor:
        """The preprocessor for a machine."""
        return Preprocessor(dsp=machine.dsp, armv6m=machine.few_registers, fused=machine.fpu)

    def _holds(self, condition: str) -> bool:
        if "__ARM_ARCH_6M__" in condition:
            return self.armv6m
        if "__ARM_FEATURE_FMA" in condition:
            return self.fused
        if "__GNUC__" in condition:
            return True
        return ("FXP_DSP" in condition or "__ARM_FEATURE_DSP" in condition) and self.dsp

    def lines(self, text: str) -> list[str]:
        """The lines that are compiled, and definitions of macros; without comments and other directives."""
        kept: list[str] = []
        taken: list[tuple[bool, bool]] = []  # by open conditional: this branch is taken; an earlier one was
        for line in _CONTINUED.sub(" ", _COMMENT.sub("", text)).splitlines():
            found = _DIRECTIVE.match(line)
            if found is None:
                if all(now for now, _ in taken):
                    kept.append(line)
            elif found[1] in ("if", "ifdef", "ifndef"):
                now = found[1] == "ifndef" or self._holds(found[2])
                taken.append((now, now))
            elif found[1] == "endif":
                taken.pop()
            else:
                _, before = taken.pop()
                now = not before and (found[1] == "else" or self._holds(found[2]))
                taken.append((now, before or now))
        return kept


@dataclass(frozen=True)
class Definitions:
    """Functions of a text by name; those in `apart` are never inlined. `macros` are those of assembly."""

    functions: Mapping[str, FuncDef]
    apart: frozenset[str]
    macros: Mapping[str, str]


@lru_cache(maxsize=4096)
def definitions(
    text: str, preprocessor: Preprocessor, macros: tuple[tuple[str, str], ...] = ()
) -> Definitions | None:
    """The functions that a text defines; None if the parser does not support it."""
    known = dict(macros)
    code = []
    for line in preprocessor.lines(text):
        found = _MACRO.match(line)
        if found is not None:
            known.setdefault(found[1], found[3])
        elif not line.lstrip().startswith("#"):
            code.append(line)
    joined = _REGISTER.sub("", "\n".join(code))
    apart = frozenset(_DEFINED_APART.findall(joined))
    joined = _LANES.sub(
        r"static inline int32_t \1(uint32_t a, uint32_t b, int32_t acc) { fxp_assembly(1); return acc; }"
        if preprocessor.dsp
        else r"static inline int32_t \1(uint32_t a, uint32_t b, int32_t acc)"
        r" { return acc + (int16_t)(a >> 16) * (int16_t)b; }",
        joined,
    )
    joined = _ASSEMBLY_STATEMENT.sub(lambda m: f"{ASSEMBLY}({_instructions(m[1], known)});", joined)
    joined = _LINKAGE.sub(lambda m: _KINDS[m[1]], joined)
    try:
        tree = CParser().parse(_TYPES + joined)
    except ParseError:
        return None
    functions = {node.decl.name: node for node in tree.ext if isinstance(node, FuncDef)}
    return Definitions(functions, apart, known)


def _instructions(assembly: str, macros: Mapping[str, str]) -> int:
    """Instructions of an assembly statement, macros expanded."""
    return _template_instructions(_OPERANDS.split(assembly, maxsplit=1)[0], macros)


def _template_instructions(text: str, macros: Mapping[str, str]) -> int:
    count, pending = 0, ""
    for found in _QUOTED.findall(text):
        if found.startswith('"'):
            pending += found[1:-1]
        else:
            name, _, argument = found.partition("(")
            count += _template_instructions(macros.get(name, ""), macros)
            count += (
                _template_instructions(argument, macros) if '"ld' in argument or '"and' in argument else 0
            )
    parts = re.split(r"\\n\\t|\\n|;", pending)
    return count + sum(bool(part.strip()) and not part.strip().endswith(":") for part in parts)
