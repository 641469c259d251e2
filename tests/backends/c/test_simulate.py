"""The simulated Cortex-M against Python's integers, against QEMU, and against code that misbehaves."""

import os
import random
import shutil
import struct
import subprocess
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from fxpress.backends.c.tools.simulate import SimulatedModel, Simulator
from fxpress.backends.c.tools.toolchain import compile_objects, link_image, target_compiler
from fxpress.backends.errors import SimulationError
from fxpress.specs import load_target

pytestmark = pytest.mark.skipif(
    shutil.which("arm-none-eabi-gcc") is None, reason="arm-none-eabi-gcc is not installed"
)

MEASURE = Path(os.environ.get("FXPRESS_SHARED", Path(__file__).parents[4] / "shared")) / "measure"
CPUS = ("cortex-m0plus", "cortex-m3", "cortex-m4f", "cortex-m7", "cortex-m33")
DSP_CPUS = ("cortex-m4f", "cortex-m7", "cortex-m33")
FPU_CPUS = DSP_CPUS

Build = Callable[..., Simulator]

CODE = r"""
#include <stdint.h>
#include <string.h>

void loop(int n) { __asm__ volatile(".align 3\n1: sub %0, #1\n cmp %0, #0\n bne 1b\n" : "+l"(n) : : "cc"); }

int sum(const int8_t *x, int n) { int s = 0; for (int i = 0; i < n; i++) s += x[i]; return s; }

int copy(int8_t *to, const int8_t *from, int n) { memcpy(to, from, (unsigned)n); return n; }

int fifth(int a, int b, int c, int d, int e) { return a + 2 * b + 3 * c + 4 * d + 5 * e; }

__attribute__((noinline)) int deep(int n)
{
    volatile int8_t room[64];
    for (int i = 0; i < 64; i++) room[i] = (int8_t)n;
    return n ? deep(n - 1) + room[n & 63] : 0;
}

void spin(void) { for (;;) __asm__ volatile(""); }

void trap(void) { __asm__ volatile("udf #0"); }

const int8_t constants[4] = {1, 2, 3, 4};

void spoil(void) { *(volatile int8_t *)(uintptr_t)constants = 9; }

__attribute__((noinline)) int32_t first(const int8_t *x) { return sum(x, 8); }

__attribute__((noinline)) int32_t second(const int8_t *x) { return 2 * sum(x, 32); }

int model_run(const int8_t *x, int8_t *y, void *arena)
{
    int32_t *scratch = arena;
    scratch[0] = first(x);
    scratch[1] = second(x);
    y[0] = (int8_t)(scratch[0] + scratch[1]);
    return 0;
}

int failing_run(const int8_t *x, int8_t *y, void *arena) { (void)arena; y[0] = x[0]; return 7; }
"""
FUNCTIONS = (
    "loop", "sum", "copy", "fifth", "deep", "spin", "trap", "spoil", "model_run", "failing_run"
)  # fmt: skip


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Build:
    def simulator(code: str, cpu: str, *keep: str, strict_alignment: bool = False) -> Simulator:
        folder = tmp_path_factory.mktemp(cpu)
        source = folder / "code.c"
        source.write_text(code)
        compiler = target_compiler(load_target(cpu))
        objects = compile_objects(compiler, [source], folder, flags=("-O1", "-std=gnu99"))
        image = link_image(compiler, objects, folder / "code.elf", keep=keep)
        return Simulator(image, target=load_target(cpu), strict_alignment=strict_alignment)

    return simulator


@pytest.fixture(scope="module", params=CPUS)
def core(request: pytest.FixtureRequest, build: Build) -> Simulator:
    return build(CODE, request.param, *FUNCTIONS)


@pytest.fixture(scope="module")
def m4(build: Build) -> Simulator:
    return build(CODE, "cortex-m4f", *FUNCTIONS)


