"""Emitted C under every compiler: no warning, nothing undefined but memcpy and memset, the stack as stated."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from fxpress.backends.c.emit import emit
from fxpress.backends.c.tools.elf import read_elf
from fxpress.backends.c.tools.stack import worst_case_stack
from fxpress.backends.c.tools.toolchain import (
    SANITIZERS,
    WARNINGS,
    check_header,
    compile_objects,
    find_compiler,
    link_program,
)
from fxpress.ir import parse, verify
from fxpress.specs import list_targets
from fxpress.specs.outputs import COutput

ROOT = Path(__file__).parents[3]
CORES = [name for name in list_targets() if name.startswith("cortex")]
SAMPLED = ("cortex-m0plus", "cortex-m4f")
COMPILERS = [
    "gcc",
    "clang",
    *(pytest.param(name, marks=() if name in SAMPLED else pytest.mark.slow) for name in CORES),
]
STACK_CASES = [
    ("cortex-m0plus", "-O2"),
    pytest.param("cortex-m4f", "-O2", marks=pytest.mark.slow),
    ("cortex-m4f", "-O3"),
    pytest.param("cortex-m33", "-Os", marks=pytest.mark.slow),
]
NET = """
graph(%x: f32[1x3x8x8]) {
  const %w: i8[8x3x3x3]<scale=0.01, zero=0>
  const %d: i8[8x1x3x3]<scale=0.01, zero=0>
  const %p: i8[8x8x1x1]<scale=0.01, zero=0>
  const %l: i8[10x8]<scale=0.01, zero=0>
  %q: i8[1x3x8x8]<scale=0.05, zero=-3> = quantize(%x)
  %c: i8[1x8x8x8]<scale=0.04, zero=-128> = conv{padding=(1, 1, 1, 1), clamp=(0.0, inf)}(%q, %w)
  %e: i8[1x8x8x8]<scale=0.04, zero=-128> = conv{padding=(1, 1, 1, 1), groups=8, clamp=(0.0, inf)}(%c, %d)
  %f: i8[1x8x8x8]<scale=0.04, zero=-1> = conv(%e, %p, none, %c)
  %g: i8[1x8x8x8]<scale=0.04, zero=-1> = tanh(%f)
  %s: i8[1x8x8x8]<scale=0.05, zero=-1> = add(%g, %c)
  %a: i8[1x8x1x1]<scale=0.04, zero=-1> = avg_pool{kernel=(8, 8), stride=(8, 8)}(%s)
  %r: i8[1x8]<scale=0.04, zero=-1> = reshape{shape=(-1, 8)}(%a)
  %y: i8[1x10]<scale=0.1, zero=2> = linear(%r, %l)
  %z: i8[1x10]<scale=0.00390625, zero=-128> = softmax{axis=1}(%y)
  %out: f32[1x10] = dequantize(%z)
  return y: %out
}"""


def self_test(artifact, folder, *flags):
    """The program that runs the artifact's self-test."""
    sources = [*artifact.write(folder), folder / "net_test.c"]
    main = ("-O1", "-DNET_TEST_MAIN", *flags)
    return link_program(find_compiler("gcc"), sources, folder / "self_test", flags=main)


@pytest.mark.parametrize("name", COMPILERS)
def test_every_operator_compiles_without_a_warning(name, operators, cortex_m4, host, tmp_path, compiler):
    target = host if name in ("gcc", "clang", "cortex-m0plus", "cortex-m3") else cortex_m4
    sources = emit(operators, COutput(name="net"), target).write(tmp_path)
    compile_objects(compiler(name), sources, tmp_path, flags=("-O1", *WARNINGS))


@pytest.mark.parametrize("name", ["gcc", "clang"])
def test_no_helper_of_the_source_is_unused(name, operators, host, tmp_path, compiler):
    sources = emit(operators, COutput(name="net"), host).write(tmp_path)
    text = sources[0].read_text()
    sources[0].write_text(text.replace("(always_inline, unused)", "(always_inline)"))
    compile_objects(compiler(name), sources[:1], tmp_path, flags=("-O0", "-Wunused", *WARNINGS))


def test_every_integer_operator_compiles_without_a_c_library(integer_operators, host, tmp_path, compiler):
    sources = emit(integer_operators, COutput(name="net"), host).write(tmp_path)
    riscv = compiler("riscv32")
    compile_objects(riscv, sources, tmp_path, flags=("-O2", *WARNINGS))


@pytest.mark.parametrize(
    "optimization", ["-Os", *(pytest.param(level, marks=pytest.mark.slow) for level in ("-O0", "-O3"))]
)
def test_every_optimization_compiles_without_a_warning(
    optimization, integer_operators, cortex_m4, tmp_path, compiler
):
    sources = emit(integer_operators, COutput(name="net"), cortex_m4).write(tmp_path)
    arm = compiler("cortex-m4f")
    compile_objects(arm, sources, tmp_path, flags=(optimization, *WARNINGS))


