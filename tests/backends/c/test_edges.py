"""Inputs and outputs as the integers that `outputs.c.io` requests."""

import re
from collections.abc import Mapping, Sequence

import pytest
import torch
from torch import Tensor

from fxpress.backends.c import check, emit
from fxpress.backends.c.plan.edges import strip_edges
from fxpress.backends.c.write.ports import Port
from fxpress.ir import Graph, parse, run_integer
from fxpress.specs import COutput
from fxpress.specs.target import Target

from .conftest import Inspect

SCALED = """graph(%x: f32[1x2x4]) {
  const %low: f32[]
  const %wide: f32[]
  const %w: i8[3x4]<scale=0.01, zero=0>
  %s: f32[1x2x4] = sub(%x, %low)
  %d: f32[1x2x4] = div(%s, %wide)
  %q: i8[1x2x4]<scale=0.02, zero=-5> = quantize(%d)
  %l: i8[1x2x3]<scale=0.03, zero=7> = linear(%q, %w)
  %y: f32[1x2x3] = dequantize(%l)
  return y: %y
}"""
PIXELS = """graph(%x: u8[1x4x4x1]) {
  const %n: f32[]
  const %w: i8[2x1x3x3]<scale=0.01, zero=0>
  %p: u8[1x1x4x4] = permute{order=(0, 3, 1, 2)}(%x)
  %f: f32[1x1x4x4] = cast{dtype='f32'}(%p)
  %d: f32[1x1x4x4] = div(%f, %n)
  %q: i8[1x1x4x4]<scale=0.003921569, zero=-128> = quantize(%d)
  %c: i8[1x2x4x4]<scale=0.03, zero=7> = conv{stride=(1, 1), padding=(1, 1, 1, 1)}(%q, %w)
  %y: f32[1x2x4x4] = dequantize(%c)
  return y: %y
}"""
WIDE = """graph(%x: f32[1x6]) {
  %q: i16[1x6]<scale=0.001, zero=0> = quantize(%x)
  %r: i16[1x6]<scale=0.001, zero=0> = relu(%q)
  %y: f32[1x6] = dequantize(%r)
  return y: %y
}"""
NUMBERS = {"low": 3.3, "wide": 2.5, "n": 255.0}
NAMES = {"i8": "int8_t", "u8": "uint8_t", "i16": "int16_t", "f32": "float"}


def graph_of(text: str) -> Graph:
    generator = torch.Generator().manual_seed(0)
    return parse(
        text,
        fill=lambda v: (
            torch.tensor(NUMBERS[v.name])
            if v.name in NUMBERS
            else torch.randint(-127, 128, v.type.shape, generator=generator, dtype=torch.int8)
        ),
    )


def ports(graph: Graph, io: str | Mapping[str, str], host: Target) -> tuple[Port, ...]:
    return emit(graph, COutput(name="net", io=io), host, vectors=[]).ports


def through(graph: Graph, x: Tensor, io: str | Mapping[str, str], host: Target) -> Tensor:
    """Results of the stripped graph for the model's input, as reals."""
    taken, given = ports(graph, io, host)
    edges = strip_edges(graph, COutput(name="net", io=io).stored)
    stored = x if taken.encoding is None else taken.encoding.integers(x).to(taken.type.dtype.torch)
    (result,) = run_integer(edges.graph, [stored])
    return result if given.encoding is None else given.encoding.reals(result)


CASES: Sequence[tuple[str, str | dict[str, str], str, str]] = [
    (SCALED, "auto", "i8", "i8"),
    (SCALED, "int8", "i8", "i8"),
    (SCALED, "uint8", "u8", "u8"),
    (SCALED, "int16", "i16", "i16"),
    (SCALED, "float", "f32", "f32"),
    (SCALED, {"x": "uint8", "y": "float"}, "u8", "f32"),
    (SCALED, {"y": "int16"}, "i8", "i16"),
    (PIXELS, "auto", "u8", "i8"),
    (PIXELS, "int8", "i8", "i8"),
    (PIXELS, "uint8", "u8", "u8"),
    (PIXELS, "int16", "i16", "i16"),
    (PIXELS, "float", "u8", "f32"),
    (WIDE, "int8", "i16", "i16"),
    (WIDE, "int16", "i16", "i16"),
]


