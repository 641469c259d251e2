"""Graphs, builders and rewriting."""

from dataclasses import FrozenInstanceError, replace

import pytest
import torch

from fxpress.ir import (
    Builder,
    Graph,
    Node,
    Precision,
    TensorType,
    Value,
    VerifyError,
    dump,
    parse,
    rewrite,
    verify,
)
from fxpress.ir.ops.activation import Relu
from fxpress.ir.ops.binary import Add
from fxpress.ir.ops.pool import MaxPool
from fxpress.ir.ops.shape import Permute

VECTOR = TensorType((2,))


def test_equal_steps_give_equal_graphs_with_names_from_operators() -> None:
    def built() -> Graph:
        builder = Builder()
        x = builder.input("x", VECTOR)
        w = builder.constant("x", torch.ones(2))
        return builder.build([builder.add(Relu(), builder.add(Add(), builder.add(Relu(), x), w))])

    assert built() == built()
    assert dump(built()) == dump(built())
    assert [v.name for n in built().nodes for v in n.outputs] == ["relu", "add", "relu_1"]
    assert list(built().params) == ["x_1"]


def test_build_drops_what_no_output_needs_and_keeps_inputs() -> None:
    builder = Builder()
    x, unused = builder.input("x", VECTOR), builder.input("unused", VECTOR)
    builder.add(Add(), builder.add(Relu(), x), builder.constant("w", torch.ones(2)))
    graph = builder.build([builder.add(Relu(), x, name="kept")])
    assert [n.output.name for n in graph.nodes] == ["kept"]
    assert graph.inputs == (x, unused) and not graph.params


def test_constants_derived_under_one_name_are_one_where_their_elements_are_equal() -> None:
    builder = Builder(params={"w": torch.ones(2)})
    value = builder.input("x", VECTOR)
    derived = [builder.derived_constant("w", torch.full((2,), number)) for number in (2.0, 3.0, 2.0)]
    assert [v.name for v in derived] == ["w_1", "w_2", "w_1"]
    other = builder.derived_constant("v", torch.full((2,), 2.0))
    for constant in (*derived, other):
        value = builder.add(Add(), value, constant)
    graph = verify(builder.build([value]))
    assert [n.operands[1].name for n in graph.nodes] == [
        "w",
        "w_2",
        "w",
        "v",
    ]  # w_1 in place of w, which is gone
    assert {name: float(t[0]) for name, t in graph.params.items()} == {"w": 2.0, "w_2": 3.0, "v": 2.0}


def test_derived_constants_leave_the_name_to_the_one_that_is_still_read() -> None:
    builder = Builder(params={"w": torch.ones(2)})
    x, w = builder.input("x", VECTOR), Value("w", VECTOR)
    derived = builder.derived_constant("w", torch.full((2,), 2.0))
    graph = verify(builder.build([builder.add(Add(), builder.add(Add(), x, w), derived)]))
    assert {name: float(t[0]) for name, t in graph.params.items()} == {"w": 1.0, "w_1": 2.0}


def test_trailing_absent_operands_are_left_out() -> None:
    builder = Builder()
    x = builder.input("x", TensorType((1, 1, 4, 4)))
    builder.append(MaxPool(), (x, None, None), (TensorType((1, 1, 2, 2)),))
    assert builder.build([builder.add(Relu(), x)]).nodes[0].inputs == (x,)


GRAPH = parse(
    """graph(%x: f32[2]) {
      const %w: f32[2]
      %a: f32[2] = add(%x, %w)
      %r: f32[2] = relu(%a)
      %s: f32[2] = add(%r, %r)
      return y: %s, r: %r
    }"""
)


def test_uses_count_each_reading_and_each_output() -> None:
    a, r, s = (node.output for node in GRAPH.nodes)
    assert [GRAPH.use_count(v) for v in (a, r, s)] == [1, 3, 1]
    assert len(GRAPH.users["r"]) == 2
    assert GRAPH.producers["r"].op == Relu()


def test_graphs_are_frozen_and_compare_by_content() -> None:
    with pytest.raises(FrozenInstanceError):
        GRAPH.inputs = ()
    with pytest.raises(TypeError):
        GRAPH.params["w"] = torch.ones(2)
    assert replace(GRAPH, params={"w": torch.zeros(2)}) == GRAPH
    assert replace(GRAPH, params={"w": torch.ones(2)}) != GRAPH
    assert replace(GRAPH, params={"w": torch.tensor([0.0, torch.nan])}) == replace(
        GRAPH, params={"w": torch.tensor([0.0, torch.nan])}
    )


def test_a_graph_is_shown_in_one_short_line_whatever_its_size() -> None:
    builder = Builder()
    value = builder.input("x", TensorType((64,)))
    for index in range(400):
        value = builder.add(Add(), value, builder.constant(f"w{index}", torch.full((64,), float(index))))
    graph = builder.build([value], output_names=["y"])
    assert repr(graph) == "<Graph of 400 nodes, 400 constants: (%x) -> (y)>"


def test_constants_can_be_replaced_and_others_are_refused() -> None:
    assert GRAPH.with_params({"w": torch.ones(2)}).tensor(GRAPH.constants[0]).tolist() == [1, 1]
    with pytest.raises(VerifyError, match="not constants of this graph: v"):
        GRAPH.with_params({"v": torch.ones(2)})


def test_rewriting_nothing_keeps_everything() -> None:
    assert rewrite(GRAPH, lambda builder, node, operands: None) == GRAPH


def test_bits_of_layers_are_kept_by_rewrites_and_replaced_one_by_one() -> None:
    chosen = GRAPH.with_precisions({"a": Precision(4), "b": Precision(8)})
    assert rewrite(chosen, lambda builder, node, operands: None) == chosen
    changed = chosen.with_precisions({"b": Precision(2, 16)})
    assert changed.precisions == {"a": Precision(4), "b": Precision(2, 16)}
    assert not GRAPH.precisions


def test_rewriting_replaces_drops_and_keeps_names() -> None:
    def visit(builder: Builder, node: Node, operands: tuple[Value | None, ...]) -> Value | None:
        return operands[0] if isinstance(node.op, Relu) else None

    after = verify(rewrite(GRAPH, visit))
    assert [n.output.name for n in after.nodes] == ["a", "s"]
    assert after.output_names == ("y", "r") and after.outputs[1].name == "a"


def test_kept_nodes_infer_their_types_anew() -> None:
    before = parse("graph(%x: f32[2x3]) { %p: f32[2x3] = relu(%x) %r: f32[2x3] = relu(%p) return y: %r }")

    def visit(builder: Builder, node: Node, operands: tuple[Value | None, ...]) -> Value | None:
        return builder.add(Permute((1, 0)), operands[0]) if node.output.name == "p" else None

    after = verify(rewrite(before, visit))
    assert after.outputs[0].type.shape == (3, 2)


def test_deep_chain_is_rewritten_without_recursion() -> None:
    builder = Builder()
    x = builder.input("x", VECTOR)
    for _ in range(5000):
        x = builder.add(Relu(), x)
    graph = verify(builder.build([x]))
    assert rewrite(graph, lambda builder, node, operands: None) == graph
    assert parse(dump(graph)) == graph
