"""Constants and functions in named sections of the linker."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from fxpress.backends.c.emit import CArtifact, emit
from fxpress.backends.c.tools.elf import read_elf
from fxpress.backends.c.tools.simulate import Simulator
from fxpress.backends.c.tools.toolchain import (
    WARNINGS,
    compile_objects,
    find_compiler,
    link_image,
    link_program,
    target_compiler,
)
from fxpress.backends.c.write.ports import to_memory
from fxpress.backends.errors import BuildError
from fxpress.ir import parse, run_integer
from fxpress.specs import SpecError, load_target
from fxpress.specs.outputs import COutput

NET = """graph(%x: i8[1x3x8x8]<scale=0.1, zero=2>) {
  const %w: i8[8x3x3x3]<scale=0.02, zero=0>
  const %v: i8[10x512]<scale=0.02, zero=0>
  %a: i8[1x8x8x8]<scale=0.2, zero=-5> = conv{padding=(1, 1, 1, 1), clamp=(0.0, inf)}(%x, %w)
  %t: i8[1x8x8x8]<scale=0.0078125, zero=0> = tanh(%a)
  %r: i8[1x512]<scale=0.0078125, zero=0> = reshape{shape=(-1, 512)}(%t)
  %y: i8[1x10]<scale=0.05, zero=0> = linear(%r, %v)
  return y: %y
}"""
PLACED = COutput(name="net", sections={"weights": ".ext_flash", "code": ".itcm"})
SCRIPT = """MEMORY
{
  FLASH (rx)  : ORIGIN = 0x08000000, LENGTH = 1M
  ITCM  (rx)  : ORIGIN = 0x10000000, LENGTH = 64K
  RAM   (rwx) : ORIGIN = 0x20000000, LENGTH = 64K
  EXT   (r)   : ORIGIN = 0x90000000, LENGTH = 8M
}
SECTIONS
{
  .itcm : { *(.itcm) } > ITCM
  .ext_flash : { *(.ext_flash) } > EXT
  .text : { *(.text*) *(.rodata*) } > FLASH
  .data : { *(.data*) *(.bss*) } > RAM
  /DISCARD/ : { *(.comment) *(.eh_frame*) *(.ARM.*) }
}
"""


def sections(file: Path) -> dict[str, int]:
    """Sizes of the sections of an object or image that occupy memory."""
    text = subprocess.run(["readelf", "-SW", file], capture_output=True, text=True, check=True).stdout
    rows = re.findall(r"\] (\S+) +\w+ +[0-9a-f]+ [0-9a-f]+ ([0-9a-f]+) \w+ +W?(?:AX?|A)\w* ", text)
    return {name: int(size, 16) for name, size in rows if int(size, 16)}


def test_a_core_runs_functions_and_reads_constants_where_they_are_placed(fill, draw, tmp_path):
    target = load_target("cortex-m4f")
    if shutil.which(target.toolchain.commands[0]) is None:
        pytest.skip(f"{target.toolchain.commands[0]} is not installed")
    graph = parse(NET, fill=fill)
    artifact = emit(graph, PLACED, target)
    (tmp_path / "board.ld").write_text(SCRIPT)
    compiler = target_compiler(target)
    objects = compile_objects(compiler, artifact.write(tmp_path), tmp_path, flags=WARNINGS)
    image = link_image(
        compiler, objects, tmp_path / "net.elf", keep=["net_run"], script=tmp_path / "board.ld"
    )
    elf = read_elf(image)
    addresses = {s.name: s.address for s in elf.symbols if s.name.startswith("net_") and "." not in s.name}
    assert {array.symbol for array in artifact.source.arrays} < set(addresses)
    for name, address in addresses.items():
        is_array = any(array.symbol == name for array in artifact.source.arrays)
        assert address >> 28 == (0x9 if is_array else 0x1), name
    core = Simulator(image, target=target)
    y, arena = core.allocate(10), core.allocate(artifact.plan.arena_bytes)
    for seed in range(2):
        x = draw(graph.inputs[0], seed)
        place = core.place(to_memory(x, artifact.ports[0].stored).tobytes())
        assert core.call("net_run", place, y, arena).return_value == 0
        assert core.read(y, 10) == run_integer(graph, [x])[0].numpy().tobytes()


@pytest.mark.parametrize(
    "name",
    [
        "cortex-m4f",
        "clang",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("cortex-m0plus", "riscv32", "gcc")),
    ],
)
def test_no_function_or_constant_of_any_operator_is_elsewhere(
    name, integer_operators, cortex_m4, host, tmp_path, compiler
):
    artifact = emit(integer_operators, PLACED, cortex_m4 if name == "cortex-m4f" else host)
    flags = ("-O1", *WARNINGS, "-fno-asynchronous-unwind-tables", "-fno-jump-tables")
    code, weights = compile_objects(compiler(name), artifact.write(tmp_path), tmp_path, flags=flags)
    (found,) = (key for key in sections(code) if not key.startswith((".ARM", ".note", ".rodata", ".srodata")))
    assert found == ".itcm"
    assert [key for key in sections(weights) if not key.startswith((".ARM", ".note"))] == [".ext_flash"]
    constants = sum(array.data.nbytes for array in artifact.source.arrays)
    assert sections(weights)[".ext_flash"] >= constants


def test_the_macros_replace_the_sections(fill, cortex_m4, tmp_path, compiler):
    artifact = emit(parse(NET, fill=fill), PLACED, cortex_m4)
    sources = artifact.write(tmp_path)
    plain = ("-O1", "-DNET_WEIGHTS_SECTION=", "-DNET_CODE_SECTION=", *WARNINGS)
    code, weights = compile_objects(compiler("gcc"), sources, tmp_path, flags=plain)
    assert ".itcm" not in sections(code) and ".ext_flash" not in sections(weights)
    other = ("-O1", '-DNET_WEIGHTS_SECTION=__attribute__((section(".qspi")))')
    _, weights = compile_objects(compiler("gcc"), sources, tmp_path, flags=other)
    assert ".qspi" in sections(weights) and ".ext_flash" not in sections(weights)


def preprocessed(source: Path, *flags: str) -> str:
    done = subprocess.run(["gcc", "-E", "-P", *flags, source], capture_output=True, text=True, check=True)
    return done.stdout


def test_other_compilers_have_their_own_way_or_an_error(fill, cortex_m4, tmp_path, compiler):
    artifact = emit(parse(NET, fill=fill), PLACED, cortex_m4)
    source = artifact.write(tmp_path)[1]
    assert '#pragma location=".ext_flash"\n' in preprocessed(source, "-D__ICCARM__")
    assert "location" not in preprocessed(source, "-D__APPLE__") + preprocessed(source)
    assert "section" not in preprocessed(source, "-D__APPLE__")
    with pytest.raises(BuildError, match="define NET_WEIGHTS_SECTION: what places a definition in"):
        compile_objects(compiler("gcc"), [source], tmp_path, flags=("-U__GNUC__",))


def test_the_self_test_passes_with_sections(fill, cortex_m4, tmp_path, draw):
    graph = parse(NET, fill=fill)
    artifact = emit(graph, PLACED, cortex_m4, vectors=[[draw(v, 1) for v in graph.inputs]])
    sources = [*artifact.write(tmp_path), tmp_path / "net_test.c"]
    flags = ("-O1", "-DNET_TEST_MAIN", *WARNINGS)
    program = link_program(find_compiler("gcc"), sources, tmp_path / "test", flags=flags)
    assert subprocess.run([program], capture_output=True, check=False).returncode == 0


def test_without_sections_nothing_is_written_about_them(fill, cortex_m4):
    def text(artifact: CArtifact) -> str:
        return "".join(artifact.files[name].decode() for name in ("net.c", "net_weights.c"))

    graph = parse(NET, fill=fill)
    assert "SECTION" not in text(emit(graph, COutput(name="net"), cortex_m4))
    code_alone = text(emit(graph, COutput(name="net", sections={"code": ".itcm"}), cortex_m4))
    assert "NET_CODE_SECTION" in code_alone and "NET_WEIGHTS_SECTION" not in code_alone


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ({"weights": ".text"}, ".text is a default section of the compiler"),
        ({"code": ".ext flash"}, "cannot be the name of a section"),
        ({"code": '.a"'}, "cannot be the name of a section"),
        ({"code": ".a", "weights": ".a"}, "constants and functions cannot share the section .a"),
    ],
)
def test_names_that_no_section_can_have_are_refused(chosen, message):
    with pytest.raises(SpecError, match=re.escape(message)):
        COutput(name="net", sections=chosen)


def test_constants_in_a_file_have_no_section():
    with pytest.raises(SpecError, match=r"`sections.weights` needs `weights_file: c`"):
        COutput(name="net", weights_file="binary", sections={"weights": ".ext_flash"})
    assert COutput(name="net", weights_file="binary", sections={"code": ".itcm"}).sections.weights is None


def test_code_in_a_section_reads_constants_from_a_file(fill, cortex_m4, assert_equal_to_interpreter):
    options = COutput(name="net", weights_file="binary", sections={"code": ".itcm"})
    graph = parse(NET, fill=fill)
    assert_equal_to_interpreter(
        graph, options=options, target=cortex_m4, inputs=[[torch.ones(1, 3, 8, 8).char()]]
    )
