"""The text form: a dumped graph parses to an equal graph, and errors state their place."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fxpress.ir import (
    Builder,
    Encoding,
    Graph,
    Numbers,
    ParseError,
    Precision,
    Source,
    dump,
    long_numbers,
    parse,
)
from fxpress.ir.ops.quantize import Dequantize
from fxpress.ir.testing import graphs, quantized_graphs
from fxpress.ir.testing.variants import renamed

names = st.text(min_size=1, max_size=8)


@given(graphs())
def test_float_graph_reads_back(graph: Graph) -> None:
    assert parse(dump(graph), params=graph.params) == graph


@given(quantized_graphs())
def test_quantized_graph_reads_back(graph: Graph) -> None:
    assert parse(dump(graph), params=graph.params) == graph


@given(graphs(max_steps=2), names, names, names)
def test_odd_names_and_sources_read_back(graph: Graph, prefix: str, module: str, location: str) -> None:
    odd = renamed(graph, lambda name: f"{prefix}{name}")
    odd = replace(odd, nodes=tuple(replace(n, source=Source(module, location)) for n in odd.nodes))
    odd = replace(odd, output_names=tuple(f"{prefix}{i}" for i in range(len(odd.outputs))))
    assert parse(dump(odd), params=odd.params) == odd


@given(graphs(max_steps=2))
def test_dump_is_the_same_each_time(graph: Graph) -> None:
    assert dump(parse(dump(graph))) == dump(graph)


TEXT = """graph(%x: f32[1x3x8x8]) {
  const %w: i8[6x3x3x3]<scale=@0, zero=0, axis=0>
  %c: f32[1x4x8x8] = conv{padding=(1, 1, 1, 1), clamp=(0.0, inf)}(%x, %x)   # "features.0", "net.py:12"
  %q: i8[1x4x8x8]<bits=4, scale=0.05, zero=-3> = quantize(%c)
  %s: f32[] = torch_call{call='aten.sum.default(x0)'}(%c)
  return out: %q, "the \\"sum\\"": %s, weight: %w
}
@0 = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
"""


def test_text_as_a_reader_sees_it() -> None:
    graph = parse(TEXT)
    assert dump(graph) == TEXT
    assert graph.output_names == ("out", 'the "sum"', "weight")
    assert graph.nodes[0].source == Source("features.0", "net.py:12")
    assert graph.constants[0].type.quantization.scale == Numbers.of_reals((0.1, 0.2, 0.3, 0.4, 0.5, 0.6))
    assert graph.params["w"].dtype == torch.int8


ENCODINGS = [
    Encoding(torch.rand(12) + 0.5, bits=4, axis=0, group_size=2),
    Encoding((torch.rand(12) + 0.5).bfloat16(), torch.arange(12, dtype=torch.int8) - 8, 4, 0, 2),
    Encoding(torch.tensor([0.1], dtype=torch.float16), bits=8),
    Encoding((0.5,), bits=2, levels=(-1.0, 0.0, 1.0)),
    Encoding(torch.ones(4) / 3, bits=4, axis=0, levels=torch.linspace(-1, 1, 16)),
]


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_encodings_read_back(encoding: Encoding) -> None:
    builder = Builder()
    w = builder.constant("w", torch.zeros(4, 6), quantization=encoding)
    graph = builder.build([builder.add(Dequantize(), w)])
    assert parse(dump(graph), params=graph.params) == graph


LONG = """graph() {
  const %w: i8[4097x2]<bits=4, scale=f32[4097]@c9e6dbf77eade52d, zero=0, axis=0>
  %dequantize: f32[4097x2] = dequantize(%w)
  return output: %dequantize
}
"""


def test_long_numbers_are_named_by_their_digest_and_given_beside_the_text() -> None:
    builder = Builder()
    encoding = Encoding(torch.arange(1.0, 4098), bits=4, axis=0)
    w = builder.constant("w", torch.zeros(4097, 2), quantization=encoding)
    graph = builder.build([builder.add(Dequantize(), w)])
    assert dump(graph) == LONG
    assert list(long_numbers(graph).values()) == [encoding.scale]
    assert parse(LONG, params=graph.params, numbers=long_numbers(graph)) == graph
    with pytest.raises(ParseError, match=r"2:38: the numbers f32\[4097\]@c9e6dbf77eade52d are missing"):
        parse(LONG)


DECIDED = """graph(%x: f32[2]) {
  bits "": weights=4
  bits features.0: weights=2, activations=16
  bits "head (2)": activations=8
  bits tail: weights=32
  const %w: f32[2]
  %y: f32[2] = add(%x, %w)
  return y: %y
}
"""


def test_bits_that_passes_chose_are_part_of_the_text() -> None:
    graph = parse(DECIDED)
    assert dump(graph) == DECIDED
    assert graph.precisions["features.0"] == Precision(weights=2, activations=16)
    assert graph != replace(graph, precisions={})
    with pytest.raises(TypeError):
        graph.precisions["tail"] = Precision(8)


def test_constants_are_filled_in() -> None:
    text = "graph() { const %a: f32[2] const %b: f32[2] %c: f32[2] = add(%a, %b) return y: %c }"
    graph = parse(text, params={"a": torch.ones(2)}, fill=lambda v: torch.full(v.type.shape, 7.0))
    assert graph.params["a"].tolist() == [1, 1] and graph.params["b"].tolist() == [7, 7]


ERRORS = [
    ("", "1:1: expected 'graph', found the end of the text"),
    ("graph(%x: f32[2]) {\n  return y: %z\n}", "2:13: %z is not defined"),
    ("graph(%x: f32[2]) {\n  %x: f32[2] = relu(%x)\n}", "2:3: %x is defined twice"),
    ("graph(%x: f33[2]) {", "1:11: 'f33' is not a valid DType"),
    ("graph(%x: f32[2x]) {", "1:11: invalid literal for int"),
    ("graph(%x: f32[2]) {\n  %y: f32[2] = reluu(%x)", "2:16: unknown operator 'reluu'"),
    ("graph(%x: f32[2]) {\n  %y: f32[2] = relu{slope=1}(%x)", "2:16: relu has no attribute slope"),
    ("graph(%x: f32[2]) {\n  %y: f32[2] = clamp{low=zero}(%x)", "2:26: 'zero' is not a value"),
    ("graph(%x: f32[2]) {\n  %y: f32[2] = relu(%x, none)", "2:3: a trailing operand is none; remove it"),
    ("graph(%x: f32[2]) {\n  %y: f32[2] = relu(%x", "2:23: expected ',' or ')', found ''"),
    ("graph(%x: f32[2]) {\n  return y: %x\n} more", "3:3: text after the graph"),
    ("graph(%x: f32[2]) {\n  return y: $x", "2:13: unexpected character '$'"),
    ("graph(%x: i8[2]<scale=0, zero=0>) {", "1:11: a scale must be a finite number other than 0"),
    ("graph(%x: i8[2]<zero=0>) {", "1:24: a quantization needs a scale"),
    ("graph() {\n  bits a: weights=3", "2:8: 3 storage bits; the choices are 1, 2, 4, 8, 16, 32"),
    ("graph() {\n  bits a: width=8", "2:8: "),
    ("graph() {\n  bits a: return", "2:8: a precision needs bits of weights, of activations, or of both"),
    ("graph(%x: i8[2]<scale=@3>) {", "1:23: there is no list @3"),
    ("graph(%x: f32[2]) {\n  %y: f32[2] = torch_call{call='nonsense'}(%x)", "2:16: torch_call: "),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message"), ERRORS)
def test_text_that_is_no_graph_is_refused_with_its_place(text: str, message: str) -> None:
    with pytest.raises(ParseError) as error:
        parse(text)
    assert str(error.value).startswith(message)
