"""Feature losses between all chosen modules of a network and of its teacher, with learned weights (SemCKD).

    sum_i mean_n sum_j a_ij(n) |R_ij h_i(n) - g_j(n)|^2 / |g_j|^2,   a_i(n) = softmax_j(q_i(n) . k_j(n))

q_i(n) and k_j(n) are linear maps of the similarities of sample n with all samples of the batch, in h_i and in g_j.
Images of different size are averaged to the smaller one. Source: Chen et al., Cross-Layer Distillation with Semantic
Calibration, AAAI 2021.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ...ir import Graph, Value
from ...specs.options import FeaturePair
from ..errors import PassError
from .feature_loss import channel_axis, find_feature, find_teacher_feature

_WIDTH = 32  # of queries and keys
_TINY = 1e-12
_IMAGE_RANK = 4


@dataclass(frozen=True)
class LearnedPairs:
    """Loss between values. Parameters `query:VALUE`, `key:VALUE` and `pair:VALUE:VALUE`, its regressors."""

    own: tuple[Value, ...]
    teacher: tuple[Value, ...]
    batch: int

    is_comparable = True

    @property
    def values(self) -> tuple[str, ...]:
        """Names of the values of the network in training."""
        return tuple(value.name for value in self.own)

    @property
    def teacher_values(self) -> tuple[str, ...]:
        """Names of the values of the teacher."""
        return tuple(value.name for value in self.teacher)

    def start(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Initial parameters."""

        def drawn(rows: int, columns: int) -> Tensor:
            return torch.randn(rows, columns, generator=generator) / math.sqrt(columns)

        found = {f"query:{h.name}": drawn(_WIDTH, self.batch) for h in self.own}
        found |= {f"key:{g.name}": drawn(_WIDTH, self.batch) for g in self.teacher}
        return found | {
            f"pair:{h.name}:{g.name}": drawn(_channels(g), _channels(h))
            for h in self.own
            for g in self.teacher
        }

    def error(
        self,
        features: Mapping[str, Tensor],
        teacher_features: Mapping[str, Tensor],
        parameters: Mapping[str, Tensor],
    ) -> Tensor:
        """The loss of a batch, a scalar."""
        keys = torch.stack(
            [_similarities(teacher_features[g.name]) @ parameters[f"key:{g.name}"].T for g in self.teacher]
        )
        losses = []
        for h in self.own:
            own = features[h.name]
            query = _similarities(own) @ parameters[f"query:{h.name}"].T
            weights = (query * keys).sum(-1).softmax(0)  # [teacher modules, samples]
            errors = [
                _errors(own, teacher_features[g.name], parameters[f"pair:{h.name}:{g.name}"])
                for g in self.teacher
            ]
            losses.append((weights * torch.stack(errors)).sum(0).mean())
        return torch.stack(losses).mean()


def find_learned_pairs(
    graph: Graph, captured: Graph, teacher: Graph, pairs: Sequence[FeaturePair], *, batch: int
) -> LearnedPairs:
    """The loss between all modules of the pairs; PassError for values that cannot be compared."""
    if batch < 2:
        raise PassError(
            "distill.matching: attention compares the samples of a batch; set `batch` to 2 or more"
        )
    odd = next((pair for pair in pairs if pair.loss != "mse" or pair.weight != 1), None)
    if odd is not None:
        raise PassError(
            f"distill.layers: {odd.layer}: `matching: attention` has squared errors with learned weights; leave `loss` "
            "and `weight` out"
        )
    place = "distill.layers"
    own = {pair.layer: find_feature(graph, captured, pair.layer, place=place) for pair in pairs}
    wanted = {
        pair.teacher or pair.layer: find_teacher_feature(teacher, pair.teacher or pair.layer)
        for pair in pairs
    }
    for module, value in {**own, **wanted}.items():
        rank = value.type.rank
        if rank < 2 or not value.type.real().dtype.is_floating:
            raise PassError(f"{place}: {module} has no float channels: shape {value.type.shape}")
    shapes = {v.type.shape if v.type.rank != _IMAGE_RANK else () for v in (*own.values(), *wanted.values())}
    positions = {(len(shape), shape[1:-1]) for shape in shapes}
    if len(positions) > 1:
        raise PassError(
            f"{place}: `matching: attention` needs modules with the same positions, not {positions}"
        )
    return LearnedPairs(tuple(dict.fromkeys(own.values())), tuple(dict.fromkeys(wanted.values())), batch)


def _similarities(x: Tensor) -> Tensor:
    """Products of each sample with all samples, rows of norm 1: [n, n]. They take no gradient."""
    rows = x.detach().flatten(1)
    return functional.normalize(rows @ rows.T)


def _errors(own: Tensor, wanted: Tensor, regressor: Tensor) -> Tensor:
    """Mean squared error of each sample, relative to the mean square of the teacher's value."""
    if own.ndim == _IMAGE_RANK:
        size = min(own.shape[2], wanted.shape[2]), min(own.shape[3], wanted.shape[3])
        own, wanted = (functional.adaptive_avg_pool2d(x, size) for x in (own, wanted))
    axis = channel_axis(own.ndim)
    mapped = (own.movedim(axis, -1) @ regressor.T).movedim(-1, axis)
    scale = wanted.square().mean().clamp(min=_TINY)
    return (mapped - wanted).square().flatten(1).mean(1) / scale


def _channels(value: Value) -> int:
    return value.type.shape[channel_axis(value.type.rank)]
