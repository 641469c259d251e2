"""The loss whose increase is predicted: its second derivative F in the outputs z, sample by sample.

    classes    F = diag(p) - p p^T, p = softmax(z); without labels y the loss is the divergence KL(p || p'), with them
               the cross-entropy, whose change is KL(p || p') + (p - y) . dz
    values     F = 1 / size, the loss half the mean squared change of all outputs: networks without class scores

F = L L^T has a closed form for classes in descending order of p, with s_j the sum of p from j on:

    L_jj = sqrt(p_j s_{j+1} / s_j),   L_ij = -p_i sqrt(p_j / (s_j s_{j+1}))  for i > j

Its first k columns are those of the k most likely classes; the remainder is diag(r) - r r^T / s, r the tail of p.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from ...ir import Graph
from ..errors import PassError
from ..training.losses import class_axis, scores_of_positions
from .sensitivity_table import Objective


class Loss(Protocol):
    """Loss interface. `outputs` are the graph's, of `count` samples; results are [count], float64."""

    @property
    def name(self) -> Objective:
        """Name of the loss in the table."""

    def read(self, outputs: Sequence[Tensor], count: int) -> Tensor:
        """The relevant outputs as [count, positions, size]."""

    def divergence(self, z: Tensor, changed: Tensor) -> Tensor:
        """Divergence of changed outputs from the reference outputs."""

    def quadratic(self, z: Tensor, dz: Tensor) -> Tensor:
        """1/2 dz^T F dz, the divergence to second order."""

    def first_order(self, z: Tensor, dz: Tensor, labels: Tensor) -> Tensor:
        """The gradient of the loss along dz."""

    def rank(self, z: Tensor) -> int:
        """Number of columns of the complete factor of F."""

    def columns(self, z: Tensor, count: int) -> Tensor:
        """The first columns of the factor of F: [columns, *z]."""

    def probes(self, z: Tensor, signs: Tensor, *, skipped: int) -> Tensor:
        """Vectors [probes, *z] whose mean outer product is F without its first columns, for random `signs` of that
        shape.
        """