@pytest.mark.parametrize("name", ["g++", "clang++"])
def test_the_header_stands_alone_in_cpp(name, operators, host, tmp_path, compiler):
    emit(operators, COutput(name="net"), host).write(tmp_path)
    check_header(compiler(name), tmp_path / "net.h")


@pytest.mark.parametrize("name", ["gcc", "clang"])
def test_an_integer_network_needs_nothing_but_memcpy_and_memset(name, fill, host, tmp_path, compiler):
    sources = emit(verify(parse(NET, fill=fill)), COutput(name="net"), host).write(tmp_path)
    objects = compile_objects(compiler(name), sources, tmp_path, flags=("-O2", "-fno-stack-protector"))
    undefined = {symbol for o in objects for symbol in read_elf(o).undefined}
    assert {s for s in undefined if not s.startswith("net_") and s != "_GLOBAL_OFFSET_TABLE_"} <= {
        "memcpy",
        "memset",
    }


def test_an_integer_network_computes_no_floats(fill, host):
    source = emit(verify(parse(NET, fill=fill)), COutput(name="net"), host).files["net.c"].decode()
    code = re.sub(r"/\*.*?\*/", "", source, flags=re.DOTALL)
    assert not re.search(r"\b(float|double)\b", code)


@pytest.mark.parametrize(("cpu", "optimization"), STACK_CASES)
def test_the_stack_macro_bounds_the_stack(cpu, optimization, operators, cortex_m4, host, tmp_path, compiler):
    artifact = emit(operators, COutput(name="net"), cortex_m4 if cpu != "cortex-m0plus" else host)
    objects = compile_objects(compiler(cpu), artifact.write(tmp_path), tmp_path, flags=(optimization,))
    assert worst_case_stack(objects, "net_run") <= int(artifact.macros["NET_STACK_BYTES"])