def test_arguments_beyond_the_fourth_are_passed_on_the_stack(core: Simulator) -> None:
    assert core.call("fifth", 1, 2, 3, 4, 5).return_value == 1 + 4 + 9 + 16 + 25


def test_results_are_signed(core: Simulator) -> None:
    x = core.place(bytes([255, 254, 1]))
    assert core.call("sum", x, 3).return_value == -2


@pytest.mark.parametrize("n", [1, 10, 12345])
def test_a_loop_of_three_instructions_counts_three_a_turn(core: Simulator, n: int) -> None:
    assert core.profile("loop", n).instructions == 3 * n + 1


def test_a_profile_counts_what_was_called_before_uncounted(m4: Simulator) -> None:
    for _ in range(2):
        m4.call("loop", 100)
        assert m4.profile("loop", 100).instructions == 301


def test_cycles_of_the_m4_add_a_refill_of_two_for_each_taken_branch(m4: Simulator) -> None:
    profile = m4.profile("loop", 100)
    taken = 99 + 1  # the loop's turns but the last, and the return
    assert profile.cycles == profile.instructions + 2 * taken


PRODUCTS = """
#include <stdint.h>
int plain(int a, int b) { __asm__ volatile("mul %0, %0, %1" : "+r"(a) : "r"(b)); return a; }
int add(int a, int b) { __asm__ volatile("mla %0, %0, %1, %1" : "+r"(a) : "r"(b)); return a; }
int wide(int a, int b) { int c; __asm__ volatile("smull %0, %1, %1, %2" : "=&r"(c), "+r"(a) : "r"(b)); return a; }
"""


def test_products_of_the_m3_take_more_cycles_than_those_of_the_m4(build: Build) -> None:
    names = ("plain", "add", "wide")
    more = {}
    for cpu in ("cortex-m3", "cortex-m4f"):
        core = build(PRODUCTS, cpu, *names)
        profiles = [core.profile(name, 3, 5) for name in names]
        more[cpu] = [p.cycles - p.instructions - 2 for p in profiles if p.cycles is not None]  # 2: the return
    assert more == {"cortex-m3": [0, 1, 3], "cortex-m4f": [0, 0, 0]}


def test_cores_without_published_timing_have_no_cycles(build: Build) -> None:
    profile = build(CODE, "cortex-m7", "loop").profile("loop", 3)
    assert profile.cycles is None and profile.functions[0].cycles is None


def test_the_cost_is_split_by_function_and_by_call_of_the_entry(m4: Simulator) -> None:
    x, y, arena = m4.place(bytes(32)), m4.allocate(1), m4.allocate(8)
    profile = m4.profile("model_run", x, y, arena)
    by_function = {cost.name: cost.instructions for cost in profile.functions}
    assert by_function.keys() == {"model_run", "first", "second", "sum"}
    assert sum(by_function.values()) == profile.instructions
    assert [cost.name for cost in profile.calls] == ["first", "second"]
    called = sum(cost.instructions for cost in profile.calls)
    assert called == profile.instructions - by_function["model_run"]
    assert profile.calls[1].instructions > 2 * profile.calls[0].instructions


def test_the_stack_mark_grows_with_each_frame(core: Simulator) -> None:
    one, two = (core.call("deep", n).stack_bytes for n in (1, 2))
    assert 64 <= two - one <= 128
    assert core.call("deep", 10).stack_bytes == one + 9 * (two - one)


@pytest.mark.parametrize(
    ("function", "words", "message"),
    [
        ("copy", ("small", "large", 65), r"copy: write of .* outside of the given buffers, in memcpy"),
        ("sum", ("small", 65), r"sum: read of 1 bytes at 0x[0-9a-f]{8}, outside .* in sum\+"),
        ("sum", (0, 1), r"sum: read of 1 bytes at 0x00000000, outside"),
        ("spoil", (), r"spoil: write to a constant of 1 bytes at 0x08"),
        ("deep", (5000,), r"deep: write of .* outside of the given buffers, in deep\+"),
        ("trap", (), r"trap: .* in trap"),
    ],
)
def test_misbehaving_code_is_a_clear_error(
    core: Simulator, function: str, words: tuple[object, ...], message: str
) -> None:
    buffers = {"small": core.place(bytes(64)), "large": core.place(bytes(128))}
    arguments = [word if isinstance(word, int) else buffers[str(word)] for word in words]
    with pytest.raises(SimulationError, match=message):
        core.call(function, *arguments)
    assert core.call("fifth", 0, 0, 0, 0, 1).return_value == 5  # the core is usable again