@dataclass(frozen=True)
class Classes:
    """The first output is class scores along its dimension `axis`."""

    name: Objective = "classes"
    axis: int = -1

    def read(self, outputs: Sequence[Tensor], count: int) -> Tensor:
        rows = scores_of_positions(outputs[0], self.axis)
        return rows.reshape(count, -1, rows.shape[1])

    def divergence(self, z: Tensor, changed: Tensor) -> Tensor:
        logs = z.double().log_softmax(-1)
        return _sum(logs.exp() * (logs - changed.double().log_softmax(-1))).mean(-1)

    def quadratic(self, z: Tensor, dz: Tensor) -> Tensor:
        p, along = z.double().softmax(-1), dz.double()
        centered = along - (p * along).sum(-1, keepdim=True)
        return _sum(p * centered.square()).mean(-1) / 2

    def first_order(self, z: Tensor, dz: Tensor, labels: Tensor) -> Tensor:
        rows = z.shape[0] * z.shape[1]
        if labels.is_floating_point() or labels.numel() != rows:
            raise PassError(f"labels {tuple(labels.shape)} do not have a class for each of {rows} rows")
        outside = labels[(labels < 0) | (labels >= z.shape[2])]
        if len(outside):
            raise PassError(f"a label is {int(outside[0])}; there are {z.shape[2]} classes")
        expected = functional.one_hot(labels.long().view(z.shape[:2]), z.shape[2])
        return _sum((z.double().softmax(-1) - expected) * dz.double()).mean(-1)

    def rank(self, z: Tensor) -> int:
        return z.shape[1] * (z.shape[2] - 1)

    def columns(self, z: Tensor, count: int) -> Tensor:
        samples, positions, size = z.shape
        p, order, tail = _sorted(z)
        factor = z.new_zeros((min(count, size - 1), samples, positions, size), dtype=torch.float64)
        for j in range(len(factor)):
            here, left = tail[..., j], tail[..., j + 1]
            ratio = torch.where(left > 0, p[..., j] / (here * left), 0.0).sqrt()
            column = -p * ratio[..., None]
            column[..., :j] = 0
            column[..., j] = left * ratio
            factor[j].scatter_(-1, order, column)
        factor /= sqrt(positions)
        if positions == 1:
            return factor
        apart = torch.eye(positions, dtype=torch.float64)[:, None, None, :, None]
        return (apart * factor).flatten(0, 1)[:count]

    def probes(self, z: Tensor, signs: Tensor, *, skipped: int) -> Tensor:
        p, order, _ = _sorted(z)
        p[..., :skipped] = 0
        share = p / p.sum(-1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
        drawn = signs * p.sqrt()
        along = drawn - share * drawn.sum(-1, keepdim=True)
        return torch.zeros_like(along).scatter_(-1, order.expand_as(along), along) / sqrt(z.shape[1])


def _sum(x: Tensor) -> Tensor:
    """Sum over classes."""
    return x.sum(-1)


def _sorted(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Probabilities in descending order, their classes, and the sum of each probability and all after it."""
    p, order = z.double().softmax(-1).sort(stable=True, dim=-1, descending=True)
    return p, order, p.flip(-1).cumsum(-1).flip(-1)


@dataclass(frozen=True)
class Values:
    """All floating point outputs, with equal weight for each number."""

    name: Objective = "values"

    def read(self, outputs: Sequence[Tensor], count: int) -> Tensor:
        return torch.cat([y.reshape(count, 1, -1) for y in outputs if y.is_floating_point()], -1)

    def divergence(self, z: Tensor, changed: Tensor) -> Tensor:
        return (changed.double() - z.double()).square().mean((1, 2)) / 2

    def quadratic(self, z: Tensor, dz: Tensor) -> Tensor:
        return dz.double().square().mean((1, 2)) / 2

    def first_order(self, z: Tensor, dz: Tensor, labels: Tensor) -> Tensor:
        return torch.zeros(z.shape[0], dtype=torch.float64)

    def rank(self, z: Tensor) -> int:
        return z.shape[2]

    def columns(self, z: Tensor, count: int) -> Tensor:
        ones = torch.eye(z.shape[2], dtype=torch.float64)[:count] / sqrt(z.shape[2])
        return ones[:, None, None].expand(-1, *z.shape[:2], -1)

    def probes(self, z: Tensor, signs: Tensor, *, skipped: int) -> Tensor:
        drawn = signs.clone()
        drawn[..., :skipped] = 0
        return drawn / sqrt(z.shape[2])


def choose_loss(
    graph: Graph, objective: Objective | None, *, axis: int | None = None, labels: Tensor | None = None
) -> Loss:
    """The loss by name; by default a first output [n, classes] or [n, positions, classes] is class scores.

    This default does not apply to an output with the shape of an input, as of a reconstruction. The class dimension
    is `axis`, or follows from the labels of a call. PassError if the graph has no such output, or if it is ambiguous.
    """
    floats = [v for v in graph.outputs if v.type.dtype.is_floating]
    if not floats:
        raise PassError("no output is a floating point value: there is no loss to measure")
    first = graph.outputs[0].type
    if objective != "values" and first.rank >= 2:
        axis = class_axis(first.shape, axis, labels=labels)
    can_score = axis is not None and first.dtype.is_floating and first.shape[axis] >= 2
    if objective == "classes" and not can_score:
        raise PassError(f"output {graph.outputs[0]} of shape {first.shape} has no class scores")
    if objective is None:
        is_likely = can_score and first.rank <= 3 and first.shape not in {v.type.shape for v in graph.inputs}
        objective = "classes" if is_likely else "values"
    return Classes(axis=axis) if objective == "classes" and axis is not None else Values()
