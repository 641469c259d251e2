"""Hand-written graph algorithms compared with those of networkx.

    python benchmarks/graph_algorithms.py

Components of 26,000 coupled labels, as many as a ResNet-50 has, and the removal of unused nodes in a rewrite.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import networkx
import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from fxpress.compiler import text_table
from fxpress.ir import Builder, Graph, TensorType, digraph, rewrite
from fxpress.ir.ops import Add, Relu

LABELS, NODES, ROUNDS = 26_000, 900, 5


def main() -> None:
    """Prints the table."""
    generator = np.random.default_rng(0)
    a, b = generator.integers(0, LABELS, (2, LABELS))
    graph, end = chain(NODES)

    def of_arrays() -> None:
        connected_components(coo_array((np.ones(LABELS), (a, b)), shape=(LABELS, LABELS)), directed=False)

    def of_networkx() -> None:
        pairs: networkx.Graph[int] = networkx.Graph()
        pairs.add_nodes_from(range(LABELS))
        pairs.add_edges_from(zip(a.tolist(), b.tolist(), strict=True))
        list(networkx.connected_components(pairs))

    rows = [
        (f"components of {LABELS:,} labels, scipy", of_arrays),
        (f"components of {LABELS:,} labels, networkx", of_networkx),
        (f"rewrite of {NODES} nodes, unused ones removed", lambda: rewrite(graph, lambda *_: None)),
        (
            f"ancestors in {NODES} nodes, networkx with its view",
            lambda: networkx.ancestors(digraph(graph), end),
        ),
    ]
    print(text_table(("algorithm", "ms"), [(name, f"{1e3 * least(work):.1f}") for name, work in rows]))


def chain(nodes: int) -> tuple[Graph, str]:
    """A chain of additions and activations, and the name of its result."""
    builder = Builder()
    x = y = builder.input("x", TensorType((1, 4)))
    for index in range(nodes):
        y = builder.add(Relu(), y) if index % 2 else builder.add(Add(), y, x)
    graph = builder.build([y])
    return graph, graph.outputs[0].name


def least(work: Callable[[], object]) -> float:
    """CPU seconds of the fastest of several runs."""
    found = []
    for _ in range(ROUNDS):
        start = time.process_time()
        work()
        found.append(time.process_time() - start)
    return min(found)


if __name__ == "__main__":
    main()
