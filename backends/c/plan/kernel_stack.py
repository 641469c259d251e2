"""Upper bound of the stack of an emitted function: its own frame and the deepest kernel that it calls.

Functions of kernels are not inlined, so that their frames do not add up. `benchmarks/kernel_stack.py --write` measures
them, template by template and form by form, for each kind of core that a preprocessor can distinguish; a margin covers
shapes other than the measured ones.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from enum import Enum
from functools import cache
from math import prod
from pathlib import Path

from ....specs.target import Target
from ..tools.stack import LIBRARY_STACK_BYTES
from .program import Program, Stage, Step

_TABLE = Path(__file__).parents[1] / "cost" / "measured" / "stack.json"
_RUN_STACK_BYTES = 48  # the frame of the function itself, without arguments on the stack
_KEPT_POINTERS = 16  # most inputs and outputs, beyond those in registers, that GCC keeps in the frame
_ROWS_STACK_BYTES = 64  # the frame of a function that runs a stage, without its pointers and counters
_PROGRESS_STACK_BYTES = 56  # a second frame, and the progress without inputs and outputs
_DECODER_STACK_BYTES = 120  # of include/huffman.h
_MARGIN = 8  # the margin is 1 / 8 of a kernel's stack
_UNMEASURED = 1024  # a template without an entry in the table
_TAPS = (25, 16, 9)  # lower limits of the taps of windows that have separate figures
_ALIGNMENT = 8  # of the stack pointer, in the Arm procedure call standard


class CoreKind(Enum):
    """Cores for which compilers make similar frames."""

    ARMV6_M = "armv6-m"
    ARMV7_M = "armv7-m"
    DSP = "dsp"
    DSP_FPU = "dsp fpu"
    RV32 = "rv32"

    @staticmethod
    def of(target: Target) -> CoreKind | None:
        """The kind of a target's core; None for a computer."""
        if "dsp" in target.features:
            return CoreKind.DSP_FPU if "fpu" in target.features else CoreKind.DSP
        return {"armv6-m": CoreKind.ARMV6_M, "rv32imc": CoreKind.RV32, "host": None}.get(
            target.isa, CoreKind.ARMV7_M
        )

    @property
    def condition(self) -> str:
        """Preprocessor condition of this kind of core."""
        return _CONDITIONS[self]


_CONDITIONS = {
    CoreKind.ARMV6_M: "defined(__ARM_ARCH_6M__)",
    CoreKind.ARMV7_M: "defined(__ARM_ARCH_7M__)",
    CoreKind.DSP: "defined(__ARM_FEATURE_DSP) && !defined(__ARM_FP)",
    CoreKind.DSP_FPU: "defined(__ARM_FEATURE_DSP) && defined(__ARM_FP)",
    CoreKind.RV32: "defined(__riscv)",
}


def has_stack_bound(program: Program) -> bool:
    """True if all kernels of a program are measured: those for computers are not."""
    return not any(c.function.template.startswith("host/") for step in program.steps for c in step.calls)


def stack_bytes(program: Program, kind: CoreKind | None, *, regions: int = 1, in_parts: bool = False) -> int:
    """Largest stack in bytes of the emitted function, built with optimization for such a core, or for any.

    The function has a pointer to each of the `regions` of RAM, as do functions that run a stage. With `in_parts` its
    frame has the progress and the arguments of NAME_begin, and it calls NAME_continue.
    """
    if kind is None:
        return max(stack_bytes(program, kind, regions=regions, in_parts=in_parts) for kind in CoreKind)
    calls = [(call, variant(step)) for step in program.steps for call in step.calls]
    kernels = [_kernel_bytes(kind, call.function.template, found) for call, found in calls]
    decoder = _DECODER_STACK_BYTES if any(step.offer.coded for step in program.steps) else 0
    deepest = max([*kernels, decoder, *LIBRARY_STACK_BYTES.values()])
    passed = max(
        (
            len(call.reads) + len(call.writes) + len(call.constants) + len(call.numbers) + call.scratch
            for call, _ in calls
        ),
        default=0,
    )
    arguments = 4 * max(passed - 4, 0)
    rows = max((_rows_bytes(program, stage) for stage in program.stages), default=0)
    kept = 4 * min(max(len(program.inputs) + len(program.outputs) - 4, 0), _KEPT_POINTERS)
    pointers = 4 * (regions - 1)
    own = _RUN_STACK_BYTES + kept + rows + arguments + pointers * (2 if rows else 1)
    if in_parts:
        own += _PROGRESS_STACK_BYTES + 8 * (len(program.inputs) + len(program.outputs)) + 2 * pointers
    return -(-(own + deepest + deepest // _MARGIN) // _ALIGNMENT) * _ALIGNMENT


def _rows_bytes(program: Program, stage: Stage) -> int:
    """Bytes of the frame of a function that runs a stage: a pointer and the counters of each value."""
    calls = [step.rows for step in program.steps[stage.first : stage.stop] if step.rows is not None]
    counters = sum(2 + sum(start is not None for start in rows.starts) for rows in calls)
    return _ROWS_STACK_BYTES + 4 * counters


def variant(step: Step) -> str:
    """Variant of the function of a template: its form, and the number of taps of a window."""
    weights = None if step.node is None else step.node.optional("weight")
    taps = 1 if weights is None else prod(weights.type.shape[2:])
    least = next((least for least in _TAPS if taps > least), 0)
    if weights is None or not least:
        return step.form
    row = " in a row" if taps == max(weights.type.shape[2:]) else ""
    return f"{step.form}, more than {least} taps{row}"


def measured_templates() -> frozenset[str]:
    """The templates in the table."""
    return frozenset(template for templates in _table().values() for template in templates)


def _kernel_bytes(kind: CoreKind, template: str, found: str) -> int:
    """The measured bytes; if there are none, those of the deepest variant, or of that variant on cores of the same
    family.
    """
    variants = _table().get(kind.value, {}).get(template, {})
    family = [other for other in CoreKind if (other is CoreKind.RV32) == (kind is CoreKind.RV32)]
    tables = [_table().get(other.value, {}).get(template, {}) for other in family]
    elsewhere = max((depth for table in tables for depth in table.values()), default=_UNMEASURED)
    return variants.get(found) or max(variants.values(), default=elsewhere)


@cache
def _table() -> Mapping[str, Mapping[str, Mapping[str, int]]]:
    table: dict[str, dict[str, dict[str, int]]] = json.loads(_TABLE.read_text(encoding="utf-8"))
    return table
