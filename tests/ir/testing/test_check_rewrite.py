"""`check_rewrite` passes right rewrites, and kills each planted wrong one with a small graph."""

import re
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from fxpress.ir import Builder, DType, Graph, Node, TensorType, Value, parse, rewrite, run
from fxpress.ir.ops.activation import Clamp, Relu
from fxpress.ir.ops.binary import Add, Mul
from fxpress.ir.ops.conv import Conv
from fxpress.ir.ops.linear import Linear
from fxpress.ir.ops.norm import BatchNorm
from fxpress.ir.ops.pad import Pad
from fxpress.ir.ops.quantize import Dequantize, Quantize
from fxpress.ir.ops.shape import Copy, Reshape
from fxpress.ir.testing import (
    RewriteError,
    check_rewrite,
    drawn_constant,
    graphs,
    graphs_around,
    inputs,
    quantized_graphs,
)

EXAMPLES = 120
INF = float("inf")
DOUBLE = graphs(dtype=DType.F64, ops=("conv", "batch_norm", "relu", "clamp", "add"))
VECTORS = graphs(ops=("linear", "relu", "reshape"), input_types=[TensorType((1, 2))], max_steps=3)
Operands = tuple[Value | None, ...]
Result = Value | tuple[Value, ...] | None


def walking(visit: Callable[[Graph, Builder, Node, Operands], Result]) -> Callable[[Graph], Graph]:
    """A rewrite by a visitor that also sees the graph before."""
    return lambda graph: rewrite(graph, lambda *seen: visit(graph, *seen))


def producer(graph: Graph, node: Node) -> Node | None:
    return graph.producers.get(node.operands[0].name)


def fold_batch_norm(graph: Graph, builder: Builder, node: Node, operands: Operands) -> Result:
    conv = producer(graph, node)
    if not isinstance(node.op, BatchNorm) or conv is None or not isinstance(conv.op, Conv):
        return None
    if conv.op.clamp is not None or conv.optional("residual") is not None or graph.use_count(conv.output) > 1:
        return None
    weight, bias = folded_constants(graph, conv, node)
    x = builder.producer(operands[0]).inputs[0]
    return builder.add(conv.op, x, builder.constant("w", weight), builder.constant("b", bias))


def folded_constants(graph: Graph, conv: Node, norm: Node) -> tuple[torch.Tensor, torch.Tensor]:
    weight, bias = graph.tensor(conv.operand("weight")), conv.optional("bias")
    gamma, beta, mean, var = (None if v is None else graph.tensor(v) for v in norm.inputs[1:])
    factor = torch.rsqrt(var + norm.op.eps) * (1.0 if gamma is None else gamma)
    offset = (0.0 if bias is None else graph.tensor(bias)) - mean
    shifted = offset * factor + (0.0 if beta is None else beta)
    return weight * factor.view(-1, *[1] * (weight.ndim - 1)), shifted


def test_identity_passes_on_float_and_integer_graphs() -> None:
    check_rewrite(lambda graph: graph, tolerance=0.0, changes=0)
    check_rewrite(lambda graph: graph, tolerance=0.0, graphs=quantized_graphs(), changes=0)


def test_a_rewrite_that_changes_too_few_graphs_fails() -> None:
    with pytest.raises(RewriteError, match=r"changed 0 of 20 random graphs.*at least 3 are required"):
        check_rewrite(lambda graph: graph, tolerance=0.0, examples=20)


THREE_RELUS = parse("""
graph(%x: f32[1x3]) {
  %a: f32[1x3] = relu(%x)
  %b: f32[1x3] = relu(%a)
  %c: f32[1x3] = relu(%b)
  return output: %c
}""")


def merge_three_relus(graph: Graph, builder: Builder, node: Node, operands: Operands) -> Result:
    before = producer(graph, node)
    first = None if before is None else producer(graph, before)
    chain = (node, before, first)
    return operands[0] if all(n is not None and isinstance(n.op, Relu) for n in chain) else None


def test_graphs_around_a_pattern_reach_what_random_graphs_do_not() -> None:
    sparse = graphs(ops=("linear", "relu", "softmax", "reshape", "sub"))
    with pytest.raises(RewriteError, match="proves little"):
        check_rewrite(walking(merge_three_relus), tolerance=0.0, graphs=sparse, examples=20)
    check_rewrite(walking(merge_three_relus), tolerance=0.0, graphs=sparse, around=[THREE_RELUS], examples=20)


@given(graphs_around(THREE_RELUS), st.data())
def test_graphs_around_a_pattern_hold_it_and_run(graph: Graph, data: st.DataObject) -> None:
    relus = [node for node in graph.nodes if isinstance(node.op, Relu)]
    assert any(merge_three_relus(graph, Builder(), node, node.operands) is not None for node in relus)
    assert len(run(graph, data.draw(inputs(graph)))) == len(graph.outputs)


def test_right_folding_of_batch_norm_passes_in_float64() -> None:
    check_rewrite(walking(fold_batch_norm), tolerance=1e-12, graphs=DOUBLE, examples=EXAMPLES)


