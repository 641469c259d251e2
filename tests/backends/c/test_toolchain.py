"""Compilers found and driven, sizes read from ELF files, and the bound of the stack."""

import ctypes
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from fxpress.backends.c.tools.elf import read_elf
from fxpress.backends.c.tools.simulate import Simulator
from fxpress.backends.c.tools.stack import LIBRARY_STACK_BYTES, worst_case_stack
from fxpress.backends.c.tools.toolchain import (
    SANITIZERS,
    WARNINGS,
    Compiler,
    check_header,
    compile_objects,
    find_compiler,
    find_tool,
    link_image,
    link_program,
    link_shared,
    target_compiler,
)
from fxpress.backends.errors import BuildError, StackError, ToolMissingError
from fxpress.specs import Toolchain, list_targets, load_target

CODE = r"""
#include <stdint.h>
#include <string.h>
int8_t first(const int8_t *x);
int8_t entry(const int8_t *x, int8_t *y);
static const int8_t table[32] = {1, 2, 3, 4, 5};
static int8_t kept[8] = {9};
static int8_t cleared[100];

__attribute__((noinline)) int8_t first(const int8_t *x)
{
    int8_t volatile room[100];
    memcpy((void *)(uintptr_t)room, x, 100);
    return room[7];
}

int8_t entry(const int8_t *x, int8_t *y)
{
    int8_t volatile room[40];
    for (int i = 0; i < 40; i++)
        room[i] = table[i & 31];
    memcpy(y, (const void *)(uintptr_t)room, 40);
    kept[0] = cleared[x[0] & 31];
    cleared[x[2] & 31] = 1;
    return (int8_t)(first(x) + kept[x[1] & 7]);
}
"""


def needs(*names: str) -> pytest.MarkDecorator:
    missing = [name for name in names if shutil.which(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"{', '.join(missing)} is not installed")


def write(folder: Path, code: str) -> Path:
    path = folder / "code.c"
    path.write_text(code)
    return path


@needs("gcc", "nm")
@pytest.mark.parametrize("name", ["gcc", "clang", "cortex-m4f", "riscv32"])
def test_objects_of_every_compiler_are_read_as_nm_reads_them(
    tmp_path: Path, name: str, compiler: Callable[[str], Compiler]
) -> None:
    flags = ("-O2", "-fno-builtin", "-DNDEBUG")
    source = write(
        tmp_path, "extern int outside(int); int inside(int x); int inside(int x) { return outside(x) + 1; }"
    )
    (built,) = compile_objects(compiler(name), [source], tmp_path, flags=flags)
    assert read_elf(built).undefined - {"_GLOBAL_OFFSET_TABLE_"} == {"outside"}
    assert [symbol.name for symbol in read_elf(built).functions] == ["inside"]


@needs("arm-none-eabi-gcc")
def test_the_footprint_separates_code_constants_and_variables(tmp_path: Path) -> None:
    compiler = target_compiler(load_target("cortex-m4f"))
    objects = compile_objects(compiler, [write(tmp_path, CODE)], tmp_path)
    found = read_elf(objects[0]).footprint
    assert (found.constants, found.initialised, found.zeroed) == (32, 8, 100)
    assert 50 < found.code < 300
    assert found.flash == found.code + 32 + 8


@needs("arm-none-eabi-gcc")
@pytest.mark.parametrize("cpu", [name for name in list_targets() if name.startswith("cortex")])
def test_every_core_has_flags_that_its_compiler_takes(tmp_path: Path, cpu: str) -> None:
    compiler = target_compiler(load_target(cpu))
    objects = compile_objects(compiler, [write(tmp_path, CODE)], tmp_path, flags=("-Os", *WARNINGS[:3]))
    assert read_elf(link_image(compiler, objects, tmp_path / "code.elf", keep=["entry"])).address("entry")


@needs("gcc")
def test_a_shared_library_can_be_called_in_process(tmp_path: Path) -> None:
    library = link_shared(
        find_compiler(), [write(tmp_path, CODE)], tmp_path / "code.so", flags=("-O2",)
    )  # fmt: skip
    entry = ctypes.CDLL(str(library)).entry
    entry.restype = ctypes.c_int8
    assert entry(bytes(range(100)), ctypes.create_string_buffer(40)) == 7


@needs("gcc")
def test_sanitizers_stop_a_program_that_reads_past_its_array(tmp_path: Path) -> None:
    code = "int main(int n, char **v) { int a[4] = {0}; (void)v; return a[n + 4]; }"
    program = link_program(
        find_compiler(), [write(tmp_path, code)], tmp_path / "program", flags=("-O1", *SANITIZERS)
    )
    done = subprocess.run([program], capture_output=True, text=True, check=False)
    assert done.returncode != 0 and "out of bounds" in done.stderr


@needs("gcc")
def test_a_compiler_error_carries_command_and_message(tmp_path: Path) -> None:
    source = write(tmp_path, "int f(void) { int x = 1L << 40; return x; }")
    with pytest.raises(BuildError, match=r"(?s)gcc .*-Wconversion.*code\.c:1:\d+: error"):
        compile_objects(find_compiler(), [source], tmp_path, flags=WARNINGS)


@needs("g++")
def test_a_header_must_stand_alone_as_cpp(tmp_path: Path) -> None:
    header = tmp_path / "a.h"
    header.write_text("#include <stdint.h>\nint8_t f(const int8_t *x);\n")
    check_header(find_compiler("g++"), header)
    header.write_text("int8_t f(const int8_t *class);\n")
    with pytest.raises(BuildError, match=r"a\.h:1"):
        check_header(find_compiler("g++"), header)


def test_a_missing_tool_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ToolMissingError, match="apt-get install gcc-arm-none-eabi libnewlib-arm-none-eabi"):
        target_compiler(load_target("cortex-m4f"))
    with pytest.raises(ToolMissingError, match=r"clang\+\+ is not installed; .* apt-get install clang"):
        find_tool("clang++")


