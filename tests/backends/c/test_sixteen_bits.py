"""16-bit activations in C: every operator with an integer form for them gives the results of the interpreter."""

from __future__ import annotations

import re

import pytest
import torch

from fxpress.backends.c import check
from fxpress.ir import Graph, IRError, parse, run_integer, verify
from fxpress.ir.testing import drawn_samples
from fxpress.passes import Context, find_pass
from fxpress.specs.options import QuantizeOptions
from fxpress.specs.outputs import COutput

FORMS = {
    "all": r"(?<!const )(%\w+: )i8\[",
    "operands": r"(?<!const )(?<!  )(%\w+: )i8\[",
    "results": r"(?<=  )(%\w+: )i8\[",
}
# Operators without an integer form for 16 bits: they stay in float.
FLOAT = {
    *("softmax", "softmax int16", "softmax int8, fine results", "softmax int8, masked"),
    "layer_norm of many elements",
    *("bytes without sign as codes", "codes as bytes without sign", "mul and add with large factors"),
    *("acos", "acosh", "asin", "atanh", "log2", "log10"),  # not defined for all numbers
    *("cosh", "sinh", "tan", "exp", "exp2", "expm1", "pow exponent3.0"),  # too steep over the range here
    "magnitude of two scales",
}
NET = """graph(%x: f32[1x3x9x9]) {
  const %w1: f32[8x3x3x3]
  const %w2: f32[8x1x3x3]
  const %w3: f32[6x8x1x1]
  const %w4: f32[8x6x1x1]
  const %w5: f32[5x8]
  %a: f32[1x8x9x9] = conv{padding=(1, 1, 1, 1), clamp=(0.0, inf)}(%x, %w1)
  %b: f32[1x8x9x9] = conv{padding=(1, 1, 1, 1), groups=8, clamp=(0.0, 6.0)}(%a, %w2)
  %c: f32[1x6x9x9] = conv(%b, %w3)
  %t: f32[1x6x9x9] = tanh(%c)
  %d: f32[1x8x9x9] = conv(%t, %w4, none, %a)
  %s: f32[1x8x9x9] = add(%d, %b)
  %p: f32[1x8x4x4] = max_pool(%s)
  %m: f32[1x8] = mean{axes=(2, 3)}(%p)
  %y: f32[1x5] = linear(%m, %w5)
  return y: %y
}"""
SANITIZED = ("-O0", "-fsanitize=undefined", "-fno-sanitize-recover=all")


def widened(text: str, form: str) -> str:
    """The graph with activations of 8 bits replaced by 16: all of them, the graph's inputs, or results of nodes."""
    return re.sub(FORMS[form], r"\1i16[", text)


@pytest.fixture(params=FORMS)
def wide(request, operator_cases, fill) -> dict[str, str]:
    """The operators' cases with 16 bits, as far as they have an integer form."""
    found = {}
    for name, text in operator_cases.items():
        changed = widened(text, request.param)
        if changed != text and "f32" not in text and _has_integer_form(changed, fill):
            found[name] = changed
    return found


def _has_integer_form(text, fill) -> bool:
    try:
        verify(parse(text, fill=fill))
    except IRError:
        return False
    return True


def test_what_has_no_integer_form_is_known(operator_cases, fill):
    changed = {name: widened(text, "all") for name, text in operator_cases.items()}
    refused = {n for n, t in changed.items() if t != operator_cases[n] and not _has_integer_form(t, fill)}
    assert {name.removesuffix(" int8") for name in refused} == FLOAT


@pytest.mark.parametrize(
    "flags",
    [pytest.param(("-O2",), id="optimized", marks=pytest.mark.slow), pytest.param(SANITIZED, id="sanitized")],
)
def test_every_operator_equals_the_interpreter(wide, join, flags, assert_equal_to_interpreter):
    assert_equal_to_interpreter(join(wide), flags=flags, seeds=2)


def test_every_operator_equals_the_interpreter_as_the_dsp_kernels_compute_it(
    wide, join, cortex_m4, assert_equal_to_interpreter
):
    assert_equal_to_interpreter(join(wide), target=cortex_m4, seeds=2)


@pytest.fixture
def net(fill) -> Graph:
    """A network quantized to activations of 16 bits, with a function between its layers."""
    generator = torch.Generator().manual_seed(0)
    samples = [(torch.randn(1, 3, 9, 9, generator=generator),) for _ in range(4)]
    options = QuantizeOptions(activations="int16")
    return find_pass("quantize")(parse(NET, fill=fill), options, Context(calibration=samples)).graph


def test_functions_between_layers_of_sixteen_bits_are_integers(net):
    assert {node.op.name for node in net.nodes if not node.output.type.is_quantized} == {"dequantize"}
    assert {node.output.type.quantization.bits for node in net.nodes if node.output.type.is_quantized} == {16}


@pytest.mark.parametrize("io", ["float", "int8"])
def test_a_network_of_sixteen_bits_equals_the_interpreter(
    net, io, host, cortex_m4, assert_equal_to_interpreter
):
    options = COutput(name="net", io=io)
    for target in (host, cortex_m4):
        assert check(net, options, target) == []
        assert_equal_to_interpreter(net, options=options, target=target)


