"""Sliced equals masked, for every operator and over random graphs; wrong couplings do not survive it."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fxpress.ir import OPERATORS, Builder, DType, Graph, ShapeError, Value, dump, parse, run, verify
from fxpress.ir.coupling import couple
from fxpress.ir.cutting import changed_statistics, cut_graph, deviation, run_masked
from fxpress.ir.ops.binary import Mul
from fxpress.ir.ops.channels import Axes, CouplingCall
from fxpress.ir.ops.conv import Conv
from fxpress.ir.ops.reduce import Sum
from fxpress.ir.ops.shape import Reshape
from fxpress.ir.ops.slicing import Concat
from fxpress.ir.testing import assert_equivalent, examples, graphs, inputs

CONVERSIONS = {"quantize", "dequantize", "requantize"}
NAMES = sorted(OPERATORS.keys() - CONVERSIONS)
few = settings(max_examples=max(10, settings.default.max_examples // 4))
ROUNDING = 1e-9  # float64 graphs of a few nodes, weights and inputs of order 1


def doubled(graph: Graph) -> Graph:
    """The graph with float64 constants; what it computes follows them."""
    params = {n: t.double() if t.dtype == torch.float32 else t for n, t in graph.params.items()}
    return replace(graph, params=params)


def opened(graph: Graph, samples: list[Tensor]) -> Graph:
    """The graph with float inputs as constants and weighted sums as outputs, so that all channels may go."""
    fed = {v.name: t for v, t in zip(graph.inputs, samples, strict=True) if v.type.dtype is DType.F32}
    builder = Builder(params={**graph.params, **fed}, reserved=[v.name for n in graph.nodes for v in n.outputs])
    for value in graph.inputs:
        if value.name not in fed:
            builder.input(value.name, value.type)
    for node in graph.nodes:
        builder.keep(node, node.inputs)
    generator = torch.Generator().manual_seed(0)
    outputs = []
    for value in graph.outputs:
        if value.type.dtype is DType.F32:
            weights = builder.constant("mix", torch.randn(value.type.shape, generator=generator))
            value = builder.add(Sum(), builder.add(Mul(), value, weights))
        outputs.append(value)
    return verify(builder.build(outputs))


def removal(groups: np.ndarray, seed: int) -> np.ndarray:
    """Units to remove: a random part of each group, never all of it."""
    rng = np.random.default_rng(seed)
    removed = np.zeros(len(groups), dtype=bool)
    for group in np.unique(groups):
        units = np.flatnonzero(groups == group)
        removed[rng.choice(units, size=rng.integers(0, len(units)), replace=False)] = True
    return removed


def check_cut(graph: Graph, samples: list[Tensor], seed: int) -> int:
    """Cut at random, verify, and compare with the masked graph; the number of units removed."""
    coupling = couple(graph)
    kept = coupling.kept(removal(coupling.groups, seed))
    cut = verify(cut_graph(kept))
    wide = [t.double() if t.dtype == torch.float32 else t for t in samples]
    kept = replace_graph(kept.coupling, doubled(graph)).kept(kept.removed)
    error = deviation(run(cut_graph(kept), wide), run_masked(kept, wide))
    assert error <= ROUNDING, f"sliced and masked differ by {error:.1e}:\n{dump(graph)}"
    return int(kept.removed.sum())


def replace_graph(coupling, graph):  # noqa: ANN001, ANN201
    return replace(coupling, graph=graph)