def test_the_compiler_of_a_target_is_the_first_of_its_commands_that_is_installed() -> None:
    commands = ("no-such-compiler", "gcc")
    chain = Toolchain(commands=commands, flags=("-O1", "-DBOARD"))
    board = load_target("cortex-m4f").model_copy(update={"name": "board", "toolchain": chain})
    found = target_compiler(board)
    assert (found.name, found.machine) == ("gcc", chain.flags)
    nonsense = board.model_copy(
        update={"toolchain": Toolchain(commands=commands[:1], install="look in the attic")}
    )
    with pytest.raises(
        ToolMissingError,
        match="no-such-compiler is not installed, the compiler for board; look in the attic",
    ):
        target_compiler(nonsense)


def test_a_file_that_is_no_elf_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="not a little-endian ELF file"):
        read_elf(write(tmp_path, "int x;"))


@needs("arm-none-eabi-gcc")
@pytest.mark.parametrize("cpu", ["cortex-m0plus", "cortex-m4f", "cortex-m33"])
def test_the_stack_bound_holds_what_the_simulator_sees(tmp_path: Path, cpu: str) -> None:
    compiler = target_compiler(load_target(cpu))
    objects = compile_objects(compiler, [write(tmp_path, CODE)], tmp_path)
    core = Simulator(
        link_image(compiler, objects, tmp_path / "code.elf", keep=["entry"]), target=load_target(cpu)
    )
    seen = core.call("entry", core.place(bytes(range(100))), core.allocate(40)).stack_bytes
    bound = worst_case_stack(objects, "entry")
    assert seen <= bound <= seen + LIBRARY_STACK_BYTES["memcpy"] + 40


FOLDED = """
#define APART static __attribute__((noinline))
#define REVERSE(name, n) APART void name(volatile int *y) { int a[n]; \\
    for (int i = 0; i < n; i++) a[i] = y[i]; \\
    for (int i = 0; i < n; i++) y[i] = a[n - 1 - i]; }
REVERSE(fill, 40)
REVERSE(same, 40)
REVERSE(deep, 90)
void one(volatile int *y);
void one(volatile int *y) { fill(y); y[0] = 1; }
void two(volatile int *y);
void two(volatile int *y) { same(y); y[0] = 2; }
void big(volatile int *y);
void big(volatile int *y) { deep(y); y[0] = 3; }
"""


