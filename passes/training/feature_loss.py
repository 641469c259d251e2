"""Feature losses of distillation: the result of a module in the network in training, and one in the teacher.

    mse         |R h - g|^2 / |g|^2                                             FitNets, Romero et al., 2015
    cosine      1 - cos(R h, g) over the channels of each position               DistilBERT, Sanh et al., 2019
    attention   |q(h) - q(g)|^2 of the maps q(x) = m / |m|, m the mean square over channels at each position
                                                                                Zagoruyko and Komodakis, 2017
    relation    |G(h) - G(g)|^2 / b^2, G the products of the b samples of a batch with each other, rows of norm 1
                                                                                Tung and Mori, 2019

The result of a module is the last value computed in it that the network in training still has under the same name;
fused operators keep the name of their last value. If h and g differ in the number of channels, R is a trained linear
regressor, which is discarded after training; otherwise the identity. Maps and relations need none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ...ir import Graph, Node, Value
from ...specs.options import FeatureKind, FeaturePair
from ..errors import PassError

_TINY = 1e-12
_SEQUENCE = 3  # rank of [n, positions, channels]


@dataclass(frozen=True, slots=True)
class FeatureLoss:
    """Feature loss of one module; a regressor [teacher channels, own channels] if these differ."""

    module: str
    value: str  # of the network in training
    teacher_value: str
    kind: FeatureKind = "mse"
    weight: float = 1.0
    axis: int = 1  # dimension of the channels
    channels: tuple[int, int] | None = None  # of teacher and network in training, if their numbers differ

    @property
    def regressor(self) -> str:
        """Parameter name of the regressor; no constant of a graph contains a colon."""
        return f"regressor:{self.module}:{self.teacher_value}"

    def start(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Initial regressor, if there is one."""
        if self.channels is None:
            return {}
        wide, narrow = self.channels
        return {self.regressor: torch.randn(wide, narrow, generator=generator) / narrow**0.5}

    def error(
        self,
        features: Mapping[str, Tensor],
        teacher_features: Mapping[str, Tensor],
        parameters: Mapping[str, Tensor],
    ) -> Tensor:
        """The loss of a batch, a scalar, times its weight."""
        own, wanted = features[self.value], teacher_features[self.teacher_value]
        if self.channels is not None:
            regressor = parameters[self.regressor]
            own = (own.movedim(self.axis, -1) @ regressor.T).movedim(-1, self.axis)
        return self.weight * self._compared(own, wanted)

    def _compared(self, own: Tensor, wanted: Tensor) -> Tensor:
        if self.kind == "mse":
            return (own - wanted).square().mean() / wanted.square().mean().clamp(min=_TINY)
        if self.kind == "cosine":
            return 1 - functional.cosine_similarity(own, wanted, dim=self.axis).mean()
        if self.kind == "attention":
            maps = [functional.normalize(x.square().mean(self.axis).flatten(1)) for x in (own, wanted)]
            return (maps[0] - maps[1]).square().sum(1).mean()
        rows = [x.flatten(1) for x in (own, wanted)]
        products = [functional.normalize(x @ x.T) for x in rows]
        return (products[0] - products[1]).square().mean()


def find_feature_losses(
    graph: Graph, captured: Graph, teacher: Graph, pairs: Sequence[FeaturePair]
) -> tuple[FeatureLoss, ...]:
    """The feature losses of a graph in training; PassError for a module that is missing or not comparable.

    `captured` is the graph as captured, which has all modules and the names of their results.
    """
    return tuple(_find(graph, captured, teacher, pair) for pair in pairs)


def _find(graph: Graph, captured: Graph, teacher: Graph, pair: FeaturePair) -> FeatureLoss:
    own = {value.name: value for value in graph.results}
    within = _nodes_within(captured, pair.layer, "the network")
    last = next((node.outputs[0] for node in reversed(within) if node.outputs[0].name in own), None)
    if last is None:
        raise PassError(
            f"distill.layers: the result of {pair.layer} is not in the graph any more: it was fused into the next "
            "operator; name the enclosing module"
        )
    if pair.teacher is None and teacher is captured:
        wanted = last
    else:
        wanted = _nodes_within(teacher, pair.teacher or pair.layer, "the teacher")[-1].outputs[0]
    return _compared(pair, own[last.name], wanted)


def _nodes_within(graph: Graph, module: str, where: str) -> list[Node]:
    """The nodes of a module, in order; PassError if the graph has none."""
    within = [
        node
        for node in graph.nodes
        if node.source.module == module or node.source.module.startswith(f"{module}.")
    ]
    if not within:
        known = dict.fromkeys(
            node.source.module.partition(".")[0] for node in graph.nodes if node.source.module
        )
        raise PassError(f"distill.layers: {where} has no module {module!r}; modules: {', '.join(known)}")
    return within


def _compared(pair: FeaturePair, own: Value, teacher: Value) -> FeatureLoss:
    """The loss between two values; PassError if their shapes do not fit the kind of loss."""
    shapes = own.type.shape, teacher.type.shape
    what = f"distill.layers: {pair.layer} has shape {shapes[0]}, in the teacher {shapes[1]}"
    if not own.type.real().dtype.is_floating:
        raise PassError(
            f"distill.layers: {pair.layer} has dtype {own.type.dtype.value}, which has no gradient"
        )
    found = FeatureLoss(pair.layer, own.name, teacher.name, pair.loss, pair.weight)
    if pair.loss == "relation":
        if not own.type.rank or shapes[0][:1] != shapes[1][:1]:
            raise PassError(f"{what}; `relation` compares the samples of a batch, dimension 0")
        return found
    differing = [axis for axis, pair_ in enumerate(zip(*shapes, strict=False)) if pair_[0] != pair_[1]]
    if len(shapes[0]) != len(shapes[1]) or len(differing) > 1 or 0 in differing:
        raise PassError(f"{what}; they may differ in one dimension, that of channels")
    rank = len(shapes[0])
    if pair.loss != "mse" and rank < (_SEQUENCE if pair.loss == "attention" else 2):
        raise PassError(f"{what}; `{pair.loss}` needs a dimension of channels{_AND_POSITIONS[pair.loss]}")
    axis = differing[0] if differing else rank - 1 if rank <= _SEQUENCE else 1
    needs_regressor = bool(differing) and pair.loss != "attention"
    channels = (shapes[1][axis], shapes[0][axis]) if needs_regressor else None
    return FeatureLoss(pair.layer, own.name, teacher.name, pair.loss, pair.weight, axis, channels)


_AND_POSITIONS = {"cosine": "", "attention": " and one of positions"}
