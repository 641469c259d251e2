"""The properties of a rewrite, over random graphs, for each pass and each rule of fusion alone."""

from __future__ import annotations

from itertools import chain
from random import Random

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from fxpress.ir import DType, Graph, Value, dump, parse, run, run_integer
from fxpress.ir.testing import check_rewrite, drawn_constant, graphs, quantized_graphs
from fxpress.ir.testing.variants import canonical, renamed
from fxpress.passes import Context, find_pass
from fxpress.passes.fuse import RULES
from fxpress.passes.pattern import Rule, apply_rule
from fxpress.specs.options import CleanOptions, FuseOptions, QuantizeOptions, RemoveDeadChannelsOptions

DOUBLE = graphs(dtype=DType.F64)


def clean(graph: Graph) -> Graph:
    return find_pass("clean")(graph, CleanOptions()).graph


def fuse(graph: Graph) -> Graph:
    return find_pass("fuse")(graph, FuseOptions()).graph


def remove_dead_channels(graph: Graph) -> Graph:
    return find_pass("remove_dead_channels")(graph, RemoveDeadChannelsOptions()).graph


def test_clean_has_the_properties_of_a_clean_up() -> None:
    check_rewrite(clean, graphs=DOUBLE, tolerance=1e-12, normalizes=True)


def test_fuse_keeps_the_function_to_the_last_digits() -> None:
    check_rewrite(fuse, graphs=DOUBLE, tolerance=1e-12)


def test_fuse_keeps_the_function_in_single_precision() -> None:
    check_rewrite(fuse, tolerance=1e-5)


def test_clean_and_fuse_normalize_together() -> None:
    check_rewrite(lambda graph: fuse(clean(graph)), graphs=DOUBLE, tolerance=1e-12, normalizes=True)


FIRES = {
    "magnitude": """
graph(%a: f64[2x3], %b: f64[2x3]) {
  %p: f64[2x3] = pow{exponent=2.0}(%a)
  %q: f64[2x3] = pow{exponent=2.0}(%b)
  %s: f64[2x3] = add(%p, %q)
  %r: f64[2x3] = sqrt(%s)
  %t: f64[2x3] = mul(%a, %a)
  %u: f64[2x3] = mul(%b, %b)
  %v: f64[2x3] = add(%t, %u)
  %w: f64[2x3] = sqrt(%v)
  return powers: %r, products: %w
}""",
    "fold_pad": """
graph(%x: f64[1x2x4x4]) {
  const %w: f64[3x2x3x3]
  %p: f64[1x2x6x5] = pad{padding=(0, 0, 0, 0, 1, 1, 0, 1)}(%x)
  %c: f64[1x3x4x3] = conv{stride=(1, 1), padding=(0, 0, 0, 0), dilation=(1, 1)}(%p, %w)
  return output: %c
}""",
    "fold_batchnorm": """
graph(%x: f64[1x2x6]) {
  const %w: f64[3x2x3]
  const %gamma: f64[3]
  const %beta: f64[3]
  const %mean: f64[3]
  const %var: f64[3]
  %c: f64[1x3x4] = conv{stride=(1,), padding=(0, 0), dilation=(1,)}(%x, %w)
  %n: f64[1x3x4] = batch_norm(%c, %gamma, %beta, %mean, %var)
  return output: %n
}""",
    "product": """
graph(%x: f64[2x4]) {
  const %w: f64[4x3]
  %y: f64[2x3] = matmul(%x, %w)
  return output: %y
}""",
    "added_bias": """
graph(%x: f64[2x4]) {
  const %w: f64[3x4]
  const %b: f64[3]
  %p: f64[2x3] = linear(%x, %w)
  %y: f64[2x3] = add(%p, %b)
  return output: %y
}""",
    "merge_linear": """
graph(%x: f64[2x6]) {
  const %w: f64[3x6]
  const %v: f64[2x3]
  %a: f64[2x3] = linear(%x, %w)
  %b: f64[2x2] = linear(%a, %v)
  return output: %b
}""",
    "merge_conv": """
graph(%x: f64[1x2x4x4]) {
  const %w: f64[4x2x1x1]
  const %v: f64[2x4x1x1]
  %a: f64[1x4x4x4] = conv{stride=(1, 1), padding=(0, 0, 0, 0), dilation=(1, 1)}(%x, %w)
  %b: f64[1x2x4x4] = conv{stride=(1, 1), padding=(0, 0, 0, 0), dilation=(1, 1)}(%a, %v)
  return output: %b
}""",
    "fuse_residual": """
graph(%x: f64[1x4x6]) {
  const %w: f64[4x4x3]
  %c: f64[1x4x6] = conv{stride=(1,), padding=(1, 1), dilation=(1,)}(%x, %w)
  %s: f64[1x4x6] = add(%c, %x)
  return output: %s
}""",
}


