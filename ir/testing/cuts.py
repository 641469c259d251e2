"""A check of couplings: channels removed at random, and the cut graph held against the masked one.

check_cut(graph, inputs, seed=0)        # AssertionError or ShapeError where the coupling is wrong
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..coupling import couple
from ..cutting import cut_graph, deviation, run_masked
from ..graph import Builder, Graph
from ..interpret import run
from ..ops.binary import Mul
from ..ops.reduce import Sum
from ..tensor_type import DType
from ..text import dump
from ..verify import verify

ROUNDING = {DType.F32: 1e-4, DType.F64: 1e-9}  # of a few nodes on numbers of order 1 to 30


def check_cut(graph: Graph, inputs: Sequence[Tensor], *, seed: int) -> int:
    """Remove random units; the cut graph must verify and equal the masked one. The number of units removed."""
    coupling = couple(graph)
    kept = coupling.kept(random_removal(coupling.groups, seed=seed))
    cut = verify(cut_graph(kept))
    bound = max(ROUNDING.get(v.type.dtype, 0.0) for v in graph.outputs)
    error = deviation(run(cut, inputs), run_masked(kept, inputs))
    assert error <= bound, f"sliced and masked differ by {error:.1e}:\n{dump(graph)}"
    return int(kept.removed.sum())


def random_removal(groups: np.ndarray, *, seed: int) -> np.ndarray:
    """Units to remove: a random part of each group, never all of it."""
    rng = np.random.default_rng(seed)
    removed = np.zeros(len(groups), dtype=bool)
    for group in np.unique(groups):
        units = np.flatnonzero(groups == group)
        removed[rng.choice(units, size=rng.integers(0, len(units)), replace=False)] = True
    return removed


def opened(graph: Graph, inputs: Sequence[Tensor]) -> tuple[Graph, list[Tensor]]:
    """The graph with float inputs as constants and weighted sums as outputs, so that all channels may go."""
    fed = {v.name: t for v, t in zip(graph.inputs, inputs, strict=True) if v.type.dtype.is_floating}
    names = [value.name for node in graph.nodes for value in node.outputs]
    builder = Builder(params={**graph.params, **fed}, reserved=names)
    rest = [(v, t) for v, t in zip(graph.inputs, inputs, strict=True) if v.name not in fed]
    for value, _ in rest:
        builder.input(value.name, value.type)
    for node in graph.nodes:
        builder.keep(node, node.inputs)
    generator = torch.Generator().manual_seed(0)
    outputs = []
    for value in graph.outputs:
        if value.type.dtype.is_floating:
            mix = torch.randn(value.type.shape, generator=generator).to(value.type.dtype.torch)
            outputs.append(builder.add(Sum(), builder.add(Mul(), value, builder.constant("mix", mix))))
        else:
            outputs.append(value)
    return verify(builder.build(outputs)), [tensor for _, tensor in rest]
