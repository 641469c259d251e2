"""Saliency scores of units, from weights or from data.

    l1, l2              norm of a unit's part of each weight       Li et al., 2016
    geometric_median    sum of distances to the other units        He et al., 2019
    merging             change when merged with the most similar unit           Srinivas, Babu, 2015; see prune_merging
    batchnorm           |gamma| of the batch norms                 Liu et al. (network slimming), 2017
    taylor              sum over batches of (sum over the unit's weights of gradient * weight)^2
                                                                   Molchanov et al., 2019
    curvature           1/2 E_x sum over classes c of p_c(x) * (sum over the unit's weights of d log p_c * weight)^2,
                        the Gauss-Newton form of the loss in the direction of the unit itself: no probes, no labels
    activation          mean absolute value of its channels

Norms are divided by their mean over the group, member by member, before they are aggregated, so that members and
groups of different size are comparable.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ...ir import Value, rebatch, run
from ...ir.coupling import STAYS, Coupling
from ...ir.ops.norm import BatchNorm
from ...specs.options import PruneOptions
from ..base import Context
from ..calibration.calibrate import passes_batches
from ..errors import MissingNeedError, PassError
from ..training.losses import class_axis, loss_of_calibration, scores_of_positions
from .merging import neurons_of, order_of_merging

Norm = Callable[[Tensor, list[int]], Tensor]  # norm over all dimensions but one
Losses = Callable[
    [Sequence[Tensor], Tensor | None, int | None, torch.Generator], Iterator[tuple[float, Tensor]]
]
_CLASSES = 10  # the most likely classes; each costs a backward pass
_GEOMETRIC_LIMIT = 4096  # units of one weight above which the distances do not fit into memory


@dataclass(frozen=True, slots=True)
class Member:
    """One number for each of some units, from one weight or one activation."""

    units: np.ndarray
    scores: np.ndarray


def score_units(coupling: Coupling, options: PruneOptions, context: Context) -> np.ndarray:
    """The score of each unit, float64; units with lower scores are removed first."""
    if options.score == "random":
        return np.random.default_rng(options.seed).random(coupling.count)
    if options.score in ("activation", *_LOSSES) and not context.calibration:
        raise MissingNeedError(f'score "{options.score}"', "calibration")
    if options.score == "curvature":
        coupling, context = _one_by_one(coupling, context)
    if options.score in _LOSSES:
        return _by_gradient(coupling, context, _LOSSES[options.score], options)
    members = list(_MEMBERS[options.score](coupling, context))
    if options.score == "batchnorm" and not members:
        raise PassError('score "batchnorm" needs batch norms: prune before fuse, or use another score')
    scores, seen = _aggregate(coupling, members, options)
    if not seen.all():  # channels without such a weight are scored by the norm
        others, _ = _aggregate(coupling, list(_norms(coupling, _l2, least_rank=0)), options)
        scores = np.where(seen, scores, others)
    return scores


def _aggregate(
    coupling: Coupling, members: Sequence[Member], options: PruneOptions
) -> tuple[np.ndarray, np.ndarray]:
    """Scores over all members, and the units that have any."""
    total, times = np.zeros(coupling.count), np.zeros(coupling.count)
    for member in members:
        scores = member.scores / _unit_of_measure(
            coupling.groups[member.units], member.scores, options.normalize
        )
        if options.aggregate == "max":
            np.maximum.at(total, member.units, scores)
        else:
            np.add.at(total, member.units, scores)
        times[member.units] += 1
    return (total / np.maximum(times, 1) if options.aggregate == "mean" else total), times > 0


def _unit_of_measure(groups: np.ndarray, scores: np.ndarray, normalize: str) -> np.ndarray:
    """Normalizer of the scores: mean or maximum over the group."""
    if normalize == "none":
        return np.ones_like(scores)
    _, index = np.unique(groups, return_inverse=True)
    if normalize == "mean":
        measure = np.bincount(index, scores) / np.bincount(index)
    else:
        measure = np.zeros(int(index.max()) + 1)
        np.maximum.at(measure, index, scores)
    return np.where(measure > 0, measure, 1.0)[index]


def _per_unit(units: np.ndarray, scores: np.ndarray) -> Member:
    """Sums over the indices of each unit."""
    moving = units != STAYS
    present, index = np.unique(units[moving], return_inverse=True)
    return Member(present, np.bincount(index, scores[moving], minlength=len(present)))


def _l1(weight: Tensor, others: list[int]) -> Tensor:
    return weight.abs().sum(others, dtype=torch.float64)


def _l2(weight: Tensor, others: list[int]) -> Tensor:
    return weight.square().sum(others, dtype=torch.float64)


def _norms(coupling: Coupling, norm: Norm, *, least_rank: int = 2) -> Iterator[Member]:
    for value, dimension, units in coupling.members:
        if value.type.rank >= least_rank and value.type.dtype.is_floating:
            weight = coupling.graph.tensor(value).detach()
            weight = weight.float() if weight.dtype.itemsize < 4 else weight
            others = [d for d in range(weight.ndim) if d != dimension]
            sums = norm(weight, others) if others else norm(weight.unsqueeze(0), [0])
            member = _per_unit(units, sums.numpy())
            yield Member(member.units, np.sqrt(member.scores)) if norm is _l2 else member


def _rows(coupling: Coupling, value: Value, dimension: int) -> Tensor:
    tensor = coupling.graph.tensor(value).detach().double()
    return tensor.movedim(dimension, 0).reshape(value.type.shape[dimension], -1)


def _distances(coupling: Coupling, context: Context) -> Iterator[Member]:
    """Distances between output channels of each weight: a unit near the median of all can be replaced by the others."""
    for value, dimension, units in coupling.members:
        if dimension or value.type.rank < 2 or len(units) > _GEOMETRIC_LIMIT:
            continue
        rows = _rows(coupling, value, dimension)
        yield _per_unit(units, torch.cdist(rows, rows).sum(1).numpy())


def _mergers(coupling: Coupling, context: Context) -> Iterator[Member]:
    for neurons in neurons_of(coupling):
        yield Member(neurons.units, order_of_merging(neurons))


def _scales(coupling: Coupling, context: Context) -> Iterator[Member]:
    for node in coupling.graph.nodes:
        weight = node.optional("weight") if isinstance(node.op, BatchNorm) else None
        if weight is not None and coupling.graph.is_constant(weight):
            units = coupling.units(weight, 0)
            if (units != STAYS).any():
                yield _per_unit(units, coupling.graph.tensor(weight).abs().double().numpy())


def _activations(coupling: Coupling, context: Context) -> Iterator[Member]:
    """The mean absolute value of every value's channels on the calibration data."""
    sums: dict[tuple[int, str], np.ndarray] = {}

    def observe(value: Value, tensor: Tensor) -> None:
        for dimension, axis in enumerate(coupling.axes(value)):
            if tensor.is_floating_point() and (coupling.on_axis(axis) != STAYS).any():
                others = [d for d in range(tensor.ndim) if d != dimension]
                mean = tensor.abs().double().mean(others) if others else tensor.abs().double()
                sums[axis, value.name] = sums.get((axis, value.name), 0.0) + mean.numpy()

    with torch.no_grad():
        for done, inputs in enumerate(context.calibration):
            context.progress("activations of channels", done, len(context.calibration))
            run(coupling.graph, inputs, observe=observe)
    for (axis, _), total in sums.items():
        yield _per_unit(coupling.on_axis(axis), total)


