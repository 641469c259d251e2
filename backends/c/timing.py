"""Estimated cycles of Cortex-M code from its executed blocks: each instruction's time, and taken branches.

Zero wait states, no interrupts. Sources: Arm DDI 0439 (Cortex-M4 technical reference manual) table 3-1, and
Arm DDI 0484 (Cortex-M0+) table 3-1. On the M4 a load or store right after another one overlaps with it, a store hides
behind the write buffer, and a taken branch refills the pipeline in two cycles. The M7 issues in pairs and the M33
has no published table, so they have no estimate.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

try:
    import capstone
except ImportError:  # the optional extra `sim`; simulate.Simulator says what to install
    capstone = None

AVAILABLE = capstone is not None
"""Whether the disassembler that `Disassembler` needs is installed."""


@dataclass(frozen=True, slots=True)
class CycleModel:
    """Cycles of the instructions that take other than one, and of what a taken branch adds."""

    load: int
    load_after_access: int
    store: int
    divide: int
    float_divide: int
    float_multiply_add: int
    taken_branch: int


_M4 = CycleModel(
    load=2,
    load_after_access=1,
    store=1,
    divide=7,
    float_divide=14,
    float_multiply_add=3,
    taken_branch=2,
)
_M0PLUS = CycleModel(
    load=2,
    load_after_access=2,
    store=2,
    divide=1,
    float_divide=1,
    float_multiply_add=1,
    taken_branch=1,
)
CYCLE_MODELS = MappingProxyType({"cortex-m0plus": _M0PLUS, "cortex-m3": _M4, "cortex-m4f": _M4})


@dataclass(frozen=True, slots=True)
class Block:
    """Instructions that run one after the other, and their cycles, a taken branch at the end left out."""

    instructions: int
    cycles: int
    ends_in_access: bool


def count_instructions(code: bytes) -> int:
    """Thumb instructions in `code`, which starts at one: 32-bit encodings begin with 0b11101, 0b1111."""
    count = position = 0
    while position < len(code):
        position += 4 if code[position + 1] >> 3 >= 0b11101 else 2
        count += 1
    return count


class Disassembler:
    """Decodes blocks of Thumb code, and times them where the core has a model."""

    def __init__(self, model: CycleModel | None) -> None:
        self._model = model
        self._decoder = capstone.Cs(
            capstone.CS_ARCH_ARM, capstone.CS_MODE_THUMB | capstone.CS_MODE_MCLASS | capstone.CS_MODE_V8
        )
        self._decoder.detail = True

    def bears_any_address(self, code: bytes, address: int) -> bool:
        """Whether the instruction there reads or writes words at odd addresses too; those for several words do not."""
        instruction = next(self._decoder.disasm(code, address, count=1))
        return instruction.insn_name() in _LOADS | _STORES

    def block(self, code: bytes, address: int, *, after_access: bool) -> Block:
        """The block of `code` at `address`; `after_access`: the instruction before it loads or stores."""
        cycles, access = 0, after_access
        for instruction in self._decoder.disasm(code, address):
            if self._model is not None:
                cycles += _cycles(instruction, self._model, after_access=access)
            name = instruction.insn_name()
            access = name in _LOADS or name in _STORES
        return Block(count_instructions(code), cycles, access)


def _cycles(instruction: capstone.CsInsn, model: CycleModel, *, after_access: bool) -> int:
    name = instruction.insn_name()
    if name in _LOADS:
        return model.load_after_access if after_access else model.load
    if name in _STORES:
        return model.store
    if name in _BLOCK_TRANSFERS:
        return 1 + _words(instruction, skip=1)
    if name in _STACK_TRANSFERS:
        return 1 + _words(instruction, skip=0)
    if name in _TWO_WORDS:
        return 3
    if name in _FLOAT_ACCESSES:
        return 2
    if name in _DIVISIONS:
        return model.divide
    if name in _FLOAT_DIVISIONS:
        return model.float_divide
    if name in _FLOAT_MULTIPLY_ADDS:
        return model.float_multiply_add
    return 1


_LOADS = frozenset({"ldr", "ldrb", "ldrh", "ldrsb", "ldrsh"})
_STORES = frozenset({"str", "strb", "strh"})
_BLOCK_TRANSFERS = frozenset({"ldm", "ldmdb", "stm", "stmdb", "vldmia", "vldmdb", "vstmia", "vstmdb"})
_STACK_TRANSFERS = frozenset({"push", "pop", "vpush", "vpop"})
_TWO_WORDS = frozenset({"ldrd", "strd"})
_FLOAT_ACCESSES = frozenset({"vldr", "vstr"})
_DIVISIONS = frozenset({"sdiv", "udiv"})
_FLOAT_DIVISIONS = frozenset({"vdiv", "vsqrt"})
_FLOAT_MULTIPLY_ADDS = frozenset({"vfma", "vfms", "vfnma", "vfnms", "vmla", "vmls", "vnmla", "vnmls"})


def _words(instruction: capstone.CsInsn, *, skip: int) -> int:
    """Words that a transfer of several registers moves; its base register is no part of the list."""
    registers = instruction.operands[skip:]
    return sum(2 if instruction.reg_name(r.reg).startswith("d") else 1 for r in registers)
