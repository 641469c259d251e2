"""Checks of couplings: they raise AssertionError or ShapeError if a coupling is wrong.

check_cut(graph, inputs, seed=0)        # channels removed at random: the cut graph equals the masked one
check_separate(graph, inputs, seed=0)   # units at zero change no other channels, except where a node sums over them
check_closed(coupling)                  # groups keep a channel on every axis, each constant's cut is a rectangle
check_permutation(graph, inputs, seed=0, removed=...)   # renumbered channels: same function, same removal
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from ..builder import Builder
from ..coupling import STAYS, Coupling, couple
from ..cutting import cut_graph, deviation, kept_part, masked, run_masked
from ..element_type import DType
from ..graph import Graph
from ..interpret import run
from ..ops.binary import Mul
from ..ops.reduce import Sum
from ..tensor_type import Value
from ..text import dump
from ..verify import verify

ROUNDING = {DType.F32: 1e-4, DType.F64: 1e-9}  # rounding of a few nodes on numbers of order 1 to 30


def check_cut(graph: Graph, inputs: Sequence[Tensor], *, seed: int) -> int:
    """Removes random units; the cut graph must verify and equal the masked one. Returns the number of removed units."""
    coupling = couple(graph)
    kept = coupling.kept(random_removal(coupling.groups, seed=seed))
    cut = verify(cut_graph(kept))
    bound = max(ROUNDING.get(v.type.dtype, 0.0) for v in graph.outputs)
    error = deviation(run(cut, inputs), run_masked(kept, inputs))
    assert error <= bound, f"sliced and masked differ by {error:.1e}:\n{dump(graph)}"
    return int(kept.removed.sum())


def check_separate(graph: Graph, inputs: Sequence[Tensor], *, seed: int) -> None:
    """Sets random units of constants to zero: no value may change in channels of other units.

    Units that a node mixes are skipped, except for nodes that compute outputs: those are not compared.
    """
    coupling = couple(graph)
    chosen = np.random.default_rng(seed).random(coupling.count) < 0.5
    outputs = {value.name for value in graph.outputs}
    for node in graph.nodes:
        if outputs.isdisjoint(value.name for value in node.outputs):
            chosen[coupling.mixed(node)] = False
    kept = coupling.kept(chosen)
    before: dict[str, Tensor] = {}
    run(graph, inputs, observe=lambda value, tensor: before.update({value.name: tensor}))

    def compare(value: Value, tensor: Tensor) -> None:
        if value.name not in outputs:
            left, whole = (kept_part(t, kept.value(value)) for t in (tensor, before[value.name]))
            assert torch.allclose(left, whole, rtol=1e-5, atol=1e-6, equal_nan=True), (
                f"a unit changes other channels of {value}:\n{dump(graph)}"
            )

    zeroed = {v.name: masked(graph.tensor(v), kept.value(v)) for v in graph.constants}
    run(graph.with_params(zeroed), inputs, observe=compare)


def check_closed(coupling: Coupling) -> None:
    """Checks that all units of a group have equally many channels on the same axes, so that one unit per group
    suffices.
    """
    for value, dimension, units in coupling.members:
        for group in np.unique(coupling.groups[units[units != STAYS]]).tolist():
            counts = np.bincount(units[units != STAYS], minlength=coupling.count)[coupling.groups == group]
            place = f"dimension {dimension} of %{value.name}"
            assert (counts == counts[0]).all(), (
                f"units of group {group} have {counts.tolist()} indices of {place}"
            )


def permuted(coupling: Coupling, order: np.ndarray) -> Graph:
    """The graph in which unit i is the former unit `order[i]` of the same group; it computes the same."""
    graph = coupling.graph
    params = dict(graph.params)
    for value, dimension, units in coupling.members:
        places = {unit: np.flatnonzero(units == unit) for unit in np.unique(units[units != STAYS]).tolist()}
        index = np.arange(len(units))
        for unit, at in places.items():
            index[at] = places[int(order[unit])]
        params[value.name] = params[value.name].index_select(dimension, torch.from_numpy(index))
    return graph.with_params({name: params[name] for name in graph.params})


def check_permutation(
    graph: Graph, inputs: Sequence[Tensor], *, seed: int, removed: Callable[[Coupling], np.ndarray]
) -> None:
    """Renumbers the units of each group: the function and, up to the numbers, the units in `removed` must stay the
    same.
    """
    coupling = couple(graph)
    rng = np.random.default_rng(seed)
    order = np.arange(coupling.count)
    for group in np.unique(coupling.groups):
        members = np.flatnonzero(coupling.groups == group)
        order[members] = rng.permutation(members)
    other = permuted(coupling, order)
    bound = max(ROUNDING.get(v.type.dtype, 0.0) for v in graph.outputs)
    error = deviation(run(other, inputs), run(graph, inputs))
    assert error <= bound, f"renumbered channels change the outputs by {error:.1e}:\n{dump(graph)}"
    gone, gone_then = removed(coupling), removed(couple(other))
    assert (gone[order] == gone_then).all(), (
        f"other channels are removed once they are renumbered:\n{dump(graph)}"
    )


def random_removal(groups: np.ndarray, *, seed: int) -> np.ndarray:
    """Units to remove: a random part of each group, never the whole group."""
    rng = np.random.default_rng(seed)
    removed = np.zeros(len(groups), dtype=bool)
    for group in np.unique(groups):
        units = np.flatnonzero(groups == group)
        removed[rng.choice(units, size=rng.integers(0, len(units)), replace=False)] = True
    return removed


def opened(graph: Graph, inputs: Sequence[Tensor]) -> tuple[Graph, list[Tensor]]:
    """The graph with float inputs as constants and weighted sums as outputs, so that all channels can be removed."""
    fed = {v.name: t for v, t in zip(graph.inputs, inputs, strict=True) if v.type.dtype.is_floating}
    names = [value.name for value in graph.results]
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