def drawn_statistics(value: Value) -> Tensor:
    drawn = drawn_constant(value)
    return drawn.abs() + 0.5 if value.name == "var" else drawn


@pytest.mark.parametrize("rule", list(chain.from_iterable(RULES.values())), ids=lambda rule: rule.name)
def test_each_rule_of_fusion_keeps_the_function(rule: Rule) -> None:
    around = [parse(FIRES[rule.name], fill=drawn_statistics)] if rule.name in FIRES else []
    check_rewrite(
        lambda graph: apply_rule(graph, rule)[0],
        graphs=DOUBLE,
        tolerance=1e-12,
        examples=50,
        around=around,
        changes=8 if around else 3,
    )


LAYERED_OPS = (
    "conv",
    "conv_transpose",
    "linear",
    "relu",
    "add",
    "mul",
    "concat",
    "reshape",
    "max_pool",
    "avg_pool",
)


@st.composite
def graphs_with_zero_weights(draw: st.DrawFn) -> Graph:
    """Integer graphs in which whole rows and columns of weights are zero, so that channels die."""
    graph = draw(quantized_graphs(ops=LAYERED_OPS))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1000)))
    params = {}
    for name, tensor in graph.params.items():
        if tensor.dtype == torch.int8 and tensor.ndim > 1:
            shape = [(n if axis < 2 else 1) for axis, n in enumerate(tensor.shape)]
            rows, columns = (torch.rand(n, generator=generator) < 0.6 for n in shape[:2])
            kept = rows[:, None] & columns
            params[name] = tensor * kept.view(shape)
    return graph.with_params(params)


def test_removal_of_dead_channels_keeps_every_integer() -> None:
    check_rewrite(remove_dead_channels, graphs=graphs_with_zero_weights(), tolerance=0.0)


def test_clean_keeps_every_integer() -> None:
    check_rewrite(clean, graphs=quantized_graphs(), tolerance=0.0, examples=50)


def quantize(graph: Graph, seed: int = 0) -> Graph:
    generator = torch.Generator().manual_seed(seed)
    samples = [tuple(torch.randn(v.type.shape, generator=generator) for v in graph.inputs) for _ in range(6)]
    return find_pass("quantize")(graph, QuantizeOptions(), Context(calibration=samples)).graph


@settings(deadline=None, suppress_health_check=list(HealthCheck))
@given(graphs(), st.integers(0, 99))
def test_any_network_quantizes_to_integers_that_run_on_any_input(graph: Graph, seed: int) -> None:
    integer = quantize(fuse(graph), seed)
    assert parse(dump(integer), params=integer.params) == integer
    assert [(v.type, n) for v, n in zip(integer.outputs, integer.output_names, strict=True)] == [
        (v.type, n) for v, n in zip(graph.outputs, graph.output_names, strict=True)
    ]
    for scale in (0.0, 1.0, 1e6):
        run_integer(integer, [torch.full(v.type.shape, scale) for v in graph.inputs])


@settings(deadline=None, suppress_health_check=list(HealthCheck))
@given(graphs(ops=LAYERED_OPS), st.integers(0, 99))
def test_integers_lie_within_a_few_steps_of_the_rounded_reals(graph: Graph, seed: int) -> None:
    integer = quantize(fuse(graph), seed)
    generator = torch.Generator().manual_seed(seed)
    inputs = [torch.randn(v.type.shape, generator=generator) for v in graph.inputs]
    reals = run(integer, inputs)
    for value, x, y in zip(integer.outputs, reals, run_integer(integer, inputs), strict=True):
        node = integer.producers.get(value.name)
        if node is None or node.op.name != "dequantize":
            continue
        step = node.operands[0].type.quantization.scale[0]
        assert (x - y).abs().max() <= step * 2 * len(integer.nodes)