WORDS = r"""
#include <stdint.h>
#define FUNCTION(name, text) uint32_t name(const uint32_t *p) \
    { uint32_t r; __asm__ volatile(text : "=r"(r) : "r"(p) : "r2", "r3", "s0", "s1", "memory"); return r; }
FUNCTION(one, "ldr %0, [%1]")
FUNCTION(half, "ldrh %0, [%1, #1]")
FUNCTION(several, "nop\n ldm %1, {r2, r3}\n mov %0, r3")
FUNCTION(two, "ldrd r2, r3, [%1]\n mov %0, r3")
FUNCTION(real, "vldr s0, [%1]\n vmov %0, s0")
FUNCTION(stored, "nop\n nop\n stm %1, {r2, r3}\n mov %0, r3")
"""


@pytest.mark.parametrize("cpu", FPU_CPUS)
def test_several_words_must_lie_aligned_where_that_is_looked_at(build: Build, cpu: str) -> None:
    names = ("one", "half", "several", "two", "real", "stored")
    core = build(WORDS, cpu, *names, strict_alignment=True)
    buffer = core.allocate(64)
    for name in names:
        core.call(name, buffer + 4)
    for name in names[:2]:
        core.call(name, buffer + 2)
    for name in names[2:]:
        with pytest.raises(
            SimulationError, match=rf"{name}: several words or a float at 0x\w+2, .* in {name}\+0x"
        ):
            core.call(name, buffer + 2)


def test_a_function_that_does_not_return_is_stopped(m4: Simulator) -> None:
    with pytest.raises(SimulationError, match=r"spin: no return within 0\.2 s, in spin\+"):
        m4.call("spin", timeout_s=0.2)


def test_a_missing_function_is_named(m4: Simulator) -> None:
    with pytest.raises(SimulationError, match="no function 'kws_run'"):
        m4.call("kws_run")


def test_a_target_that_cannot_be_simulated_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SimulationError, match="the target cortex-m55 has no simulator"):
        Simulator(tmp_path / "none.elf", target=load_target("cortex-m55"))
    nonsense = load_target("cortex-m4f").model_copy(update={"simulator": "UC_CPU_ARM_CORTEX_M9"})
    with pytest.raises(SimulationError, match="names an unknown simulator: UC_CPU_ARM_CORTEX_M9"):
        Simulator(tmp_path / "none.elf", target=nonsense)


def test_a_model_runs_on_bytes(core: Simulator) -> None:
    model = SimulatedModel(core, "model_run", input_bytes=[32], output_bytes=[1], regions={"arena": 8})
    assert model.run([bytes([1] * 32)]) == [bytes([8 + 64])]
    assert model.run([bytes([255] * 32)]) == [struct.pack("b", -72)]
    assert model.profile([bytes(32)]).instructions > 100
    assert 0 < model.stack_bytes <= 64


def test_a_model_whose_arena_is_too_small_faults(core: Simulator) -> None:
    model = SimulatedModel(core, "model_run", input_bytes=[32], output_bytes=[1], regions={"arena": 0})
    with pytest.raises(SimulationError, match="write of 4 bytes at 0x00000000"):
        model.run([bytes(32)])


def test_a_model_that_reports_failure_is_an_error(core: Simulator) -> None:
    model = SimulatedModel(core, "failing_run", input_bytes=[1], output_bytes=[1], regions={"arena": 0})
    with pytest.raises(SimulationError, match="failing_run: returned 7, not 0"):
        model.run([bytes(1)])


