"""Bugs planted in the passes, one at a time: the checks of our own tests must find each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from fxpress.ir import Builder, Graph, Value, parse
from fxpress.ir.testing import RewriteError, check_rewrite, graphs
from fxpress.passes import find_pass, pattern
from fxpress.passes.fuse.fold_batchnorm import FOLD_BATCHNORM, FOLD_BATCHNORM_BEFORE
from fxpress.passes.fuse.fold_pad import FOLD_PAD
from fxpress.passes.fuse.fuse_activation import FUSE_ACTIVATION
from fxpress.passes.fuse.fuse_residual import FUSE_RESIDUAL
from fxpress.passes.pattern import Match, Rule, apply_rule
from fxpress.passes.remove_dead_channels import dead_units
from fxpress.passes.remove_dead_channels.intervals import Interval
from fxpress.passes.weighted_layers import with_clamp
from fxpress.specs.options import RemoveDeadChannelsOptions


def without_condition(rule: Rule) -> Rule:
    return replace(rule, where=lambda match: None)


def keep_only_the_second_bounds(builder: Builder, match: Match) -> Value:
    producer, activation = match.nodes
    return builder.add(with_clamp(producer.op, activation.op.facts.bounds), *producer.inputs)


def forget_the_residual(builder: Builder, match: Match) -> Value:
    layer = match.nodes[0]
    return builder.add(layer.op, *layer.inputs)


@pytest.mark.parametrize(
    ("wrong", "ops"),
    [
        (without_condition(FOLD_BATCHNORM), ("conv", "batch_norm", "linear", "relu")),
        (without_condition(FOLD_BATCHNORM_BEFORE), ("conv", "batch_norm")),
        (without_condition(FOLD_PAD), ("conv", "pad")),
        (without_condition(FUSE_RESIDUAL), ("conv", "linear", "add")),
        (replace(FUSE_ACTIVATION, rewrite=keep_only_the_second_bounds), ("add", "clamp", "relu")),
        pytest.param(
            replace(FUSE_RESIDUAL, rewrite=forget_the_residual),
            ("conv", "linear", "add"),
            marks=pytest.mark.slow,
        ),
    ],
    ids=lambda value: value.name if isinstance(value, Rule) else "",
)
def test_a_rule_without_its_condition_or_with_a_wrong_result_is_found(
    wrong: Rule, ops: tuple[str, ...]
) -> None:
    with pytest.raises(RewriteError):
        check_rewrite(
            lambda graph: apply_rule(graph, wrong)[0], graphs=graphs(ops=ops), tolerance=1e-5, examples=400
        )


def test_fusion_into_a_layer_with_another_use_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pattern._Uses, "is_single", lambda self, value: True)
    strategy = graphs(ops=("conv", "relu", "add", "linear"))

    def grows(graph: Graph) -> Graph:
        after = apply_rule(graph, FUSE_ACTIVATION)[0]
        assert sum(n.macs for n in after.nodes) <= sum(n.macs for n in graph.nodes), "work is done twice"
        return after

    with pytest.raises(RewriteError, match="work is done twice"):
        check_rewrite(grows, graphs=strategy, tolerance=1e-5, examples=400)


PADDED = """
graph(%x: f32[1x1x4x4]) {
  const %w1: i8[2x1x1x1]<scale=0.01, zero=0>
  const %b1: i32[2]<scale=0.0001, zero=0>
  const %w2: i8[1x2x3x3]<scale=0.01, zero=0>
  %q: i8[1x1x4x4]<scale=0.01, zero=0> = quantize(%x)
  %c: i8[1x2x4x4]<scale=0.01, zero=-128> = conv(%q, %w1, %b1)
  %d: i8[1x1x4x4]<scale=0.05, zero=0> = conv{padding=(1, 1, 1, 1)}(%c, %w2)
  %y: f32[1x1x4x4] = dequantize(%d)
  return output: %y
}"""


def remove(graph: Graph) -> Graph:
    return find_pass("remove_dead_channels")(graph, RemoveDeadChannelsOptions()).graph


def padded(constant: int) -> Graph:
    """The second channel of %c is constant."""
    params = {
        "w1": torch.tensor([64, 0], dtype=torch.int8).view(2, 1, 1, 1),
        "b1": torch.tensor([0, constant], dtype=torch.int32),
        "w2": torch.full((1, 2, 3, 3), 64, dtype=torch.int8),
    }
    return parse(PADDED, params=params)


def fold_in_spite_of_padding(op: object, x: Value, interval: Interval) -> torch.Tensor:
    return interval.is_constant


def grow_nothing(readers: object, live: object) -> bool:
    return False


@pytest.mark.parametrize(("name", "wrong"), [("_folds", fold_in_spite_of_padding), ("_grow", grow_nothing)])
def test_channels_that_go_wrongly_are_found_before_the_graph_leaves_the_pass(
    name: str, wrong: Callable[..., object], monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = padded(5000)
    assert remove(graph) is graph
    monkeypatch.setattr(dead_units, name, wrong)
    with pytest.raises(AssertionError, match='removal of dead channels changed output "output"'):
        remove(graph)
