"""Both interpreters, and other batch sizes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from fxpress.ir import ShapeError, Value, parse, rebatch, run, run_integer, verify
from fxpress.ir.testing import assert_equivalent, assert_exact, graphs, inputs, quantized_graphs

CONV = parse(
    """graph(%x: f32[1x2x5x5]) {
      const %w: f32[3x2x3x3]
      %c: f32[1x3x5x5] = conv{padding=(1, 1, 1, 1), clamp=(0.0, inf)}(%x, %w)
      return y: %c
    }""",
    fill=lambda v: torch.randn(v.type.shape, generator=torch.Generator().manual_seed(0)),
)


def test_run_computes_what_torch_computes() -> None:
    x = torch.randn(1, 2, 5, 5)
    assert_exact(run(CONV, [x]), torch.relu(functional.conv2d(x, CONV.params["w"], padding=1)))


def test_run_is_differentiable_in_inputs_and_replaced_params() -> None:
    x = torch.randn(1, 2, 5, 5, requires_grad=True)
    weight = CONV.params["w"].clone().requires_grad_()
    run(CONV, [x], params={"w": weight})[0].sum().backward()
    assert x.grad is not None and weight.grad is not None and weight.grad.abs().sum() > 0


QUANTIZED = parse(
    """graph(%x: f32[4]) {
      %q: i8[4]<scale=0.5, zero=10> = quantize(%x)
      %d: f32[4] = dequantize(%q)
      return y: %d, q: %q
    }"""
)


def test_quantized_values_are_rounded_to_their_grid_with_a_straight_through_gradient() -> None:
    x = torch.tensor([0.2, 0.3, 1000.0, -1000.0], requires_grad=True)
    y, _ = run(QUANTIZED, [x])
    assert y.tolist() == [0.0, 0.5, 58.5, -69.0]
    y.sum().backward()
    assert x.grad.tolist() == [1, 1, 1, 1]


def test_run_integer_gives_outputs_in_their_storage_type() -> None:
    y, q = run_integer(QUANTIZED, [torch.tensor([0.2, 0.3, 1000.0, float("nan")])])
    assert (y.dtype, q.dtype) == (torch.float32, torch.int8)
    assert q.tolist() == [10, 11, 127, 10] and y.tolist() == [0.0, 0.5, 58.5, 0.0]


def test_sums_beyond_int32_are_exact() -> None:
    text = """graph(%x: i16[1x70000]<scale=0.1, zero=0>) {
      const %w: i8[1x70000]<scale=0.1, zero=0>
      %y: i16[1x1]<scale=100000.0, zero=0> = linear(%x, %w)
      return y: %y
    }"""
    graph = verify(parse(text, fill=lambda v: torch.full(v.type.shape, 127, dtype=torch.int8)))
    multiplier = round(0.1 * 0.1 / 100000.0 * 2**32)
    for x in (100, 32767, -32768):
        (y,) = run_integer(graph, [torch.full((1, 70000), x, dtype=torch.int16)])
        assert y.item() == (127 * x * 70000 * multiplier + 2**31) >> 32


@given(st.data())
def test_observers_see_every_value_once_and_in_order(data: st.DataObject) -> None:
    graph = data.draw(graphs(max_steps=3))
    seen: list[str] = []
    run(graph, data.draw(inputs(graph)), observe=lambda value, tensor: seen.append(value.name))
    assert seen == [v.name for node in graph.nodes for v in node.outputs]


QUANTIZED_GRAPHS = quantized_graphs()


@given(st.data())
def test_each_integer_is_within_a_step_of_the_float_meaning_of_its_operands(data: st.DataObject) -> None:
    graph = data.draw(QUANTIZED_GRAPHS)
    sample = data.draw(inputs(graph))
    seen = {v.name: graph.params[v.name] for v in graph.constants}
    seen |= {v.name: t for v, t in zip(graph.inputs, sample, strict=True)}
    run_integer(graph, sample, observe=lambda value, tensor: seen.update({value.name: tensor}))
    for node in graph.nodes:
        reals = node.op.reference(*(None if v is None else real(v, seen[v.name]) for v in node.inputs))
        for value, expected in zip(
            node.outputs, reals if isinstance(reals, tuple) else (reals,), strict=True
        ):
            grid = value.type.quantization
            if grid is None:
                assert_equivalent(seen[value.name].double(), expected, atol=0.0, rtol=1e-6)
            else:
                saturated = expected.clamp(
                    *grid.dequantize(torch.tensor([grid.qmin, grid.qmax]), dtype=torch.float64)
                )
                assert_equivalent(
                    real(value, seen[value.name]), saturated, atol=0.75 * grid.scale[0], rtol=1e-6
                )


def real(value: Value, tensor: torch.Tensor) -> torch.Tensor:
    grid = value.type.quantization
    return tensor.double() if grid is None else grid.dequantize(tensor, dtype=torch.float64)


@pytest.mark.parametrize(("given_inputs", "message"), [
    ([], "0 inputs for a graph that takes 1"),
    ([torch.zeros(1, 2, 5, 4)], r"input %x is \(1, 2, 5, 4\); the graph takes \(1, 2, 5, 5\)"),
])  # fmt: skip
def test_inputs_that_do_not_fit_are_refused(given_inputs: list[torch.Tensor], message: str) -> None:
    for interpreter in (run, run_integer):
        with pytest.raises(ShapeError, match=message):
            interpreter(CONV, given_inputs)


BATCHED = parse(
    """graph(%x: f32[2x3x4x4]) {
      const %w: f32[5x48]
      %p: f32[2x4x4x3] = permute{order=(0, 2, 3, 1)}(%x)
      %f: f32[2x48] = reshape{shape=(-1, 48)}(%p)
      %l: f32[2x5] = linear(%f, %w)
      %s: f32[2x5] = softmax{axis=1}(%l)
      return y: %s
    }""",
    fill=lambda v: torch.randn(v.type.shape, generator=torch.Generator().manual_seed(0)),
)


def test_other_batches_give_the_same_samples() -> None:
    x = torch.randn(6, 3, 4, 4)
    whole = run(verify(rebatch(BATCHED, 6)), [x])[0]
    parts = torch.cat([run(BATCHED, [x[i : i + 2]])[0] for i in (0, 2, 4)])
    assert_equivalent(whole, parts, atol=0.0, rtol=1e-6)


@pytest.mark.parametrize(("body", "message"), [
    ("%y: f32[24] = reshape{shape=(24,)}(%x)", r"batch 3 is impossible at %y: .*they do not fill \(24,\)"),
    ("%y: f32[12x2] = permute{order=(1, 0)}(%x)", r"output %y would have shape \(12, 3\) for batch 3"),
    ("""%t: f32[12x2] = permute{order=(1, 0)}(%x)
        %m: f32[12x12] = matmul(%t, %x)
        %y: f32[3x48] = reshape{shape=(3, 48)}(%m)""", "batch 3 is impossible at %m: .*, which mixes samples"),
    ("""%m: f32[] = mean(%x)
        %y: f32[2x12] = sub(%x, %m)""", "batch 3 is impossible at %m: .*, which mixes samples"),
    ("%y: f32[2x12] = add(%x, %c)", r"batch 3 is impossible at %y: .*do not broadcast"),
])  # fmt: skip
def test_graph_that_is_tied_to_its_batch_is_refused(body: str, message: str) -> None:
    constant = "const %c: f32[2x12]" if "%c" in body else ""
    graph = parse(f"graph(%x: f32[2x12]) {{ {constant} {body} return y: %y }}")
    with pytest.raises(ShapeError, match=message):
        rebatch(graph, 3)
