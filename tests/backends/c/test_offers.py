"""Offers of kernels: costed by types alone, built once for the chosen one, of the size that they state."""

from __future__ import annotations

import runpy
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
import torch

from fxpress.backends.c import Machine
from fxpress.backends.c.kernels.base import Call, Offer, Site, form, kernels_of, packed
from fxpress.backends.c.kernels.costs import CoreCosts
from fxpress.backends.c.kernels.portable.block_sparse import block_sparse
from fxpress.backends.c.lower import lower
from fxpress.backends.c.plan.layout import Layout, channels_last
from fxpress.backends.c.plan.select import candidates, offers, select
from fxpress.ir import Graph, LazyTensor, Value, parse
from fxpress.specs import COutput, load_target

OPERATORS = runpy.run_path(str(Path(__file__).parent / "conftest.py"))["cases"]()
Fill = Callable[[Value], torch.Tensor]
NET = """
graph(%x: i8[1x8x16x16]<scale=0.05, zero=-3>) {
  const %w: i8[16x8x3x3]<scale=0.01, zero=0>
  const %d: i8[16x1x3x3]<scale=0.01, zero=0>
  const %p: i8[24x16x1x1]<scale=0.01, zero=0>
  const %l: i8[10x24]<scale=0.01, zero=0>
  %c: i8[1x16x16x16]<scale=0.5, zero=-128> = conv{padding=(1, 1, 1, 1), clamp=(0.0, inf)}(%x, %w)
  %e: i8[1x16x16x16]<scale=0.5, zero=-128> = conv{padding=(1, 1, 1, 1), groups=16}(%c, %d)
  %f: i8[1x24x16x16]<scale=0.5, zero=-1> = conv(%e, %p)
  %a: i8[1x24]<scale=0.5, zero=-1> = mean{axes=(2, 3)}(%f)
  %y: i8[1x10]<scale=0.5, zero=2> = linear(%a, %l)
  return y: %y
}"""


class _ReadError(Exception):
    pass


def _refuse() -> NoReturn:
    raise _ReadError


def _unread(graph: Graph) -> Graph:
    """The graph with constants that refuse to be read; int32 biases, by which sums are proven to fit, are kept."""
    lazy = {
        name: tensor
        if tensor.dtype == torch.int32
        else LazyTensor(tuple(tensor.shape), tensor.dtype, _refuse)
        for name, tensor in graph.params.items()
    }
    return replace(graph, params=lazy)


def _at_hand(graph: Graph, values: tuple[Value | None, ...]) -> tuple[Layout | None, ...]:
    return tuple(None if v is None or graph.is_constant(v) else channels_last(v.type.shape) for v in values)


@pytest.mark.parametrize("core", ["cortex-m4f", "cortex-m0plus"])
def test_no_weight_is_read_to_cost_a_kernel_of_all_weights(
    core: str, fill: Fill, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "fxpress.backends.c.plan.select.kernels_of",
        lambda name: tuple(one for one in kernels_of(name) if one is not block_sparse),
    )
    machine = Machine.of(load_target(core))
    read, offered = set(), 0
    for name, text in OPERATORS.items():
        graph = _unread(parse(text, fill=fill))
        for node in graph.nodes:
            try:
                found, _ = offers(Site(node, graph, _at_hand(graph, node.inputs), machine))
            except _ReadError:
                read.add(name)
                continue
            offered += len(found)
            for one in found:
                CoreCosts.of(machine).cost(one, form(node))
                if one.weight_bytes:
                    with pytest.raises(_ReadError):
                        one.build()
    assert offered > 300
    assert all("weights of 16 bits" in name for name in read)  # whose sums fit int32 by their values alone


def test_the_chosen_offer_of_each_node_is_built_once_and_no_other(fill: Fill) -> None:
    graph, machine = parse(NET, fill=fill), Machine.of(load_target("cortex-m4f"))
    known = candidates(graph, machine)
    alternatives: Counter[int] = Counter()
    built: Counter[tuple[int, str]] = Counter()

    def build(index: int, offer: Offer) -> tuple[Call, ...]:
        built[index, offer.kernel] += 1
        return offer.build()

    def counted(index: int, coded: bool, at_hand: tuple[Layout | None, ...]) -> tuple[Offer, ...]:
        found = known(index, coded, at_hand)
        alternatives[index] = len(found)
        return tuple(replace(one, build=partial(build, index, one)) for one in found)

    layouts = [tuple(channels_last(v.type.shape) for v in values) for values in (graph.inputs, graph.outputs)]
    program = select(graph, machine, counted, inputs=layouts[0], outputs=layouts[1])
    steps = [step for step in program.steps if step.node is not None]
    assert built == {(index, step.offer.kernel): 1 for index, step in enumerate(steps)}
    assert min(alternatives.values()) > 1


def test_weights_are_packed_once_although_kernels_are_chosen_anew_to_fit_the_flash(fill: Fill) -> None:
    graph, target = parse(NET, fill=fill), load_target("cortex-m4f")
    reads: Counter[str] = Counter()

    def read(name: str) -> torch.Tensor:
        reads[name] += 1
        return graph.params[name]

    lazy = {
        name: LazyTensor(tuple(tensor.shape), tensor.dtype, partial(read, name))
        for name, tensor in graph.params.items()
    }
    lowered = lower(replace(graph, params=lazy), COutput(), target)
    once = dict(reads)
    reads.clear()
    small = target.model_copy(update={"flash": lowered.prediction.flash_bytes // 2})
    assert lower(replace(graph, params=lazy), COutput(), small).prediction.flash_bytes > small.flash
    assert all(reads[name] <= 2 * count for name, count in once.items())


def test_arrays_of_other_sizes_than_the_offer_states_are_refused() -> None:
    with pytest.raises(AssertionError):
        packed({"weights": 8}, [np.zeros(3, np.int32)])
