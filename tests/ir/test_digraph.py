"""The view of a graph for networkx."""

import re
from pathlib import Path

import networkx as nx
from hypothesis import given

from fxpress.ir import Graph, digraph, parse
from fxpress.ir.testing import graphs

GRAPH = parse(
    "graph(%x: f32[2]) { const %w: f32[2] %a: f32[2] = add(%x, %w) %b: f32[2] = mul(%a, %a) return y: %b }"
)


def test_values_and_nodes_are_vertices_and_operands_are_edges() -> None:
    view = digraph(GRAPH)
    assert set(view) == {"x", "w", "a", "b", 0, 1}
    assert [view.nodes[name]["constant"] for name in ("x", "w", "a")] == [False, True, False]
    assert view.nodes[1]["node"] is GRAPH.nodes[1] and view.nodes["a"]["value"] == GRAPH.nodes[0].output
    assert set(view.edges) == {("x", 0), ("w", 0), (0, "a"), ("a", 1), (1, "b")}
    assert view.edges["a", 1]["places"] == (0, 1)


def test_the_page_lists_every_attribute() -> None:
    view, page = digraph(GRAPH), (Path(__file__).parents[2] / "docs" / "networkx.md").read_text()
    table = [line.split("|") for line in page.splitlines() if line.startswith("|")][2:]
    listed = [set(re.findall(r"(?:^|; )`(\w+)`:", row[3].strip())) for row in table]
    assert listed == [
        set(view.nodes["w"]),
        set(view.nodes[0]),
        set(view.edges["w", 0]),
        set(view.edges[0, "a"]),
    ]
    assert not view.graph


@given(graphs())
def test_the_order_of_nodes_is_a_topological_one(graph: Graph) -> None:
    view = digraph(graph)
    assert nx.is_directed_acyclic_graph(view)
    for index, node in enumerate(graph.nodes):
        assert {v.name for v in node.operands} == set(view.predecessors(index))
        assert {v.name for v in node.outputs} == set(view.successors(index))
        before = {vertex for vertex in nx.ancestors(view, index) if isinstance(vertex, int)}
        assert all(other < index for other in before)
