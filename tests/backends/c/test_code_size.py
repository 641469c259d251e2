"""Constructs counted in emitted C, and the bytes of code predicted from them."""

from __future__ import annotations

from pathlib import Path

import pytest

from fxpress.backends.c.cost import CodeSizes, Preprocessor, function_content, run_counts
from fxpress.backends.c.cost.c_source import definitions

INCLUDE = Path(__file__).parents[3] / "backends" / "c" / "write" / "include"
BEFORE = ("arithmetic.h", "dsp.h")
COUNTED = sorted(
    path.name for path in INCLUDE.glob("*.h") if path.name != "vector.h"
)  # no costs of a computer
M4F = Preprocessor(dsp=True, armv6m=False, fused=True)
HELPERS = """
FXP_INLINE int32_t fxp_clamp(int32_t value, int32_t low, int32_t high)
{
    return value < low ? low : value > high ? high : value;
}

FXP_INLINE int32_t fxp_twice(int32_t value)
{
#if FXP_DSP
    int32_t sum;
    __asm__("qadd %0, %1, %1" : "=r"(sum) : "r"(value));
    return sum;
#else
    return 2 * value;
#endif
}
"""


def counts(body: str, preprocessor: Preprocessor = M4F) -> dict[str, float]:
    """Constructs of a function with two pointers."""
    text = f"FXP_NOINLINE void f(const int8_t *x, int8_t *y)\n{{\n{body}\n}}\n"
    found = function_content(text, (HELPERS,), preprocessor).counts
    return {name: number for name, number in found.items() if number}


def test_the_sign_of_a_number_is_no_operation() -> None:
    assert counts("y[0] = (int8_t)(x[0] + 7);") == counts("y[0] = (int8_t)(x[0] + -7);")
    assert counts("int32_t a = -12; y[0] = (int8_t)(x[0] * a);") == counts(
        "int32_t a = 12; y[0] = (int8_t)(x[0] * a);"
    )


def test_a_short_loop_of_constant_length_is_repeated() -> None:
    loop = "for (int32_t i = 0; i < {n}; i++) {{ y[i] = (int8_t)(x[i] * x[i + 1]); }}"
    short, long = counts(loop.format(n=4)), counts(loop.format(n=400))
    assert short["multiply"] == 4 and "loop" not in short
    assert long["multiply"] == 1 and long["loop"] == 1


def test_a_loop_with_a_small_bound_is_repeated() -> None:
    loop = "for (int32_t i = 0; i < {end}; i++) {{ y[i] = (int8_t)(x[i] * x[i + 1]); }}"
    bounded = counts("int32_t n = x[9] < 3 ? x[9] : 3;" + loop.format(end="n"))
    assert bounded["multiply"] == bounded["branch"] == 3 and "loop" not in bounded
    assert counts("int32_t n = x[9];" + loop.format(end="n"))["loop"] == 1


CLIPPED = """
for (int32_t oy = 0; oy < 40; ++oy) {{
    const int32_t top = oy * 2 - {padding};
    const int32_t first = top < 0 ? 0 : top;
    const int32_t end = top + 2 > {rows} ? {rows} : top + 2;
    for (int32_t row = first; row < end; ++row) {{
        y[oy] = (int8_t)(y[oy] * x[row]);
    }}
}}"""


def test_a_window_inside_of_the_image_is_not_clipped() -> None:
    inside, outside = (counts(CLIPPED.format(padding=p, rows=80)) for p in (0, 1))
    assert inside["multiply"] == 2 and inside["loop"] == 1 and "select" not in inside
    assert outside["multiply"] == outside["select"] == 1 and outside["loop"] == 2
    assert counts(CLIPPED.format(padding=0, rows=79))["select"] == 1


def test_a_counter_that_the_body_moves_has_no_range() -> None:
    loop = "for (int32_t i = 0; i < 40; i++) {{ {body} if (i < 40) {{ y[i] = x[i]; }} }}"
    assert "branch" not in counts(loop.format(body=""))
    assert counts(loop.format(body="i += x[i];"))["branch"] == 1


def test_an_enumerator_is_a_constant() -> None:
    loop = "for (int32_t i = 0; i < n; i++) { y[i] = (int8_t)(x[i] * x[i + 1]); }"
    assert counts("enum { n = 4 };" + loop) == counts("const int32_t n = 4;" + loop)


def test_a_branch_on_a_constant_is_dropped() -> None:
    assert counts("if (3 > 4) { y[0] = x[0]; }") == counts("")
    assert counts("y[0] = (int8_t)(2 > 1 ? x[0] : x[1] * x[2]);") == counts("y[0] = (int8_t)x[0];")


def test_what_is_computed_twice_counts_once() -> None:
    once = counts("y[0] = (int8_t)(x[0] * x[1]);")
    assert counts("y[0] = (int8_t)(x[0] * x[1] | x[0] * x[1]);")["multiply"] == once["multiply"] == 1


def test_inlined_functions_count_where_they_are_called() -> None:
    found = counts("y[0] = (int8_t)fxp_clamp(x[0] * x[1], -128, 127);")
    assert found["select"] == found["compare"] == 2
    assert "call" not in found


def test_assembly_counts_by_instructions_on_cores_that_take_it() -> None:
    portable = Preprocessor(dsp=False, armv6m=False)
    assert counts("y[0] = (int8_t)fxp_twice(x[0]);")["instruction"] == 1
    assert "instruction" not in counts("y[0] = (int8_t)fxp_twice(x[0]);", portable)


def test_a_loop_that_copies_calls_memcpy() -> None:
    body = "for (int32_t i = 0; i < 900; i++) {\n y[i] = x[i];\n }"
    text = f"FXP_NOINLINE void f(const int8_t *x, int8_t *y)\n{{\n{body}\n}}\n"
    assert function_content(text, (), M4F).library == {"memcpy"}


def test_a_kernel_that_is_not_plain_c_counts_by_its_lines() -> None:
    text = "FXP_NOINLINE void f(int8_t *y)\n{\n    __extension__ typeof(*y) z = ({ 3; });\n    *y = z;\n}\n"
    assert function_content(text, (), M4F).counts == {"unread line": 5.0}


def test_arguments_of_a_shared_kernel_count_where_it_is_called() -> None:
    lines = ["f(input, (int8_t *)(memory + 64), net_weights_0);", "FXP_TRACE(0, input, 64);"]
    assert run_counts(lines, set()) == {"run": 1, "run call": 1, "run address": 2}
    assert run_counts(lines, {"f"})["run constant"] == 1


@pytest.mark.parametrize("core", ["cortex-m0plus", "cortex-m4f", "rv32imc"])
def test_more_constructs_take_more_bytes(core: str) -> None:
    sizes = CodeSizes.of(core)
    one, two = ({"store8": n, "load8": n, "function": 1} for n in (1, 20))
    assert 0 < sizes.bytes(one, "portable/copy.c.j2") < sizes.bytes(two, "portable/copy.c.j2")


@pytest.mark.parametrize("dsp", [False, True])
@pytest.mark.parametrize("header", COUNTED)
def test_every_helper_is_counted(header: str, dsp: bool) -> None:
    preprocessor = Preprocessor(dsp=dsp, armv6m=False, fused=True)
    others = "\n".join((INCLUDE / name).read_text() for name in BEFORE if name != header)
    text = "\n".join(preprocessor.lines(f"{others}\n{(INCLUDE / header).read_text()}"))
    found = definitions(text, preprocessor)
    assert found is not None and found.functions
