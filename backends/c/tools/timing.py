"""Instructions of executed blocks, and their estimated cycles: each instruction's time, and taken branches.

Zero wait states, no interrupts; the times of a core are in its file (`specs/targets/cores`). On the Cortex-M4 a load or
store right after another one overlaps with it, a store hides behind the write buffer, and a taken branch refills the
pipeline in two cycles. The M7 issues in pairs and the M33 has no published table, so they have no estimate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from ....specs.target import Timing

try:
    import capstone
except ImportError:  # the optional extra `sim`; simulate.Simulator has the installation hint
    capstone = None

AVAILABLE = capstone is not None
"""True if the disassembler that `ThumbDecoder` needs is installed."""


@dataclass(frozen=True, slots=True)
class Block:
    """Consecutive instructions, and their cycles without a taken branch at the end."""

    instructions: int
    cycles: int
    ends_in_access: bool


class Decoder(Protocol):
    """Reads the machine code of an instruction set: counts and times blocks, and finds accesses that need alignment."""

    def bears_any_address(self, code: bytes, address: int) -> bool:
        """True if the instruction may read or write words at any address."""
        ...

    def block(self, code: bytes, address: int, *, after_access: bool) -> Block:
        """The block of `code` at `address`; `after_access`: the instruction before it loads or stores."""
        ...


def count_instructions(code: bytes) -> int:
    """Number of Thumb instructions in `code`, which starts at one: 32-bit encodings begin with 0b11101, 0b1111."""
    count = position = 0
    while position < len(code):
        position += 4 if code[position + 1] >> 3 >= 0b11101 else 2
        count += 1
    return count


class RiscVDecoder:
    """Decodes blocks of RISC-V code with compressed instructions; without times."""

    def bears_any_address(self, code: bytes, address: int) -> bool:
        """False: support of unaligned accesses depends on the core."""
        return False

    def block(self, code: bytes, address: int, *, after_access: bool) -> Block:
        """The block: an instruction has four bytes where its lowest two bits are set, else two."""
        count = position = 0
        while position < len(code):
            position += 4 if code[position] & 3 == 3 else 2
            count += 1
        return Block(count, 0, ends_in_access=False)


class ThumbDecoder:
    """Decodes blocks of Thumb code, and times them if the core's times are known."""

    def __init__(self, timing: Timing | None) -> None:
        self._timing = timing
        self._decoder = capstone.Cs(
            capstone.CS_ARCH_ARM, capstone.CS_MODE_THUMB | capstone.CS_MODE_MCLASS | capstone.CS_MODE_V8
        )
        self._decoder.detail = True

    def bears_any_address(self, code: bytes, address: int) -> bool:
        """True if the instruction also reads or writes words at odd addresses; those for several words do not."""
        instruction = next(self._decoder.disasm(code, address, count=1))
        return instruction.insn_name() in _LOADS | _STORES

    def block(self, code: bytes, address: int, *, after_access: bool) -> Block:
        """The block of `code` at `address`; `after_access`: the instruction before it loads or stores."""
        cycles, access = 0, after_access
        for instruction in self._decoder.disasm(code, address):
            if self._timing is not None:
                cycles += _cycles(instruction, self._timing, after_access=access)
            name = instruction.insn_name()
            access = name in _LOADS or name in _STORES
        return Block(count_instructions(code), cycles, access)


def _cycles(instruction: capstone.CsInsn, timing: Timing, *, after_access: bool) -> int:
    name = instruction.insn_name()
    if name in _LOADS:
        return timing.load_after_access if after_access else timing.load
    if name in _STORES:
        return timing.store
    if name in _BLOCK_TRANSFERS:
        return 1 + _words(instruction, skip=1)
    if name in _STACK_TRANSFERS:
        return 1 + _words(instruction, skip=0)
    if name in _TWO_WORDS:
        return 3
    if name in _FLOAT_ACCESSES:
        return 2
    if name in _DIVISIONS:
        return timing.divide
    if name in _MULTIPLY_ADDS:
        return timing.multiply_add
    if name in _LONG_MULTIPLIES:
        return timing.long_multiply
    if name in _LONG_MULTIPLY_ADDS:
        return timing.long_multiply_add
    if name in _FLOAT_DIVISIONS:
        return timing.float_divide
    if name in _FLOAT_MULTIPLY_ADDS:
        return timing.float_multiply_add
    return 1


_LOADS = frozenset({"ldr", "ldrb", "ldrh", "ldrsb", "ldrsh"})
_STORES = frozenset({"str", "strb", "strh"})
_BLOCK_TRANSFERS = frozenset({"ldm", "ldmdb", "stm", "stmdb", "vldmia", "vldmdb", "vstmia", "vstmdb"})
_STACK_TRANSFERS = frozenset({"push", "pop", "vpush", "vpop"})
_TWO_WORDS = frozenset({"ldrd", "strd"})
_FLOAT_ACCESSES = frozenset({"vldr", "vstr"})
_DIVISIONS = frozenset({"sdiv", "udiv"})
_MULTIPLY_ADDS = frozenset({"mla", "mls"})
_LONG_MULTIPLIES = frozenset({"smull", "umull"})
_LONG_MULTIPLY_ADDS = frozenset({"smlal", "umlal"})
_FLOAT_DIVISIONS = frozenset({"vdiv", "vsqrt"})
_FLOAT_MULTIPLY_ADDS = frozenset({"vfma", "vfms", "vfnma", "vfnms", "vmla", "vmls", "vnmla", "vnmls"})


def _words(instruction: capstone.CsInsn, *, skip: int) -> int:
    """Words that a transfer of several registers moves; its base register is not part of the list."""
    registers = instruction.operands[skip:]
    return sum(2 if instruction.reg_name(r.reg).startswith("d") else 1 for r in registers)
