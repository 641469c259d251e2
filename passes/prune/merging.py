"""Data-free merging of neurons that compute nearly the same (Srinivas and Babu, BMVC 2015).

With W_j the weights that compute unit j and a_j the weights that read it, replacing j by i, a_i += a_j, changes the
next layers by at most

    s_ij = <a_j^2> |W_i - W_j|^2

Units are removed one at a time, the one with the least s_ij first, and the weights that read it are added to those of
its nearest unit: of two equal units one is removed without loss, but not both. A bias, and the batch norm after a
layer, are part of W.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...ir import Graph, Node
from ...ir.coupling import STAYS, Coupling, Kept
from ...ir.ops.conv import Conv
from ...ir.ops.norm import BatchNorm
from ..weighted_layers import is_layer
from .repair import loses_inputs

_LIMIT = 4096  # units of a group above which the distances do not fit into memory


@dataclass(frozen=True)
class Neurons:
    """The units of a group with the weights that compute them and that read them, one row each."""

    units: np.ndarray
    incoming: np.ndarray
    outgoing: np.ndarray


def neurons_of(coupling: Coupling) -> Iterator[Neurons]:
    """Each group with a layer that computes it, unless it has too many units."""
    made: dict[int, list[np.ndarray]] = {}
    read: dict[int, list[np.ndarray]] = {}
    for node in coupling.graph.nodes:
        if not is_layer(node.op) or node.op.out_axis == 1:
            continue
        weight = node.operand("weight")
        if not coupling.graph.is_constant(weight):
            continue
        _collect(coupling, made, coupling.units(weight, 0), _rows_made(coupling.graph, node))
        if node.op.channel_groups == 1:
            columns = coupling.graph.tensor(weight).double().transpose(0, 1).flatten(1)
            _collect(coupling, read, coupling.units(weight, 1), columns)
    for group, parts in made.items():
        units = np.flatnonzero(coupling.groups == group)
        if len(units) <= _LIMIT:
            outgoing = np.concatenate(read.get(group, [np.ones((len(units), 1))]), axis=1)
            yield Neurons(units, np.concatenate(parts, axis=1), outgoing)


def order_of_merging(neurons: Neurons) -> np.ndarray:
    """A score for each unit: the least s_ij at which it is merged, made ascending in that order."""
    count, distances = len(neurons.units), _distances(neurons.incoming)
    np.fill_diagonal(distances, np.inf)
    outgoing = neurons.outgoing.copy()
    weight = np.square(outgoing).mean(1)
    nearest = distances.argmin(1)
    least = distances.min(1)
    scores, step = np.zeros(count), 0.0
    alive = np.ones(count, dtype=bool)
    for _ in range(count - 1):
        saliency = np.where(alive, weight * least, np.inf)
        j = int(saliency.argmin())
        i = int(nearest[j])
        step = scores[j] = max(float(saliency[j]), np.nextafter(step, np.inf))
        alive[j] = False
        outgoing[i] += outgoing[j]
        weight[i] = np.square(outgoing[i]).mean()
        distances[:, j] = np.inf
        for k in np.flatnonzero(alive & (nearest == j)):
            nearest[k], least[k] = distances[k].argmin(), distances[k].min()
    scores[alive] = np.nextafter(step, np.inf)
    return scores


def merge_channels(kept: Kept, cut: Graph) -> Graph:
    """The cut graph in which the nearest kept unit replaces each removed one."""
    coupling = kept.coupling
    heir = np.arange(coupling.count)
    for neurons in neurons_of(coupling):
        gone, stays = (np.flatnonzero(kept.removed[neurons.units] == which) for which in (True, False))
        if len(gone) and len(stays):
            distances = _distances(neurons.incoming)[np.ix_(gone, stays)]
            heir[neurons.units[gone]] = neurons.units[stays[distances.argmin(1)]]
    params: dict[str, Tensor] = {}
    for node in coupling.graph.nodes:
        if loses_inputs(kept, cut, node):
            weight = node.operand("weight")
            whole = coupling.graph.tensor(weight).double().clone()
            source, target = _moves(coupling.units(weight, 1), heir)
            whole.index_add_(1, target, whole.index_select(1, source))
            part = whole.index_select(0, kept.value(weight)[0]).index_select(1, kept.value(weight)[1])
            params[weight.name] = part.to(cut.params[weight.name].dtype)
    return cut.with_params(params)


def _moves(units: np.ndarray, heir: np.ndarray) -> tuple[Tensor, Tensor]:
    """Indices of channels whose unit has a replacement, and those of the replacement's channels in the same order."""
    places = {unit: np.flatnonzero(units == unit) for unit in np.unique(units[units != STAYS]).tolist()}
    pairs = [(at, places[int(heir[unit])]) for unit, at in places.items() if heir[unit] != unit]
    empty = [(np.zeros(0, dtype=np.int64),) * 2]
    source, target = (np.concatenate(side) for side in zip(*(pairs or empty), strict=True))
    return torch.from_numpy(source), torch.from_numpy(target)


def _collect(coupling: Coupling, found: dict[int, list[np.ndarray]], units: np.ndarray, rows: Tensor) -> None:
    """Adds the rows of each group's units, with all channels of a unit next to each other."""
    for group in np.unique(coupling.groups[units[units != STAYS]]).tolist():
        at = np.flatnonzero((units != STAYS) & (np.append(coupling.groups, STAYS)[units] == group))
        ordered = at[np.argsort(units[at], kind="stable")]
        count = int((coupling.groups == group).sum())
        found.setdefault(group, []).append(rows[torch.from_numpy(ordered)].reshape(count, -1).numpy())


def _rows_made(graph: Graph, node: Node) -> Tensor:
    """Weights and bias of each output channel, with the following batch norm."""
    weight, bias = node.operand("weight"), node.optional("bias")
    rows = graph.tensor(weight).double().flatten(1)
    known = bias is not None and graph.is_constant(bias)
    shift = graph.params[bias.name].double() if bias is not None and known else rows.new_zeros(len(rows))
    readers = graph.users.get(node.output.name, ())
    lies_along_norm = isinstance(node.op, Conv) or node.output.type.rank == 2
    if len(readers) == 1 and isinstance(readers[0].op, BatchNorm) and lies_along_norm:
        norm = readers[0]
        gamma, beta, mean, variance = (
            None if v is None or not graph.is_constant(v) else graph.tensor(v).double()
            for v in (norm.optional(name) for name in ("weight", "bias", "mean", "var"))
        )
        if mean is not None and variance is not None:
            scale = (1 if gamma is None else gamma) / (variance + readers[0].op.eps).sqrt()
            rows, shift = rows * scale[:, None], (shift - mean) * scale + (0 if beta is None else beta)
    return torch.cat([rows, shift[:, None]], 1)


def _distances(rows: np.ndarray) -> np.ndarray:
    points = torch.from_numpy(rows)
    return np.asarray(torch.cdist(points, points).square().numpy())