def signed(word: int, bits: int = 32) -> int:
    word &= (1 << bits) - 1
    return word - (1 << bits) if word >> (bits - 1) else word


def lanes(word: int, bits: int) -> list[int]:
    return [signed(word >> shift, bits) for shift in range(0, 32, bits)]


def saturate(value: int, bits: int) -> int:
    return max(-(1 << (bits - 1)), min((1 << (bits - 1)) - 1, value))


def pair(low: int, high: int) -> int:
    return signed((low & 0xFFFF) | (high & 0xFFFF) << 16)


INSTRUCTIONS: dict[str, tuple[str, Callable[[int, int, int], int]]] = {
    "smmlar": (
        "smmlar %0, %1, %2, %3",
        lambda a, b, c: signed((signed(a) * signed(b) + (signed(c) << 32) + (1 << 31)) >> 32),
    ),
    "smmul": ("smmulr %0, %1, %2", lambda a, b, c: signed((signed(a) * signed(b) + (1 << 31)) >> 32)),
    "ssat8": ("ssat %0, #8, %1", lambda a, b, c: saturate(signed(a), 8)),
    "ssat8_shifted": ("ssat %0, #8, %1, asr #9", lambda a, b, c: saturate(signed(a) >> 9, 8)),
    "usat8": ("usat %0, #8, %1", lambda a, b, c: max(0, min(255, signed(a)))),
    "ssat16": ("ssat16 %0, #8, %1", lambda a, b, c: pair(*(saturate(v, 8) for v in lanes(a, 16)))),
    "sxtb16": ("sxtb16 %0, %1", lambda a, b, c: pair(lanes(a, 8)[0], lanes(a, 8)[2])),
    "sxtb16_ror8": ("sxtb16 %0, %1, ror #8", lambda a, b, c: pair(lanes(a, 8)[1], lanes(a, 8)[3])),
    "sxtab16": (
        "sxtab16 %0, %1, %2",
        lambda a, b, c: pair(lanes(a, 16)[0] + lanes(b, 8)[0], lanes(a, 16)[1] + lanes(b, 8)[2]),
    ),
    "smlad": (
        "smlad %0, %1, %2, %3",
        lambda a, b, c: signed(c + sum(x * y for x, y in zip(lanes(a, 16), lanes(b, 16), strict=True))),
    ),
    "smladx": (
        "smladx %0, %1, %2, %3",
        lambda a, b, c: signed(c + sum(x * y for x, y in zip(lanes(a, 16), lanes(b, 16)[::-1], strict=True))),
    ),
    "smlabb": ("smlabb %0, %1, %2, %3", lambda a, b, c: signed(c + lanes(a, 16)[0] * lanes(b, 16)[0])),
    "smlabt": ("smlabt %0, %1, %2, %3", lambda a, b, c: signed(c + lanes(a, 16)[0] * lanes(b, 16)[1])),
    "smlatb": ("smlatb %0, %1, %2, %3", lambda a, b, c: signed(c + lanes(a, 16)[1] * lanes(b, 16)[0])),
    "smulbb": ("smulbb %0, %1, %2", lambda a, b, c: lanes(a, 16)[0] * lanes(b, 16)[0]),
    "smlawb": ("smlawb %0, %1, %2, %3", lambda a, b, c: signed(c + (signed(a) * lanes(b, 16)[0] >> 16))),
    "pkhbt": ("pkhbt %0, %1, %2, lsl #16", lambda a, b, c: pair(lanes(a, 16)[0], lanes(b, 16)[0])),
    "pkhtb": ("pkhtb %0, %1, %2, asr #16", lambda a, b, c: pair(lanes(b, 16)[1], lanes(a, 16)[1])),
    "sadd16": (
        "sadd16 %0, %1, %2",
        lambda a, b, c: pair(*(x + y for x, y in zip(lanes(a, 16), lanes(b, 16), strict=True))),
    ),
    "qsub16": (
        "qsub16 %0, %1, %2",
        lambda a, b, c: pair(*(saturate(x - y, 16) for x, y in zip(lanes(a, 16), lanes(b, 16), strict=True))),
    ),
    "qadd": ("qadd %0, %1, %2", lambda a, b, c: saturate(signed(a) + signed(b), 32)),
}