@needs("arm-none-eabi-gcc")
def test_a_function_folded_into_an_equal_one_takes_the_frame_of_that_one(tmp_path: Path) -> None:
    compiler = target_compiler(load_target("cortex-m4f"))
    objects = compile_objects(compiler, [write(tmp_path, FOLDED)], tmp_path)
    code = {s.name: (s.section, s.address) for s in read_elf(objects[0]).functions}
    assert code["fill"] == code["same"]
    assert worst_case_stack(objects, "one") == worst_case_stack(objects, "two") >= 160
    assert worst_case_stack(objects, "big") >= 360


LIBRARY = r"""
#include <math.h>
#include <stdint.h>
#include <string.h>
void copy(float *y, const float *x) { memcpy(y, x, 61); }
void fill(float *y, const float *x) { (void)x; memset(y, 3, 61); }
void move(float *y, const float *x) { memmove(y, x, 61); }
void float_divide(float *y, const float *x) { y[0] = x[0] / x[1] + x[2] * x[3] - (float)(int32_t)x[4]; }
void wide(float *y, const float *x) { ((int64_t *)y)[0] = (int64_t)x[0] * (int64_t)x[1] / (int64_t)x[2]; }
void each_exp(float *y, const float *x) { y[0] = expf(x[0]); y[1] = expf(-x[1]); y[2] = expm1f(x[2]); }
void each_tanh(float *y, const float *x) { y[0] = tanhf(x[0]); y[1] = tanhf(-x[1]); }
void each_erf(float *y, const float *x) { for (int i = 0; i < 8; i++) y[i] = erff(x[i]); }
void each_log(float *y, const float *x) { y[0] = logf(x[0]); y[1] = log1pf(x[1]); }
void each_power(float *y, const float *x) { y[0] = powf(x[0], x[1]); y[1] = sqrtf(x[1]); }
void each_round(float *y, const float *x) { y[0] = floorf(x[0]); y[1] = roundf(x[1]); y[2] = truncf(x[2]); }
"""


@needs("arm-none-eabi-gcc")
@pytest.mark.parametrize("cpu", ["cortex-m0plus", "cortex-m3", "cortex-m4f"])
def test_library_functions_stay_within_their_stack_bounds(tmp_path: Path, cpu: str) -> None:
    compiler = target_compiler(load_target(cpu))
    objects = compile_objects(compiler, [write(tmp_path, LIBRARY)], tmp_path, flags=("-O2", "-fno-builtin"))
    names = [symbol.name for symbol in read_elf(objects[0]).functions]
    core = Simulator(
        link_image(compiler, objects, tmp_path / "code.elf", keep=names), target=load_target(cpu)
    )
    x = core.place(
        b"\x00\x00\xa0\x3f" * 4 + b"\x00\x00\x00\x40\x00\x00\xc0\xc0\xcd\xcc\x4c\x3e\x66\x66\x66\x3f" * 3
    )
    for name in names:
        seen = core.call(name, core.allocate(64), x).stack_bytes
        assert seen <= worst_case_stack(objects, name), name


@needs("gcc")
@pytest.mark.parametrize(
    ("code", "message"),
    [
        (
            "int entry(int n); int entry(int n) { return n ? n * entry(n - 1) + 1 : 0; }",
            "recursion through 'entry'",
        ),
        ("int entry(int (*f)(int)); int entry(int (*f)(int)) { return f(1) + 1; }", "through a pointer"),
        (
            "int g(int); int entry(int x); int entry(int x) { return g(x) + 1; }",
            "'g': a function of unknown stack",
        ),
        (
            "int g(int *); int entry(int n); int entry(int n) { int a[n]; return g(a); }",
            "entry: a frame of variable",
        ),
        ("int other(void); int other(void) { return 1; }", "no function 'entry'"),
    ],
)
def test_a_stack_without_a_bound_is_refused(tmp_path: Path, code: str, message: str) -> None:
    objects = compile_objects(find_compiler("gcc"), [write(tmp_path, code)], tmp_path, flags=("-O1",))
    with pytest.raises(StackError, match=message):
        worst_case_stack(objects, "entry")