@settings(deadline=None, suppress_health_check=list(HealthCheck))
@given(graphs())
def test_a_network_gives_the_same_integers_whatever_its_values_are_called(graph: Graph) -> None:
    plain, other = quantize(fuse(graph)), quantize(fuse(renamed(graph, "another {}".format)))
    assert canonical(plain) == canonical(other)


@settings(deadline=None, suppress_health_check=list(HealthCheck))
@given(graphs())
def test_rules_of_fusion_that_do_not_meet_commute(graph: Graph) -> None:
    pad, norm = RULES["pad"][0], RULES["batchnorm"][0]
    one = apply_rule(apply_rule(graph, pad)[0], norm)[0]
    assert canonical(one) == canonical(apply_rule(apply_rule(graph, norm)[0], pad)[0])


@settings(deadline=None, suppress_health_check=list(HealthCheck))
@given(graphs(), st.randoms(use_true_random=False))
def test_the_order_of_independent_nodes_does_not_matter(graph: Graph, random: Random) -> None:
    shuffled = reordered(graph, random)
    inputs = [torch.randn(v.type.shape, generator=torch.Generator().manual_seed(0)) for v in graph.inputs]
    for x, y in zip(run(fuse(graph), inputs), run(fuse(shuffled), inputs), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-4, equal_nan=True)
    assert len(fuse(graph).nodes) == len(fuse(shuffled).nodes)


def reordered(graph: Graph, random: Random) -> Graph:
    """The same nodes in another order that respects their operands."""
    ready = {v.name for v in (*graph.inputs, *graph.constants)}
    waiting, order = list(graph.nodes), []
    while waiting:
        possible = [n for n in waiting if all(v.name in ready for v in n.operands)]
        node = random.choice(possible)
        waiting.remove(node)
        order.append(node)
        ready.update(v.name for v in node.outputs)
    return Graph(graph.inputs, graph.outputs, tuple(order), graph.params, graph.output_names)


NORM = """
graph(%x: f32[2x3x4x4]) {
  const %w: f32[5x3x3x3]
  const %gamma: f32[5]
  const %beta: f32[5]
  const %mean: f32[5]
  const %var: f32[5]
  %c: f32[2x5x2x2] = conv(%x, %w)
  %n: f32[2x5x2x2] = batch_norm{eps=0.0}(%c, %gamma, %beta, %mean, %var)
  return output: %n
}"""


@pytest.mark.parametrize("gamma", [0.0, -1.5, 1.0])
def test_zero_and_negative_gamma_fold_and_a_neutral_norm_leaves_the_weights(gamma: float) -> None:
    params = {
        "w": torch.randn(5, 3, 3, 3, generator=torch.Generator().manual_seed(0)),
        "gamma": torch.full((5,), gamma),
        "beta": torch.zeros(5),
        "mean": torch.zeros(5),
        "var": torch.ones(5),
    }
    after = fuse(parse(NORM, params=params))
    assert [n.op.name for n in after.nodes] == ["conv"]
    assert torch.equal(after.params["w"], params["w"] * gamma)


def test_padding_shows_the_zero_point() -> None:
    graph = parse(
        "graph(%x: f32[1x1x3x3]) {\n const %w: f32[1x1x3x3]\n"
        " %y: f32[1x1x3x3] = conv{padding=(1, 1, 1, 1)}(%x, %w)\n return output: %y\n}",
        params={"w": torch.ones(1, 1, 3, 3)},
    )
    samples = [(torch.full((1, 1, 3, 3), 1.0 + i),) for i in range(4)]
    integer = find_pass("quantize")(graph, QuantizeOptions(), Context(calibration=samples)).graph
    (corner,) = run_integer(integer, [torch.full((1, 1, 3, 3), 4.0)])
    step = integer.nodes[-1].operands[0].type.quantization.scale[0]
    assert abs(float(corner[0, 0, 0, 0]) - 16.0) <= step
    assert abs(float(corner[0, 0, 1, 1]) - 36.0) <= step
