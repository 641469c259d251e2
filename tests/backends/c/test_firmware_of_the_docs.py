"""Firmware that is written from docs/c.md alone, on a simulated Cortex-M4."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from torch import Tensor

from fxpress.backends.c.emit import CArtifact, emit
from fxpress.backends.c.tools.elf import read_elf
from fxpress.backends.c.tools.simulate import Simulator
from fxpress.backends.c.tools.toolchain import WARNINGS, compile_objects, link_image, target_compiler
from fxpress.backends.c.write.ports import to_memory
from fxpress.ir import parse, run_integer
from fxpress.specs import Target, TargetChoice, load_target
from fxpress.specs.outputs import COutput

PAGE = (Path(__file__).parents[3] / "docs" / "c.md").read_text(encoding="utf-8")
TARGET = load_target("cortex-m4f")
pytestmark = pytest.mark.skipif(
    shutil.which(TARGET.toolchain.commands[0]) is None, reason="arm-none-eabi-gcc is not installed"
)
NET = """graph(%mfcc: i8[1x3x8x8]<scale=0.1, zero=2>) {
  const %w: i8[8x3x3x3]<scale=0.02, zero=0>
  const %v: i8[10x512]<scale=0.02, zero=0>
  %a: i8[1x8x8x8]<scale=0.2, zero=-5> = conv{padding=(1, 1, 1, 1), clamp=(0.0, inf)}(%mfcc, %w)
  %r: i8[1x512]<scale=0.2, zero=-5> = reshape{shape=(-1, 512)}(%a)
  %y: i8[1x10]<scale=3.0, zero=0> = linear(%r, %v)
  return scores: %y
}"""
MORE = """
  .text : { *(.text*) *(.rodata*) } > FLASH
  .data : { *(.data*) *(.bss*) *(COMMON) } > RAM
  /DISCARD/ : { *(.comment) *(.eh_frame*) *(.ARM.*) }
}"""
BUFFERS = """
static int8_t mfcc[KWS_MFCC_SIZE], scores[KWS_SCORES_SIZE];
static uint64_t arena[KWS_ARENA_BYTES / 8 + 1];
int8_t *given(void) { return mfcc; }
int8_t *found(void) { return scores; }
"""


def section(title: str) -> str:
    """The text of a section of the page."""
    found = re.search(rf"^##+ {title}\n(.*?)^##", PAGE, re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[1]


def block(title: str, language: str) -> str:
    """The first block of a language in a section."""
    found = re.search(rf"^```{language}\n(.*?)^```", section(title), re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[1]


def memories(script: str, ram: str = "0x20000000") -> str:
    """A linker script of the page, completed."""
    script = script.replace("MEMORY\n{", f"MEMORY\n{{\n  RAM (rwx) : ORIGIN = {ram}, LENGTH = 64K")
    return script.rstrip().removesuffix("}") + MORE


def artifact_of(fill, target: Target = TARGET, **options) -> CArtifact:
    return emit(parse(NET, fill=fill), COutput(name="kws", self_test=0, **options), target)


def built(
    artifact: CArtifact,
    firmware: str,
    folder: Path,
    *keep: str,
    objects: tuple[Path, ...] = (),
    script: str | None = None,
) -> Simulator:
    """The firmware with the network, its sections placed as the page does."""
    (folder / "firmware.c").write_text(firmware)
    (folder / "board.ld").write_text(script or memories(block("Sections", "")))
    compiler = target_compiler(TARGET)
    sources = [*artifact.write(folder), folder / "firmware.c"]
    made = compile_objects(compiler, sources, folder, flags=("-O2", *WARNINGS))
    image = link_image(compiler, [*made, *objects], folder / "kws.elf", keep=keep, script=folder / "board.ld")
    return Simulator(image, target=TARGET)


def expected(artifact: CArtifact, x: Tensor) -> tuple[bytes, bytes]:
    """Input and output as they are stored."""
    (y,) = run_integer(artifact.graph, [x])
    given, wanted = (to_memory(t, port.stored) for t, port in zip((x, y), artifact.ports, strict=True))
    return given.tobytes(), wanted.tobytes()


def test_weights_in_external_flash_are_checked_and_read_there(fill, draw, tmp_path):
    artifact = artifact_of(fill, weights_file="binary")
    artifact.write(tmp_path)
    command = block("Weights in a file", "console").replace("\\\n", " ").removeprefix("$ ").split()
    subprocess.run(command, cwd=tmp_path, check=True)
    objects = (tmp_path / "kws_weights_bin.o",)
    keep = ("start", "classify", "_binary_kws_weights_bin_start")
    core = built(artifact, block("Weights in a file", "c"), tmp_path, *keep, objects=objects)
    assert core.call("start").return_value == 0
    given, wanted = expected(artifact, draw(artifact.graph.inputs[0], 3))
    y = core.allocate(len(wanted))
    assert core.call("classify", core.place(given), y).return_value == 0
    assert core.read(y, len(wanted)) == wanted


def test_a_scheduler_runs_the_network_in_parts(fill, draw, tmp_path):
    artifact = artifact_of(fill, execution="parts", sections={"weights": ".ext_flash", "code": ".itcm"})
    snippet = block("Execution in parts", "c").replace("/* scores are complete */", "complete = 1;")
    firmware = f'#include "kws.h"\n{BUFFERS}int complete;\n{snippet}'
    core = built(artifact, firmware, tmp_path, "start_classification", "task", "given", "found")
    elf = read_elf(tmp_path / "kws.elf")
    assert elf.address("kws_continue") < 0x10000 and elf.address(artifact.source.arrays[0].symbol) >> 28 == 9
    given, wanted = expected(artifact, draw(artifact.graph.inputs[0], 3))
    x, y = (core.call(name).return_value for name in ("given", "found"))
    core.write(x, given)
    assert core.call("start_classification").return_value == 0
    calls = 0
    while not core.read(elf.address("complete"), 4)[0]:
        core.call("task")
        calls += 1
    assert calls == int(artifact.macros["KWS_STEPS"]) > 1
    assert core.read(y, len(wanted)) == wanted


def test_the_firmware_has_an_array_for_each_region(fill, draw, tmp_path):
    regions = yaml.safe_load(block("Regions of RAM", "yaml"))["target"]["regions"]
    assert list(regions) == ["dtcm", "psram"]
    target = TargetChoice(regions=regions | {"dtcm": "512 B"}).applied_to(TARGET)
    artifact = artifact_of(fill, target)
    assert all(used.bytes for used in artifact.plan.regions)
    script = memories(block("Regions of RAM", "ld"), ram="0x24000000")
    core = built(artifact, block("Regions of RAM", "c"), tmp_path, "classify", script=script)
    elf = read_elf(tmp_path / "kws.elf")
    assert (elf.address("dtcm") >> 24, elf.address("psram") >> 24) == (0x20, 0x60)
    given, wanted = expected(artifact, draw(artifact.graph.inputs[0], 3))
    y = core.allocate(len(wanted))
    assert core.call("classify", core.place(given), y).return_value == 0
    assert core.read(y, len(wanted)) == wanted
