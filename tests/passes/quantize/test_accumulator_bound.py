"""The proven bound of an accumulator: that of the operator, for any axis of the scales."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fxpress.ir import Graph, Node, VerifyError, parse, run, run_integer, verify
from fxpress.passes import Context, PassResult, find_pass
from fxpress.specs.options import QuantizeOptions

# operator, shapes of x, weight and result
LAYERS = {
    "linear": ("linear", "2x6", "5x6", "2x5"),
    "conv1d": ("conv{stride=(1,), padding=(0, 0), dilation=(1,)}", "1x4x9", "6x4x3", "1x6x7"),
    "conv2d": ("conv", "1x4x5x5", "6x4x3x3", "1x6x3x3"),
    "conv2d of groups": ("conv{groups=2}", "1x4x5x5", "4x2x3x3", "1x4x3x3"),
    "conv2d depthwise": ("conv{groups=4}", "1x4x5x5", "8x1x3x3", "1x8x3x3"),
    "conv3d": (
        "conv{stride=(1, 1, 1), padding=(0, 0, 0, 0, 0, 0), dilation=(1, 1, 1)}",
        "1x2x3x3x3",
        "3x2x2x2x2",
        "1x3x2x2x2",
    ),
    "transposed1d": (
        "conv_transpose{stride=(2,), padding=(0, 0), output_padding=(0,), dilation=(1,)}",
        "1x3x6",
        "3x5x3",
        "1x5x13",
    ),
    "transposed2d": ("conv_transpose{stride=(2, 2)}", "1x4x4x4", "4x6x3x3", "1x6x9x9"),
    "transposed2d dilated": (
        "conv_transpose{stride=(2, 3), dilation=(2, 2)}",
        "1x2x4x4",
        "2x2x3x3",
        "1x2x11x14",
    ),
    "transposed2d of groups": ("conv_transpose{stride=(2, 2), groups=2}", "1x6x4x4", "6x2x2x2", "1x4x8x8"),
    "transposed2d of groups, as many outputs": ("conv_transpose{groups=2}", "1x4x5x5", "4x2x3x3", "1x4x7x7"),
    "transposed2d of groups with one output": ("conv_transpose{groups=2}", "1x6x4x4", "6x1x2x2", "1x2x5x5"),
    "transposed2d depthwise": ("conv_transpose{groups=4}", "1x4x4x4", "4x1x3x3", "1x4x6x6"),
    "transposed2d depthwise, multiplied": ("conv_transpose{groups=3}", "1x3x4x4", "3x2x3x3", "1x6x6x6"),
    "transposed3d": (
        "conv_transpose{stride=(2, 1, 1), padding=(0, 0, 0, 0, 0, 0), output_padding=(0, 0, 0), "
        "dilation=(1, 1, 1), groups=2}",
        "1x4x3x3x3",
        "4x1x2x2x2",
        "1x2x6x4x4",
    ),
}


def network(layer: str) -> Graph:
    op, x, weight, y = LAYERS[layer]
    text = f"graph(%x: f32[{x}]) {{ const %w: f32[{weight}] const %b: f32[{y.split('x')[1]}] "
    text += f"%y: f32[{y}] = {op}(%x, %w, %b) return y: %y }}"

    def fill(value: object) -> Tensor:
        shape = value.type.shape  # type: ignore[attr-defined]
        generator = torch.Generator().manual_seed(len(shape))
        drawn = torch.randn(shape, generator=generator)
        sizes = torch.linspace(0.02, 1, shape[0]).view(-1, *[1] * (len(shape) - 1))
        return drawn * sizes  # channels of very different size: the largest may lie anywhere

    return verify(parse(text, fill=fill))


def samples(graph: Graph) -> list[tuple[Tensor, ...]]:
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(graph.inputs[0].type.shape, generator=generator),) for _ in range(8)]


def quantize(graph: Graph, **options: object) -> PassResult:
    context = Context(calibration=samples(graph))
    return find_pass("quantize")(graph, QuantizeOptions.model_validate(options), context)


def layer_of(graph: Graph) -> Node:
    (node,) = (n for n in graph.nodes if n.op.name in ("conv", "conv_transpose", "linear"))
    return node


def largest_accumulator(graph: Graph) -> int:
    """The largest |accumulator| over all inputs, from what each result says of each input."""
    node = layer_of(graph)
    x, grid = node.operands[0], node.operands[0].type.quantization
    weight, bias = (graph.tensor(node.operands[i]).double() for i in (1, 2))
    zero = torch.zeros(x.type.shape, dtype=torch.float64)
    slopes = torch.autograd.functional.jacobian(lambda t: node.op.reference(t, weight), zero)
    slopes = slopes.reshape(*node.output.type.shape, -1)
    ends = [end - grid.zero_point[0] for end in (grid.qmin, grid.qmax)]
    high, low = (
        (slopes.clamp(min=0) * a + slopes.clamp(max=0) * b).sum(-1) for a, b in (reversed(ends), ends)
    )
    along = [1, -1, *[1] * (low.ndim - 2)]
    return int(max((high + bias.view(along)).abs().max(), (low + bias.view(along)).abs().max()))


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("layer", LAYERS)
def test_the_bound_is_attained_by_the_input_that_each_weight_asks_for(layer: str, per_channel: bool) -> None:
    result = quantize(network(layer), per_channel=per_channel, activations="int16")
    (row,) = next(table for table in result.report.tables if table.name == "layers").rows
    reached = largest_accumulator(result.graph)
    assert reached <= row[-1] <= reached * 32768 / 32767 + 1


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("layer", LAYERS)
def test_every_layer_computes_on_integers_near_the_float_layer(layer: str, per_channel: bool) -> None:
    graph = network(layer)
    quantized = quantize(graph, per_channel=per_channel).graph
    assert layer_of(quantized).output.type.is_quantized
    (x,) = samples(graph)[0]
    (want,), (have,) = run(graph, [x]), run_integer(quantized, [x])
    noise = float((want - have).square().sum() / want.square().sum())
    assert noise < 10**-2.5


@pytest.mark.parametrize(
    ("layer", "scales"),
    [("transposed2d", 6), ("transposed2d depthwise", 4), ("transposed2d depthwise, multiplied", 6)],
)
def test_a_transposed_layer_has_a_scale_for_each_output_channel(layer: str, scales: int) -> None:
    quantized = quantize(network(layer)).graph
    grid = layer_of(quantized).operands[1].type.quantization
    assert len(grid.scale) == scales
    integers = quantized.tensor(layer_of(quantized).operands[1]).abs()
    rows = layer_of(quantized).op.rows(integers)
    assert rows.amax(1).tolist() == [127] * scales


@pytest.mark.parametrize(
    "layer", ["transposed1d", "transposed2d of groups", "transposed2d depthwise, multiplied", "transposed3d"]
)
def test_transposed_layers_learn_their_rounding(layer: str) -> None:
    rounding = {"kind": "adaround", "iterations": 60}
    graph = network(layer)
    result = quantize(graph, weights="int4", rounding=rounding)
    (table,) = (t for t in result.report.tables if t.name == "rounding")
    (row,) = table.rows
    before, after = row[3:5]
    assert after < before and not any("rounded to nearest" in d.reason for d in result.report.decisions)


def test_a_matrix_product_of_so_many_terms_that_a_sum_could_leave_48_bits_is_refused() -> None:
    text = """graph(%a: i16[1x{k}]<scale=0.1>, %b: i16[{k}x1]<scale=0.1>) {{
      %y: i8[1x1]<scale=10000000.0, zero=0> = matmul(%a, %b)
      return y: %y
    }}"""
    largest = (2**47 - 1) // 32768**2
    graph = verify(parse(text.format(k=largest)))
    ends = [torch.full(v.type.shape, 32767, dtype=torch.int16) for v in graph.inputs]
    assert run_integer(graph, ends)[0].item() == 127
    with pytest.raises(VerifyError, match="an accumulator can reach"):
        verify(parse(text.format(k=largest + 1)))
