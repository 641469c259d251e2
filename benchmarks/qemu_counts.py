"""Instructions of an emitted network on a Cortex-M55, in QEMU: Unicorn has no model of that core.

QEMU counts instructions as time (`-icount`): a timer of the board that is read after each step (`FXP_TRACE`) gives
the instructions between two steps, to within a few. The instructions of the reading are measured and subtracted.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from torch import Tensor

from fxpress.backends.c import CArtifact
from fxpress.backends.c.tools import compile_objects, find_compiler, target_compiler
from fxpress.specs import Target

BOARD = ("-M", "mps3-an547", "-cpu", "cortex-m55")
_SHIFT = 4  # an instruction takes 16 ns of the board's time
_CLOCK_HZ = 32_000_000
_PER_TICK = 1e9 / _CLOCK_HZ / (1 << _SHIFT)
_SECONDS = 600
_ALIGNED = "__attribute__((aligned(16)))"

_HEADER = """#define FXP_TRACE(step, data, bytes) fxp_mark(step)
void fxp_mark(int step);
"""
_LINKER_SCRIPT = """ENTRY(reset)
MEMORY { VECTORS (rx) : ORIGIN = 0x00000000, LENGTH = 512K
         FLASH (rx) : ORIGIN = 0x01000000, LENGTH = 2M
         RAM (rwx) : ORIGIN = 0x21000000, LENGTH = 4M }
SECTIONS {
  .vectors : { KEEP(*(.vectors)) } > VECTORS
  .text : { *(.text*) } > FLASH
  .rodata : ALIGN(16) { *(.rodata*) } > FLASH
  .ARM.exidx : { *(.ARM.exidx*) *(.ARM.extab*) } > FLASH
  .data : ALIGN(16) { *(.data*) } > RAM
  .bss (NOLOAD) : ALIGN(16) { *(.bss*) *(COMMON) } > RAM
  /DISCARD/ : { *(.comment) *(.eh_frame*) }
}
"""
_MAIN = """#include <stdint.h>
#include <string.h>
#include "{name}.h"

#define REGISTER(address) (*(volatile uint32_t *)(address))
enum {{ MARKS = {marks} }};

static unsigned char arena[{arena} + 16] __attribute__((aligned(16)));
{buffers}
static uint32_t ticks[MARKS];
static int steps[MARKS];
static int marks;

void fxp_mark(int step)
{{
    if (marks < MARKS) {{
        steps[marks] = step;
        ticks[marks++] = REGISTER(0xE000E018u);
    }}
}}

static int call(int operation, const void *argument)
{{
    register int r0 __asm__("r0") = operation;
    register const void *r1 __asm__("r1") = argument;
    __asm__ volatile("bkpt 0xab" : "+r"(r0) : "r"(r1) : "memory");
    return r0;
}}

static void print(int64_t value, char end)
{{
    char text[24];
    int at = 23;
    text[at] = 0;
    text[--at] = end;
    uint64_t rest = (uint64_t)(value < 0 ? -value : value);
    do {{
        text[--at] = (char)('0' + rest % 10u);
        rest /= 10u;
    }} while (rest != 0u);
    if (value < 0) {{
        text[--at] = '-';
    }}
    (void)call(4, &text[at]);
}}

static void leave(int code)
{{
    const uint32_t arguments[2] = {{0x20026u, (uint32_t)code}};
    (void)call(0x20, arguments);
    for (;;) {{
    }}
}}

static void fault(void)
{{
    leave(3);
}}

void reset(void)
{{
    REGISTER(0xE000ED88u) |= 0xFu << 20; /* CPACR: float and vector unit */
    REGISTER(0xE000ED14u) |= 1u << 19;   /* CCR.LOB: low-overhead loops */
    __asm__ volatile("dsb\\n\\tisb");
    REGISTER(0xE000E014u) = 0xFFFFFFu; /* SysTick counts down at the processor's clock */
    REGISTER(0xE000E018u) = 0u;
    REGISTER(0xE000E010u) = 5u;
{placed}
    fxp_mark(-2);
    fxp_mark(-1);
    const int status = {name}_run({arguments});
    fxp_mark(1000000);
    for (int i = 0; i < marks; i++) {{
        print(steps[i], ' ');
        print(ticks[i], '\\n');
    }}
    leave(status);
}}