@pytest.mark.parametrize(("text", "io", "taken", "given"), CASES)
def test_ports_have_the_integers_asked_for_and_give_the_same_result(
    host: Target, text: str, io: str | dict[str, str], taken: str, given: str
) -> None:
    graph = graph_of(text)
    dtypes = [port.type.dtype.value for port in ports(graph, io, host)]
    assert dtypes == [taken, given]
    generator = torch.Generator().manual_seed(1)
    shape = graph.inputs[0].type.shape
    pixels = torch.randint(0, 256, shape, generator=generator).to(torch.uint8)
    x = pixels if text is PIXELS else 3 + 2 * torch.randn(shape, generator=generator)
    assert torch.allclose(through(graph, x, io, host), run_integer(graph, [x])[0])


@pytest.mark.parametrize("io", ["uint8", "int16", "int8"])
@pytest.mark.parametrize("text", [SCALED, PIXELS])
@pytest.mark.parametrize("buffers", ["caller", "arena"])
def test_their_c_equals_the_interpreter(
    assert_equal_to_interpreter: Inspect, text: str, io: str, buffers: str
) -> None:
    graph = graph_of(text)
    options = COutput(name="net", io=io, buffers=buffers, allow_float=False)
    shape = graph.inputs[0].type.shape
    generator = torch.Generator().manual_seed(2)
    low, high, dtype = {
        "uint8": (0, 256, torch.uint8),
        "int16": (-400, 400, torch.int16),
        "int8": (-128, 128, torch.int8),
    }[io]
    vectors = [[torch.randint(low, high, shape, generator=generator).to(dtype)] for _ in range(3)]
    artifact = assert_equal_to_interpreter(graph, options=options, inputs=vectors)
    assert "float" not in re.sub(r"/\*.*?\*/", "", artifact.files["net.c"].decode(), flags=re.S)


@pytest.mark.parametrize("io", ["uint8", "int16"])
def test_integers_are_those_of_the_graph_shifted(io: str) -> None:
    """uint8 = int8 + 128; int16 = int8 - zero point, saturated on the way in."""
    graph = graph_of(SCALED)
    own, other = strip_edges(graph), strip_edges(graph, lambda name: io)
    zero_in, zero_out = -5, 7
    every = torch.arange(-128, 128).reshape(32, 1, 2, 4)
    for codes in every:
        given = codes + 128 if io == "uint8" else codes - zero_in
        (wanted,) = run_integer(own.graph, [codes.to(torch.int8)])
        (got,) = run_integer(other.graph, [given.to(other.graph.inputs[0].type.dtype.torch)])
        shift = 128 if io == "uint8" else -zero_out
        assert torch.equal(got.to(torch.int64), wanted.to(torch.int64) + shift)


def test_a_chain_becomes_scale_and_offset_of_the_port(host: Target) -> None:
    port, _ = ports(graph_of(SCALED), "int8", host)
    assert port.encoding is not None
    reals = port.encoding.reals(torch.arange(-128, 128))
    wanted = (torch.arange(-128, 128) + 5) * 0.02 * 2.5 + 3.3
    assert torch.allclose(reals, wanted, atol=1e-5)


def test_an_input_of_integers_is_the_buffer(host: Target) -> None:
    made = emit(graph_of(PIXELS), COutput(name="net"), host, vectors=[])
    port = made.ports[0]
    assert port.encoding is not None
    assert (port.encoding.zero_point, port.encoding.offset) == (0, 0.0)
    assert port.encoding.scale == pytest.approx(1.0)
    assert "const uint8_t *x" in made.files["net.h"].decode()


def test_integers_that_an_end_does_not_have_are_refused(host: Target) -> None:
    wide = [str(p) for p in check(graph_of(WIDE), COutput(name="net", io="uint8"), host)]
    assert len(wide) == 2 and "computes on i16, but io is uint8" in wide[0]
    real = parse("graph(%x: f32[1x4]) {\n %y: f32[1x4] = relu(%x)\n return y: %y\n}")
    (text,) = (str(p) for p in check(real, COutput(name="net", io={"y": "uint8"}), host))
    assert text.startswith("output y: is not quantized, but io is uint8")
    (text,) = (str(p) for p in check(real, COutput(name="net", io={"z": "float"}), host))
    assert "io.z" in text and "C710" in text