def test_the_self_test_passes_under_sanitizers(fill, host, tmp_path, draw):
    graph = verify(parse(NET, fill=fill))
    vectors = [[draw(v, seed) for v in graph.inputs] for seed in range(3)]
    artifact = emit(graph, COutput(name="net"), host, vectors=vectors)
    program = self_test(artifact, tmp_path, *WARNINGS, *SANITIZERS)
    done = subprocess.run([program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "net: 0 of 3 outputs differ\n"), done.stderr


@pytest.mark.parametrize(
    ("given", "outcome"), [("-1.0f", "0 of 1 outputs differ"), ("4.0f", "1 of 1 outputs differ")]
)
def test_a_self_test_expects_what_is_not_finite(given, outcome, host, tmp_path):
    """log2(0) and log2(-1) are -inf and NaN; a network that gives something else there fails."""
    graph = parse("graph(%x: f32[4]) {\n %y: f32[4] = log2(%x)\n return output: %y\n}")
    artifact = emit(graph, COutput(name="net"), host, vectors=[[torch.tensor([0.0, -1.0, 2.0, 8.0])]])
    test = artifact.files["net_test.c"].decode()
    sources = [*artifact.write(tmp_path), tmp_path / "net_test.c"]
    sources[-1].write_text(test.replace("-1.0f", given, 1))
    flags = ("-O1", "-DNET_TEST_MAIN", *WARNINGS, *SANITIZERS)
    program = link_program(find_compiler("gcc"), sources, tmp_path / "self_test", flags=flags)
    done = subprocess.run([program], capture_output=True, text=True, check=False)
    assert done.stdout == f"net: {outcome}\n", done.stderr


@pytest.mark.slow
def test_every_operator_passes_its_self_test_under_sanitizers(operators, cortex_m4, tmp_path, draw):
    vectors = [[draw(v, seed) for v in operators.inputs] for seed in range(2)]
    artifact = emit(operators, COutput(name="net"), cortex_m4, vectors=vectors)
    program = self_test(artifact, tmp_path, *WARNINGS, *SANITIZERS)
    done = subprocess.run([program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_self_test_without_vectors_compiles_without_a_warning(fill, host, tmp_path):
    artifact = emit(verify(parse(NET, fill=fill)), COutput(name="net"), host)
    self_test(artifact, tmp_path, *WARNINGS)
    without = emit(parse(NET, fill=fill), COutput(name="net", self_test=0, package=()), host)
    assert set(without.files) == {"net.h", "net.c", "net_weights.c"}


@pytest.mark.parametrize("buffers", ["caller", "arena"])
def test_firmware_that_compiles_every_file_calls_the_self_test(buffers, fill, host, tmp_path, draw, compiler):
    graph = verify(parse(NET, fill=fill))
    options = COutput(name="net", buffers=buffers)
    artifact = emit(graph, options, host, vectors=[[draw(v, 1) for v in graph.inputs]])
    firmware = tmp_path / "firmware.c"
    firmware.write_text('#include "net.h"\nint main(void) { return net_self_test(); }\n')
    artifact.write(tmp_path)
    text = (tmp_path / "net_test.c").read_text()
    assert "stdio" not in text.partition("#ifdef NET_TEST_MAIN")[0]
    program = link_program(
        compiler("gcc"), sorted(tmp_path.glob("*.c")), tmp_path / "firmware", flags=("-O1", *WARNINGS)
    )
    assert subprocess.run([program], capture_output=True, check=False).returncode == 0
    riscv = compiler("riscv32")
    compile_objects(riscv, sorted(tmp_path.glob("net*.c")), tmp_path, flags=("-O1", *WARNINGS))


def test_cmake_without_a_build_type_optimizes(fill, host, tmp_path, draw):
    if shutil.which("cmake") is None:
        pytest.skip("cmake is not installed")
    graph = verify(parse(NET, fill=fill))
    emit(graph, COutput(name="net"), host, vectors=[[draw(v, 1) for v in graph.inputs]]).write(tmp_path)
    configure = ["cmake", "-S", tmp_path, "-B", tmp_path / "build", "-DCMAKE_EXPORT_COMPILE_COMMANDS=ON"]
    subprocess.run(configure, check=True, capture_output=True)
    commands = json.loads((tmp_path / "build" / "compile_commands.json").read_text())
    assert len(commands) == 4
    assert all("-O3" in command["command"] for command in commands)
    subprocess.run(
        ["cmake", "--build", tmp_path / "build", "--target", "net_test"], check=True, capture_output=True
    )
    assert subprocess.run([tmp_path / "build" / "net_test"], check=False, capture_output=True).returncode == 0


def test_firmware_links_the_self_test_through_cmake(fill, host, tmp_path, draw):
    if shutil.which("cmake") is None:
        pytest.skip("cmake is not installed")
    graph = verify(parse(NET, fill=fill))
    folder = tmp_path / "net"
    folder.mkdir()
    emit(graph, COutput(name="net"), host, vectors=[[draw(v, 1) for v in graph.inputs]]).write(folder)
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.13)\nproject(firmware C)\nadd_subdirectory(net)\n"
        "add_executable(firmware main.c)\ntarget_link_libraries(firmware PRIVATE net_self_test)\n"
    )
    (tmp_path / "main.c").write_text('#include "net.h"\nint main(void) { return net_self_test(); }\n')
    build = tmp_path / "build"
    subprocess.run(["cmake", "-S", tmp_path, "-B", build], check=True, capture_output=True)
    subprocess.run(["cmake", "--build", build], check=True, capture_output=True)
    assert subprocess.run([build / "firmware"], check=False).returncode == 0
    assert not list(build.rglob("net_test"))


ARENAS = {
    "bytes": NET,
    "no bytes": "graph(%x: f32[1x3]) {\n %y: f32[1x3] = relu(%x)\n return y: %y\n}",
    "words of eight bytes": """
graph(%x: i64[1x3]) {
  %a: i64[1x3] = add(%x, %x)
  %b: i64[1x3] = mul(%a, %x)
  %c: i64[1x3] = sub(%b, %a)
  return c: %c
}""",
}


@pytest.mark.parametrize("page", ["README.md", "docs/c.md"])
@pytest.mark.parametrize("case", ARENAS)
def test_the_arena_of_the_documentation_serves_every_network(page, case, fill, host, tmp_path, compiler):
    declared = re.search(r"^static \w+ arena\[(\w+)_ARENA_BYTES.*$", (ROOT / page).read_text(), re.MULTILINE)
    assert declared
    artifact = emit(verify(parse(ARENAS[case], fill=fill)), COutput(name="net"), host)
    assert (case == "no bytes") == (artifact.plan.arena_bytes == 0)
    assert (case == "words of eight bytes") == (artifact.plan.alignment == 8)
    buffers = [f"static {port.c_type} {port.macro.lower()}[{port.type.numel}];" for port in artifact.ports]
    passed = ", ".join([*(port.macro.lower() for port in artifact.ports), "arena"])
    (tmp_path / "main.c").write_text(
        '#include "net.h"\n'
        + declared[0].replace(f"{declared[1]}_", "NET_")
        + "\n"
        + "\n".join(buffers)
        + f"\nint main(void) {{ return net_run({passed}); }}\n"
    )
    sources = [*artifact.write(tmp_path), tmp_path / "main.c"]
    program = link_program(compiler("gcc"), sources, tmp_path / "main", flags=("-O1", *WARNINGS))
    assert subprocess.run([program], check=False).returncode == 0


def test_the_self_test_finds_a_wrong_constant(fill, host, tmp_path, draw, compiler):
    graph = verify(parse(NET, fill=fill))
    artifact = emit(graph, COutput(name="net"), host, vectors=[[draw(v, 1) for v in graph.inputs]])
    sources = [*artifact.write(tmp_path), tmp_path / "net_test.c"]
    weights = tmp_path / "net_weights.c"
    weights.write_text(re.sub(r"(net_bias_\d+\[10\] = \{\n\s*)-?\d+", r"\g<1>2000000", weights.read_text()))
    program = link_program(compiler("gcc"), sources, tmp_path / "self_test", flags=("-O1", "-DNET_TEST_MAIN"))
    assert subprocess.run([program], capture_output=True, check=False).returncode == 1