def _by_gradient(coupling: Coupling, context: Context, losses: Losses, options: PruneOptions) -> np.ndarray:
    """Mean over batches, sum over losses, of weight * (sum over the unit's weights of gradient * weight)^2."""
    graph, scores = coupling.graph, np.zeros(coupling.count)
    generator = torch.Generator().manual_seed(options.seed)
    norms = [node for node in graph.nodes if isinstance(node.op, BatchNorm)]
    statistics = {norm.operand(name).name for norm in norms for name in ("mean", "var")}
    members = [
        (v, d, u) for v, d, u in coupling.members if v.type.dtype.is_floating and v.name not in statistics
    ]
    params = {v.name: graph.params[v.name].detach().clone().requires_grad_() for v, _, _ in members}
    for done, inputs in enumerate(context.calibration):
        context.progress("gradients of channels", done, len(context.calibration))
        outputs = run(graph, inputs, params=params)
        labels = context.labels[done] if context.labels else None
        for weight, loss in losses(outputs, labels, options.class_axis, generator):
            gradients = torch.autograd.grad(loss, list(params.values()), allow_unused=True, retain_graph=True)
            pairs = zip(params.items(), gradients, strict=True)
            products = {n: (g * w.detach()).double() for (n, w), g in pairs if g is not None}
            change = np.zeros(coupling.count)
            for value, dimension, units in members:
                if value.name in products:
                    along = products[value.name].movedim(dimension, 0).reshape(len(units), -1).sum(1).numpy()
                    np.add.at(change, units[units != STAYS], along[units != STAYS])
            scores += weight * change**2
    return scores / max(len(context.calibration), 1)


def _one_by_one(coupling: Coupling, context: Context) -> tuple[Coupling, Context]:
    """The same for a batch of one, because squares of single samples do not add up to the square of their sum."""
    size = coupling.graph.inputs[0].type.shape[:1]
    if size in ((), (1,)) or not passes_batches(coupling.graph, ([*context.calibration] * 2)[:2]):
        return coupling, context
    single = replace(coupling, graph=rebatch(coupling.graph, 1))
    samples = [tuple(x[i : i + 1] for x in batch) for batch in context.calibration for i in range(size[0])]
    return single, replace(context, calibration=samples, labels=())


def _task_loss(
    outputs: Sequence[Tensor], labels: Tensor | None, axis: int | None, generator: torch.Generator
) -> Iterator[tuple[float, Tensor]]:
    yield 1.0, loss_of_calibration(outputs, labels, axis)


def _log_probabilities(
    outputs: Sequence[Tensor], labels: Tensor | None, axis: int | None, generator: torch.Generator
) -> Iterator[tuple[float, Tensor]]:
    """Sums over positions of sign * sqrt(p) * log p, for each likely class of the first output.

    With random signs, the expected square of such a sum is the sum of p (d log p)^2 over positions; for a single
    position it is exact.
    """
    if outputs[0].ndim < 2:
        raise PassError('score "curvature" needs a network whose first output scores classes')
    rows = scores_of_positions(outputs[0], class_axis(outputs[0].shape, axis, labels=labels))
    logs = rows.log_softmax(1)
    shares = logs.detach().exp()
    signs = torch.randint(0, 2, shares.shape, generator=generator) * 2 - 1
    for index in shares.mean(0).topk(min(_CLASSES, shares.shape[1])).indices.tolist():
        yield 0.5 / len(rows), (signs * shares.sqrt() * logs)[:, index].sum()


_MEMBERS: dict[str, Callable[[Coupling, Context], Iterator[Member]]] = {
    "l1": lambda coupling, context: _norms(coupling, _l1),
    "l2": lambda coupling, context: _norms(coupling, _l2),
    "geometric_median": _distances,
    "merging": _mergers,
    "batchnorm": _scales,
    "activation": _activations,
}
_LOSSES: dict[str, Losses] = {"taylor": _task_loss, "curvature": _log_probabilities}