__attribute__((section(".vectors"), used)) const void *const vectors[16] = {{
    (const void *)0x21400000, reset, fault, fault, fault, fault, fault, fault, 0, 0, 0, fault, fault, 0, fault, fault}};
"""


@dataclass(frozen=True, slots=True)
class QemuCounts:
    """Instructions of a run, and between the marks of its steps, by number of the mark."""

    instructions: int
    marks: tuple[int, ...]


def count(
    artifact: CArtifact, target: Target, inputs: Sequence[Tensor], *, flags: Sequence[str] = ()
) -> QemuCounts:
    """Instructions of one run on these inputs."""
    with tempfile.TemporaryDirectory(prefix="fxpress-qemu-") as directory:
        folder = Path(directory)
        sources = artifact.write(folder)
        (folder / "mark.h").write_text(_HEADER)
        (folder / "board.ld").write_text(_LINKER_SCRIPT)
        (folder / "board.c").write_text(_main(artifact, inputs))
        compiler = target_compiler(target)
        objects = compile_objects(compiler, sources, folder, flags=("-include", f"{folder}/mark.h", *flags))
        board = compile_objects(compiler, [folder / "board.c"], folder, flags=("-std=gnu99", "-O2"))
        image = folder / "board.elf"
        link = ("-nostartfiles", "-T", f"{folder}/board.ld", "-Wl,--gc-sections")
        command = [
            str(compiler.program),
            *compiler.machine,
            *link,
            *map(str, (*objects, *board)),
            "-o",
            str(image),
            "-lm",
        ]
        subprocess.run(command, check=True)
        return _counts(_ticks(image))


def _main(artifact: CArtifact, inputs: Sequence[Tensor]) -> str:
    """The program that copies the inputs to their places, runs the network and prints the marks."""
    given = iter(inputs)
    buffers, placed, arguments = [], [], []
    for number, port in enumerate(artifact.ports):
        at = f"buffer_{number}" if port.offset is None else f"&arena[{port.offset}]"
        if port.offset is None:
            arguments.append(f"(void *){at}")
            buffers.append(f"static unsigned char {at}[{port.stored.bytes}] {_ALIGNED};")
        if port.is_input:
            data = next(given).permute(port.stored.layout.order).contiguous().numpy().tobytes()
            buffers.append(f"static const unsigned char input_{number}[] = {{{','.join(map(str, data))}}};")
            placed.append(f"    memcpy({at}, input_{number}, sizeof input_{number});")
    return _MAIN.format(
        name=artifact.name,
        marks=len(artifact.source.trace) + 3,
        arena=artifact.plan.arena_bytes,
        buffers="\n".join(buffers),
        placed="\n".join(placed),
        arguments=", ".join([*arguments, "arena"]),
    )


def _ticks(image: Path) -> list[tuple[int, int]]:
    """Steps and readings of the timer, in order."""
    semihosting = ("-semihosting-config", "enable=on,target=native")
    command = [
        str(find_compiler("qemu-system-arm").program),
        *BOARD,
        "-nographic",
        "-monitor",
        "none",
        "-serial",
        "none",
    ]
    command += [*semihosting, "-icount", f"shift={_SHIFT}", "-kernel", str(image)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=True)
    lines = (done.stdout + done.stderr).split("\n")
    return [(int(step), int(ticks)) for step, ticks in (line.split() for line in lines if line)]


def _counts(ticks: Sequence[tuple[int, int]]) -> QemuCounts:
    """Differences of readings, as instructions; the timer counts down, 24 bits wide."""
    spans = [(before - after) % (1 << 24) for (_, before), (_, after) in pairwise(ticks)]
    reading, *steps = spans
    instructions = [round((span - reading) * _PER_TICK) for span in steps]
    return QemuCounts(sum(instructions), tuple(instructions[:-1]))