EDGES = (0, 1, 0x7F, 0x80, 0xFFFF_FFFF, 0x7FFF_FFFF, 0x8000_0000, 0x8000_8000, 0x7FFF_8000, 0x80)


def one_instruction_functions() -> str:
    body = '{{ uint32_t r; __asm__("{}" : "=&r"(r) : "r"(a), "r"(b), "r"(c)); return r; }}'
    head = "uint32_t op_{}(uint32_t a, uint32_t b, uint32_t c) "
    functions = (head.format(name) + body.format(text) for name, (text, _) in INSTRUCTIONS.items())
    return "#include <stdint.h>\n" + "\n".join(functions)


@pytest.mark.parametrize("cpu", DSP_CPUS)
def test_dsp_instructions_equal_integer_arithmetic_on_random_operands(build: Build, cpu: str) -> None:
    core = build(one_instruction_functions(), cpu, *(f"op_{name}" for name in INSTRUCTIONS))
    generator = random.Random(7)
    draws = [tuple(generator.choice(EDGES) for _ in range(3)) for _ in range(60)]
    draws += [tuple(generator.getrandbits(32) for _ in range(3)) for _ in range(100)]
    for name, (_, meaning) in INSTRUCTIONS.items():
        for a, b, c in draws:
            assert core.call(f"op_{name}", a, b, c).return_value == signed(meaning(a, b, c)), (name, a, b, c)


@pytest.mark.parametrize("cpu", ["cortex-m0plus", "cortex-m3"])
def test_cores_without_dsp_refuse_its_instructions(build: Build, tmp_path: Path, cpu: str) -> None:
    m4 = target_compiler(load_target("cortex-m4f"))
    (tmp_path / "code.c").write_text(one_instruction_functions())
    objects = compile_objects(m4, [tmp_path / "code.c"], tmp_path, flags=("-O1", "-std=gnu99"))
    core = Simulator(
        link_image(m4, objects, tmp_path / "code.elf", keep=["op_smmlar"]), target=load_target(cpu)
    )
    with pytest.raises(SimulationError, match=r"op_smmlar: .*in op_smmlar"):
        core.call("op_smmlar", 1, 2, 3)


FLOATS = r"""
#include <stdint.h>
#include <math.h>
void each(const float *x, float *y)
{
    y[0] = x[0] * x[1] + x[2];
    y[1] = x[0] / x[1];
    y[2] = sqrtf(x[2]);
    y[3] = (float)(int32_t)x[0];
    y[4] = expf(-x[2]);
}
"""


@pytest.mark.parametrize("cpu", CPUS)
def test_single_precision_is_enabled_and_right(build: Build, cpu: str) -> None:
    core = build(FLOATS, cpu, "each")
    x = core.place(struct.pack("<3f", -7.5, 3.0, 2.25))
    y = core.allocate(20)
    core.call("each", x, y)
    found = struct.unpack("<5f", core.read(y, 20))
    assert found[:4] == (-20.25, -2.5, 1.5, -7.0)
    assert found[4] == pytest.approx(0.10539922456186433, rel=2**-23)


