"""The verifier: every rule of the IR, each broken once."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given

from fxpress.ir import DType, Graph, TensorType, Value, VerifyError, parse, verify
from fxpress.ir.testing import graphs, quantized_graphs


@given(graphs())
def test_float_graphs_are_valid(graph: Graph) -> None:
    assert verify(graph) is graph


@given(quantized_graphs())
def test_quantized_graphs_are_valid(graph: Graph) -> None:
    assert verify(graph) is graph


def quantized(body: str) -> str:
    return f"graph(%x: i8[1x2x4x4]<scale=0.1, zero=5>) {{ {body} }}"


def conv(weight: str, *, bias: str = "") -> str:
    """A convolution of integers with a weight and perhaps a bias of these types."""
    declared = f"const %w: {weight} " + (f"const %b: {bias} " if bias else "")
    operands = "%x, %w, %b" if bias else "%x, %w"
    return quantized(f"{declared} %y: i8[1x2x4x4]<scale=0.1, zero=5> = conv({operands}) return y: %y")


def unary(op: str, type: str) -> str:
    """A function of the quantized input with this result."""
    return quantized(f"%y: {type} = {op}(%x) return y: %y")


SAME = "i8[1x2x4x4]<scale=0.1, zero=5>"
TWO = "i8[2x2x1x1]<scale=(0.5, 0.25), zero=0, axis=0>"
BROKEN = [
    ("graph(%x: f32[2]) { %y: f32[3] = relu(%x) return y: %y }", "the operator infers f32[2]"),
    ("graph(%x: f32[2]) { %y: f64[2] = relu(%x) return y: %y }", "the operator infers f32[2]"),
    ("graph(%x: f32[2]) { %y: f32[2] = relu(%x, %x) return y: %y }", "relu does not take 2 operands"),
    ("graph(%x: f32[2]) { %y: f32[2], %z: f32[2] = relu(%x) return y: %y }", "the operator infers 1 results"),
    ("graph(%x: f32[2], %z: f32[3]) { %y: f32[2] = add(%x, %z) return y: %y }", "(2,) and (3,) do not broadcast"),
    ("graph(%x: f32[2]) { %y: f32[2] = relu(%x) return y: %y, y: %x }", "outputs need one name each, all different"),
    (unary("reshape{shape=(1, 2, 16)}", "i8[1x2x16]<scale=0.2, zero=5>"), "the operator infers i8"),
    (unary("copy", "i8[1x2x4x4]<scale=0.1, zero=6>"), "the operator infers i8"),
    (unary("relu", "f32[1x2x4x4]"), "quantized per tensor"),
    (unary("relu", "i8[1x2x4]<scale=0.1, zero=5>"), "the operator infers f32[1x2x4x4]"),
    (unary("tanh", "i32[1x2x4x4]<scale=0.1, zero=5>"), "is a table"),
    (unary("softmax{axis=1}", SAME), "a power of two as scale"),
    (unary("log_softmax{axis=1}", SAME), "does not compute on quantized"),
    (unary("layer_norm{shape=(4,), root_eps=0.1}", SAME), "adds to the root"),
    (unary("layer_norm{shape=(4,)}", "i32[1x2x4x4]<scale=0.1, zero=5>"), "8 or 16 bits"),
    (unary("quantize", "f32[1x2x4x4]"), "quantize takes f32"),
    (conv("f32[2x2x1x1]"), "the weight is not quantized"),
    (conv("i8[2x2x1x1]<scale=0.1, zero=1>"), "weights are quantized symmetrically"),
    (conv("i8[2x2x1x1]<scale=(0.1, 0.2), zero=0, axis=1>"), "along axis 1; this operator needs axis 0"),
    (conv("i8[2x2x1x1]<scale=0.5, zero=0>", bias="i32[2]<scale=0.1, zero=0>"), "input scale x weight scale"),
    (conv("u8[2x2x1x1]<bits=4, levels=(-1.5, 0.0, 1.0), scale=0.1, zero=0>"), "%w is stored in codes; dequantize it"),
    (conv("i8[2x2x1x1]<bits=3, scale=0.1, zero=0>"), "%w is stored in codes; dequantize it"),
    (conv("i8[2x2x1x1]<scale=(0.1, -0.1), zero=0, axis=0>"), "%w is stored in codes; dequantize it"),
    (conv(TWO, bias="i32[2]<scale=(0.025, 0.05), zero=0, axis=0>"), "input scale x weight scale"),
    (quantized("%o: i8[1x2x4x4]<scale=0.2, zero=5> = relu(%x) %y: i8[2x2x4x4]<scale=0.1, zero=5> = concat(%x, %o)"
               " return y: %y"), "same element type and quantization"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message"), BROKEN)
def test_broken_graph_is_refused_with_the_line_and_the_rule(text: str, message: str) -> None:
    with pytest.raises(VerifyError) as error:
        verify(parse(text))
    assert message in str(error.value)


GRAPH = parse(
    "graph(%x: f32[2]) { const %w: f32[2] %a: f32[2] = add(%x, %w) %r: f32[2] = relu(%a) return y: %r }"
)
add, relu = GRAPH.nodes
other = Value("a", TensorType((3,)))
TAMPERED = [
    (replace(GRAPH, nodes=(relu, add)), "%a is not defined before its use; put its node first"),
    (replace(GRAPH, nodes=(relu,)), "%a is not defined by any node"),
    (replace(GRAPH, nodes=(replace(add, inputs=(relu.output, *add.inputs[1:])), relu)),
     "%r is not defined before its use: it depends on itself, %r -> %a -> %r"),
    (replace(GRAPH, nodes=(add,)), "output %r is not defined with this type"),
    (replace(GRAPH, nodes=(add, add, relu)), "%a is defined twice"),
    (replace(GRAPH, nodes=(add, replace(relu, inputs=(other,)))), "%a is used as f32[3], defined as f32[2]"),
    (replace(GRAPH, params={"w": torch.zeros(3)}), "constant %w is (3,) torch.float32, not f32[2]"),
    (replace(GRAPH, params={"w": torch.zeros(2).double()}), "constant %w is (2,) torch.float64, not f32[2]"),
    (replace(GRAPH, output_names=("y", "z")), "outputs need one name each"),
    (replace(GRAPH, inputs=GRAPH.inputs * 2), "share a name"),
    (replace(GRAPH, params={**GRAPH.params, "x": torch.zeros(2)}), "share a name"),
    (replace(GRAPH, outputs=(Value("r", TensorType((2,), DType.F64)),)), "not defined with this type"),
]  # fmt: skip


@pytest.mark.parametrize(("graph", "message"), TAMPERED)
def test_graph_put_together_wrongly_is_refused(graph: Graph, message: str) -> None:
    with pytest.raises(VerifyError) as error:
        verify(graph)
    assert message in str(error.value)


def test_a_problem_is_shown_at_its_line_below_the_bits_of_layers() -> None:
    text = "graph(%x: f32[2]) { bits a: weights=4 %y: f32[2] = relu(%x) %z: f32[3] = relu(%y) return z: %z }"
    with pytest.raises(VerifyError) as error:
        verify(parse(text))
    assert str(error.value).splitlines()[0] == "%z: f32[3] = relu(%y)"


def test_all_problems_are_shown_at_once_inside_their_lines() -> None:
    text = "graph(%x: f32[2]) { %a: f32[3] = relu(%x) %b: f32[4] = relu(%x) return y: %a, z: %b }"
    with pytest.raises(VerifyError) as error:
        verify(parse(text))
    assert error.value.message.splitlines() == [
        "%a: f32[3] = relu(%x)",
        "  the operator infers f32[2]",
        "%b: f32[4] = relu(%x)",
        "  the operator infers f32[2]",
    ]
