"""Properties of the emitted C over random graphs."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, assume, given, settings

from fxpress.backends.c.check import check
from fxpress.backends.c.emit import emit
from fxpress.ir import Graph, Value
from fxpress.ir.errors import OverflowBoundError
from fxpress.ir.testing import quantized_graphs
from fxpress.specs.outputs import COutput
from fxpress.specs.target import Target

SLOW_CHECKS = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]


def refused(graph: Graph, target: Target) -> bool:
    """Whether some operator has no kernel for these shapes, as three-dimensional pools have none."""
    return any(problem.code == "C702" for problem in check(graph, COutput(name="net"), target))


def renamed(graph: Graph) -> Graph:
    """The graph with other names for all values but inputs."""
    names = {v.name: f"v{i} */" for i, v in enumerate(v for node in graph.nodes for v in node.outputs)}

    def to(value: Value | None) -> Value | None:
        return None if value is None else Value(names.get(value.name, value.name), value.type)

    nodes = tuple(
        type(node)(node.op, tuple(map(to, node.inputs)), tuple(map(to, node.outputs)), node.source)
        for node in graph.nodes
    )
    return Graph(graph.inputs, tuple(map(to, graph.outputs)), nodes, graph.params, graph.output_names)


@settings(max_examples=20, deadline=None, suppress_health_check=SLOW_CHECKS)
@given(graph=quantized_graphs())
def test_random_integer_graphs_compute_the_bytes_of_the_interpreter(
    graph, cortex_m4, assert_equal_to_interpreter
):
    assume(not refused(graph, cortex_m4))
    try:
        assert_equal_to_interpreter(graph, target=cortex_m4, flags=("-O1",), seeds=2)
    except (
        OverflowBoundError
    ):  # the interpreter refuses these inputs; the compiler's proof would refuse the graph
        return


@pytest.mark.slow
@settings(max_examples=150, deadline=None, suppress_health_check=SLOW_CHECKS)
@given(graph=quantized_graphs(max_steps=8))
def test_many_random_integer_graphs_compute_the_bytes_of_the_interpreter(
    graph, cortex_m4, assert_equal_to_interpreter
):
    assume(not refused(graph, cortex_m4))
    try:
        assert_equal_to_interpreter(graph, target=cortex_m4, flags=("-O0",), seeds=2)
    except OverflowBoundError:
        return


@settings(max_examples=25, deadline=None, suppress_health_check=SLOW_CHECKS)
@given(graph=quantized_graphs())
def test_names_of_values_change_no_byte(graph, host):
    assume(not refused(graph, host))
    options = COutput(name="net", self_test=0)
    assert emit(graph, options, host).files == emit(renamed(graph), options, host).files


@settings(max_examples=25, deadline=None, suppress_health_check=SLOW_CHECKS)
@given(graph=quantized_graphs())
def test_a_dead_branch_changes_no_byte(graph, host):
    assume(not refused(graph, host))
    options = COutput(name="net", self_test=0)
    dead = tuple(
        type(node)(node.op, node.inputs, tuple(Value(f"dead {v.name}", v.type) for v in node.outputs))
        for node in graph.nodes
        if all(v.name in graph.params or v in graph.inputs for v in node.operands)
    )
    longer = Graph(graph.inputs, graph.outputs, (*dead, *graph.nodes), graph.params, graph.output_names)
    assert emit(graph, options, host).files == emit(longer, options, host).files