QEMU_WORK = r"""
#include <stdint.h>
#include <string.h>
static int8_t data[600], other[600];
static float values[64];
void nothing(void) { __asm__ volatile(""); }
void work_loop(void) { int n = 1000; __asm__ volatile("1: subs %0, #1\n bne 1b\n" : "+l"(n) : : "cc"); }
void work_skips(void)
{
    int count = 0;
    for (int i = 0; i < 100; i++)
        __asm__ volatile("cmp %1, #5\n itte lt\n addlt %0, %0, #1\n addlt %0, %0, #2\n subge %0, %0, #1\n"
                         : "+r"(count) : "r"(i) : "cc");
}
void work_copy(void) { memcpy(other, data, 577); memset(data, 3, 599); }
void work_float(void) { for (int i = 0; i < 64; i++) values[i] = values[63 - i] * 1.5f + (float)i / 3.0f; }
void work_table(void)
{
    for (int i = 0; i < 600; i++) {
        switch (data[i] & 7) {
        case 0: other[i] = 1; break;
        case 1: other[i] ^= 3; break;
        case 2: other[i] += 5; break;
        case 3: other[i] = (int8_t)(other[i] * 7); break;
        case 4: other[i] = data[599 - i]; break;
        default: break;
        }
        data[i] = (int8_t)(data[i] + other[i] + i);
    }
}
"""
QEMU_MAIN = r"""
void marker(int);
#define RUN(f) extern void f(void); marker(0); f();
int main(void)
{
    RUN(nothing) RUN(work_loop) RUN(work_skips) RUN(work_copy) RUN(work_float) RUN(work_table)
    marker(0);
    return 0;
}
"""
QEMU_NAMES = ("nothing", "work_loop", "work_skips", "work_copy", "work_float", "work_table")
BOARDS = {"cortex-m3": "mps2-an385", "cortex-m4f": "mps2-an386", "cortex-m7": "mps2-an500"}


@pytest.mark.skipif(shutil.which("qemu-system-arm") is None, reason="qemu-system-arm is not installed")
@pytest.mark.skipif(
    not MEASURE.is_dir(), reason="../shared/measure, which holds the counting plugin, is absent"
)
@pytest.mark.parametrize("cpu", BOARDS)
def test_counts_equal_those_of_qemu(tmp_path: Path, cpu: str) -> None:
    (tmp_path / "work.c").write_text(QEMU_WORK)
    (tmp_path / "main.c").write_text(QEMU_MAIN)
    compiler = target_compiler(load_target(cpu))
    objects = compile_objects(compiler, [tmp_path / "work.c"], tmp_path, flags=("-O2", "-std=gnu99"))
    core = Simulator(
        link_image(compiler, objects, tmp_path / "work.elf", keep=QEMU_NAMES), target=load_target(cpu)
    )

    image, plugin, log = tmp_path / "qemu.elf", tmp_path / "prof.so", tmp_path / "counts"
    start = [str(MEASURE / "start.c"), str(tmp_path / "main.c"), str(objects[0])]
    place = ["-nostartfiles", f"-L{MEASURE}", "-T", str(MEASURE / "mem_mps2.ld")]
    subprocess.run([compiler.program, *compiler.machine, "-O2", *start, *place, "-o", image], check=True)
    subprocess.run(["gcc", "-shared", "-fPIC", "-O2", "-w", MEASURE / "prof.c", "-o", plugin], check=True)
    symbols = subprocess.run(["arm-none-eabi-nm", image], capture_output=True, text=True, check=True).stdout
    marker = next(line.split()[0] for line in symbols.splitlines() if line.endswith(" marker"))
    board = ["-M", BOARDS[cpu], "-nographic", "-monitor", "none", "-serial", "none"]
    semihosting = ["-semihosting-config", "enable=on,target=native", "-icount", "shift=6"]
    count = ["-kernel", str(image), "-plugin", f"{plugin},marker=0x{marker},out={log}"]
    subprocess.run(["qemu-system-arm", *board, *semihosting, *count], check=True, timeout=60)

    totals = [int(line.split()[2]) for line in log.read_text().splitlines() if line.startswith("M")]
    spans = [after - before for before, after in pairwise(totals)]
    around = spans[0] - core.profile("nothing").instructions
    for name, span in zip(QEMU_NAMES, spans, strict=True):
        assert core.profile(name).instructions == span - around, name
