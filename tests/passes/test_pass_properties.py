"""The properties of a rewrite, over random graphs, for each pass and each rule of fusion alone."""

from __future__ import annotations

from itertools import chain

import pytest
import torch
from hypothesis import strategies as st

from fxpress.ir import DType, Graph
from fxpress.ir.testing import check_rewrite, graphs, quantized_graphs
from fxpress.passes import find_pass
from fxpress.passes.fuse import RULES
from fxpress.passes.pattern import Rule, apply_rule
from fxpress.specs.options import CleanOptions, FuseOptions, RemoveDeadChannelsOptions

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


@pytest.mark.parametrize("rule", list(chain.from_iterable(RULES.values())), ids=lambda rule: rule.name)
def test_each_rule_of_fusion_keeps_the_function(rule: Rule) -> None:
    check_rewrite(lambda graph: apply_rule(graph, rule)[0], graphs=DOUBLE, tolerance=1e-12, examples=50)


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
