"""Operators of packages other than torch that a graph calls, and their consequences for the user."""

from __future__ import annotations

from collections.abc import Iterator

from ..ir import Graph
from ..ir.ops.call import TorchCall
from .operators import load_operators

_NAMESPACES_OF_TORCH = frozenset(
    {"aten", "prims", "prim", "quantized", "_quantized", "quantized_decomposed"}
    | {"mkl", "mkldnn", "onednn", "sparse", "inductor", "inductor_prims"}
)


def package_notes(graph: Graph, *, has_module: bool) -> Iterator[str]:
    """Notes on operators of packages that the graph calls, and on operators that cannot be loaded.

    With `has_module` a torch module is emitted, which calls them.
    """
    if any(isinstance(node.op, TorchCall) for node in graph.nodes):
        yield from load_operators()
    seen = set()
    for node in graph.nodes:
        if not isinstance(node.op, TorchCall) or node.op.target in seen:
            continue
        namespace = node.op.target.partition(".")[0]
        if namespace in _NAMESPACES_OF_TORCH:
            continue
        seen.add(node.op.target)
        needs = f"; the emitted torch module needs the package that defines torch.ops.{namespace}, imported before it"
        yield (
            f"{node.op.target} ({node.source}) is an operator of a package: no pass can rewrite it, and weights that "
            f"it reads stay float{needs if has_module else ''}; write it with functions of torch to avoid that"
        )