def fold_despite_second_use(graph: Graph) -> Graph:
    """Planted: the scaled convolution replaces the unscaled one for all its readers."""
    folded = {
        conv.output.name: (node, *folded_constants(graph, conv, node))
        for node in graph.nodes
        if isinstance(node.op, BatchNorm)
        and (conv := producer(graph, node)) is not None
        and isinstance(conv.op, Conv)
        and conv.op.clamp is None
        and conv.optional("residual") is None
    }

    def visit(builder: Builder, node: Node, operands: Operands) -> Result:
        if node.outputs[0].name in folded:
            _, weight, bias = folded[node.output.name]
            return builder.add(
                node.op, operands[0], builder.constant("w", weight), builder.constant("b", bias)
            )
        return operands[0] if any(node is norm for norm, *_ in folded.values()) else None

    return rewrite(graph, visit)


def merge_clamps_wrongly(graph: Graph, builder: Builder, node: Node, operands: Operands) -> Result:
    """Planted: of two clamps in a row the second one's bounds stay."""
    before = producer(graph, node)
    if isinstance(node.op, Clamp) and before is not None and isinstance(before.op, Clamp):
        return builder.add(node.op, builder.producer(operands[0]).inputs[0])
    return None


def pad_with_zero_bytes(_: Graph, builder: Builder, node: Node, operands: Operands) -> Result:
    """Planted: padding on integers puts in the byte 0 in place of the zero point."""
    grid = node.inputs[0].type.quantization if node.inputs[0] else None
    if not isinstance(node.op, Pad) or grid is None or node.op.mode != "constant":
        return None
    return builder.add(replace(node.op, value=float(grid.dequantize(torch.tensor(0)))), *operands)


def drop_scalar_operand(_: Graph, builder: Builder, node: Node, operands: Operands) -> Result:
    """Planted: an addend without dimensions is taken for nothing."""
    if isinstance(node.op, Add) and node.op.clamp is None and operands[1].type.shape == ():
        return operands[0]
    return None


def drop_broadcast_operand(_: Graph, builder: Builder, node: Node, operands: Operands) -> Result:
    """Planted: where one operand of a sum has the result's shape, the other is forgotten."""
    a, b = operands if isinstance(node.op, Add) else (None, None)
    if a is None or b is None or a.type.shape == b.type.shape or a.type != node.output.type:
        return None
    return a


def wrap_zero_point(_: Graph, builder: Builder, node: Node, operands: Operands) -> Result:
    """Planted: a zero point wraps at the end of int8."""
    grid = node.outputs[0].type.quantization
    if not isinstance(node.op, Quantize) or grid is None:
        return None
    wrapped = (grid.zero_point[0] + 256 + 128 + 100) % 256 - 128
    moved = builder.add(node.op, *operands, quantization=replace(grid, zero_point=(wrapped,)))
    return builder.add(Quantize(), builder.add(Dequantize(), moved), quantization=grid)


def fuse_away_an_output(graph: Graph, builder: Builder, node: Node, operands: Operands) -> Result:
    """Planted: counts readers, but forgets that the convolution's result may be an output."""
    before = producer(graph, node)
    if not isinstance(node.op, Relu) or before is None or not isinstance(before.op, Conv):
        return None
    if len(graph.users[before.output.name]) > 1 or before.op.clamp is not None:
        return None
    fused = builder.producer(operands[0])
    builder.release(fused.output.name)
    return builder.add(replace(before.op, clamp=(0.0, INF)), *fused.inputs, name=fused.output.name)


def scale_shared_weights(graph: Graph) -> Graph:
    """Planted: weights are brought to a largest element of 1, each once for every layer that reads it."""
    largest = {
        n.output.name: (n.inputs[1], graph.tensor(n.inputs[1]).abs().max())
        for n in graph.nodes
        if isinstance(n.op, Linear) and n.op == Linear() and len(n.inputs) == 2
    }
    largest = {name: found for name, found in largest.items() if found[1] > 1}
    tensors = dict(graph.params)
    for weight, factor in largest.values():
        tensors[weight.name] = tensors[weight.name] / factor

    def visit(builder: Builder, node: Node, operands: Operands) -> Result:
        if node.outputs[0].name not in largest:
            return None
        factor = builder.constant("factor", largest[node.output.name][1])
        return builder.add(Mul(), builder.keep(node, operands)[0], factor)

    return rewrite(graph.with_params(tensors), visit)


def drop_residual(_: Graph, builder: Builder, node: Node, operands: Operands) -> Result:
    """Planted: a rebuilt convolution forgets its fourth operand."""
    return builder.add(node.op, *operands[:3]) if isinstance(node.op, Conv) else None


def insert_copies(_: Graph, builder: Builder, node: Node, operands: Operands) -> Result:
    """Planted: not idempotent."""
    return builder.add(Copy(), builder.keep(node, operands)[0]) if isinstance(node.op, Relu) else None


def go_by_name(_: Graph, builder: Builder, node: Node, operands: Operands) -> Result:
    """Planted: the name of a value decides."""
    return operands[0] if node.outputs[0].name == "relu" else None


def change_tensors(graph: Graph) -> Graph:
    """Planted: constants are changed in place."""
    for value in graph.constants:
        graph.params[value.name].add_(1.0)
    return graph