def test_the_ends_of_the_range_are_computed_with_like_all_numbers(
    net, cortex_m4, assert_equal_to_interpreter
):
    ends = [torch.full((1, 3, 9, 9), end, dtype=torch.int16) for end in (-32768, 32767)]
    mixed = torch.where(torch.arange(243).view(1, 3, 9, 9) % 2 == 0, *ends)
    for target in (None, cortex_m4):
        inputs = [[x] for x in (*ends, mixed)]
        assert_equal_to_interpreter(net, target=target, inputs=inputs, flags=SANITIZED)


# Steps of a, b and the result: multipliers that are the largest, or nearly, and ties.
SUMS = [(1.0, 1.0, 1.0), (0.99998, 0.99998, 1.0), (1.9999, 1.9999, 1.0), (1.0, 1.0, 2.0), (0.5, 0.25, 1.0)]


@pytest.mark.parametrize("op", ["add", "sub"])
@pytest.mark.parametrize("steps", SUMS)
def test_sums_at_the_ends_of_their_range_and_on_ties_are_the_interpreters(
    op, steps, cortex_m4, assert_equal_to_interpreter
):
    types = [f"i16[1x1x4x6]<scale={step}, zero=0>" for step in steps]
    graph = verify(
        parse(f"graph(%a: {types[0]}, %b: {types[1]}) {{ %y: {types[2]} = {op}(%a, %b) return y: %y }}")
    )
    numbers = torch.tensor([-32768, -32767, -16384, -3, -2, -1, 0, 1, 2, 3, 16383, 32767], dtype=torch.int16)
    pairs = torch.cartesian_prod(numbers, numbers)
    inputs = [[part[:, 0].view(1, 1, 4, 6), part[:, 1].view(1, 1, 4, 6)] for part in pairs.split(24)]
    for target in (None, cortex_m4):
        assert_equal_to_interpreter(graph, target=target, inputs=inputs, flags=SANITIZED)


def test_rescaling_rounds_ties_as_the_interpreter(cortex_m4, assert_equal_to_interpreter):
    for bits, other in ((8, 16), (16, 16), (16, 8), (8, 8)):
        graph = verify(
            parse(
                f"""graph(%x: i{bits}[1x1x4x4]<scale=0.5, zero=0>) {{
                  %y: i{other}[1x1x4x4]<scale=1.0, zero=0> = requantize(%x)
                  return y: %y
                }}"""
            )
        )
        x = torch.arange(-8, 8).view(1, 1, 4, 4).to(torch.int8 if bits == 8 else torch.int16)
        assert run_integer(graph, [x])[0].flatten().tolist() == [(n + 1) // 2 for n in range(-8, 8)]
        for target in (None, cortex_m4):
            assert_equal_to_interpreter(graph, target=target, inputs=[[x]], flags=SANITIZED)


BLOCK = """graph(%x: f32[1x6x16]) {
  const %w1: f32[16x16]
  const %ww2: f32[16x16]
  const %www3: f32[16x16]
  const %w4: f32[24x16]
  const %ww5: f32[24x16]
  const %www6: f32[16x24]
  const %w7: f32[5x16]
  %q: f32[1x6x16] = linear(%x, %w1)
  %k: f32[1x6x16] = linear(%x, %ww2)
  %a: f32[1x6x16] = attention(%q, %k, %q)
  %s: f32[1x6x16] = linear(%a, %www3, none, %x)
  %n: f32[1x6x16] = layer_norm{shape=(16,)}(%s)
  %u: f32[1x6x24] = linear(%n, %w4)
  %g: f32[1x6x24] = silu(%u)
  %v: f32[1x6x24] = linear(%n, %ww5)
  %p: f32[1x6x24] = mul(%g, %v)
  %d: f32[1x6x16] = linear(%p, %www6, none, %s)
  %m: f32[1x6x16] = rms_norm{shape=(16,)}(%d)
  %t: f32[1x6x16] = gelu(%m)
  %y: f32[1x6x5] = linear(%t, %w7)
  return y: %y
}"""


@pytest.mark.parametrize("role", ["residual", "gates", "outputs", "all"])
@pytest.mark.parametrize("io", ["float", "int8"])
def test_values_of_sixteen_bits_by_their_role_equal_the_interpreter(
    role, io, fill, host, cortex_m4, assert_equal_to_interpreter
):
    before = parse(BLOCK, fill=fill)
    names = ("residual", "gates", "outputs") if role == "all" else (role,)
    options, context = (
        QuantizeOptions(**dict.fromkeys(names, "int16")),
        Context(calibration=drawn_samples(before, 8)),
    )
    graph = find_pass("quantize")(before, options, context).graph
    bits = {v.type.quantization.bits for node in graph.nodes for v in node.outputs if v.type.is_quantized}
    assert bits == {8, 16}
    for target in (host, cortex_m4):
        assert_equal_to_interpreter(
            graph, options=COutput(name="net", io=io, buffers="arena"), target=target, flags=SANITIZED
        )