def lose_output_names(graph: Graph) -> Graph:
    """Planted: outputs get names anew."""
    return Graph(
        graph.inputs,
        graph.outputs,
        graph.nodes,
        graph.params,
        tuple(f"o{i}" for i in range(len(graph.outputs))),
    )


def reorder_outputs(graph: Graph) -> Graph:
    """Planted: outputs sorted by name."""
    outputs = tuple(sorted(graph.outputs, key=lambda v: (v.type.shape, v.name)))
    return Graph(graph.inputs, outputs, graph.nodes, graph.params, graph.output_names)


def keep_stale_types(graph: Graph) -> Graph:
    """Planted: a reshape is removed, and later values keep their old types."""
    gone = {n.output.name: n.operands[0] for n in graph.nodes if isinstance(n.op, Reshape)}
    nodes = tuple(replace(n, inputs=tuple(v and gone.get(v.name, v) for v in n.inputs)) for n in graph.nodes)
    return Graph(graph.inputs, graph.outputs, nodes, graph.params, graph.output_names)


def raise_on_constants(_: Graph, builder: Builder, node: Node, operands: Operands) -> Result:
    """Planted: takes for granted that both operands were computed."""
    return None if not isinstance(node.op, Add) else builder.producer(operands[1]).outputs[:0] or None


def planted(
    rewrite: Callable[[Graph], Graph], strategy: SearchStrategy[Graph], most_nodes: int, fault: str
) -> Any:
    return pytest.param(rewrite, strategy, most_nodes, id=fault)


ADDS = graphs(ops=("add", "relu"))
CLAMPS = graphs(ops=("clamp", "relu", "add"), max_steps=3)
CONVS = graphs(ops=("conv", "relu"), max_steps=4)
LINEARS = graphs_around(
    parse(
        """
graph(%x: f64[1x2]) {
  const %w: f64[2x2]
  %a: f64[1x2] = linear(%x, %w)
  %b: f64[1x2] = linear(%a, %w)
  return output: %b
}""",
        fill=drawn_constant,
    ),
    ops=("linear",),
)
RESHAPES = graphs(ops=("reshape", "relu"))
PLANTED = [
    planted(
        fold_despite_second_use, DOUBLE, 3, "batch norm folded although the convolution has a second use"
    ),
    planted(walking(merge_clamps_wrongly), CLAMPS, 2, "clamps merged with other bounds"),
    planted(
        walking(pad_with_zero_bytes), quantized_graphs(ops=("pad", "relu")), 3, "padding with the byte 0"
    ),
    planted(walking(drop_scalar_operand), ADDS, 1, "a scalar operand dropped"),
    planted(walking(drop_broadcast_operand), ADDS, 1, "a broadcast operand dropped"),
    planted(walking(wrap_zero_point), quantized_graphs(ops=("relu", "sigmoid")), 3, "a zero point wraps"),
    planted(walking(fuse_away_an_output), CONVS, 2, "an output fused away"),
    planted(scale_shared_weights, LINEARS, 2, "a shared weight scaled twice"),
    planted(walking(drop_residual), CONVS, 2, "a residual dropped"),
    planted(walking(insert_copies), CONVS, 1, "not idempotent"),
    planted(walking(go_by_name), ADDS, 1, "names matter"),
    planted(change_tensors, VECTORS, 1, "constants changed in place"),
    planted(lose_output_names, VECTORS, 1, "output names lost"),
    planted(reorder_outputs, VECTORS, 2, "outputs in another order"),
    planted(keep_stale_types, RESHAPES, 2, "types not inferred again"),
    planted(walking(raise_on_constants), ADDS, 1, "raises"),
]


@pytest.mark.parametrize(("wrong", "strategy", "most_nodes"), PLANTED)
def test_planted_wrong_rewrite_is_killed_by_a_small_graph(
    wrong: Callable[[Graph], Graph], strategy: SearchStrategy[Graph], most_nodes: int
) -> None:
    with pytest.raises(RewriteError) as error:
        check_rewrite(wrong, tolerance=1e-12, graphs=strategy, examples=EXAMPLES)
    text = re.search(r"before:\n(graph\(.*?^}\n(?:@\d+ = .*\n)*)", str(error.value), re.DOTALL | re.MULTILINE)
    assert text is not None
    assert len(parse(text[1]).nodes) <= most_nodes, str(error.value)


def test_a_large_graph_around_which_others_are_grown_is_not_printed() -> None:
    layer = "  %y{0}: f32[1x4x6x6] = conv{{padding=(1, 1, 1, 1)}}(%y{1}, %w{0})\n"
    text = "graph(%y0: f32[1x4x6x6]) {\n" + "".join(f"  const %w{i}: f32[4x4x3x3]\n" for i in range(1, 61))
    text += "".join(layer.format(i, i - 1) for i in range(1, 61)) + "  return output: %y60\n}"
    pattern = parse(text, fill=drawn_constant)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(repr(graphs_around(pattern))) < 3000
        check_rewrite(lambda graph: graph, tolerance=0.0, around=[pattern], changes=0, examples=3)
