"""Feature losses of distillation: the result of a module in the network in training, and one in the teacher.

    mse         |R h - g|^2 / |g|^2                                             FitNets, Romero et al., 2015
    cosine      1 - cos(R h, g) over the channels of each position               DistilBERT, Sanh et al., 2019
    attention   |q(h) - q(g)|^2 of the maps q(x) = m / |m|, m the mean square over channels at each position
                                                                                Zagoruyko and Komodakis, 2017
    relation    |G(h) - G(g)|^2 / b^2, G the products of the b samples of a batch with each other, rows of norm 1
                                                                                Tung and Mori, 2019
    adversarial log(1 + exp(-D(g))) + log(1 + exp(D(R h))): D is trained to tell the teacher's channels from those of
                the network, which has the reversed gradient                    Belagiannis et al., 2018

The result of a module is the last value computed in it that the network in training still has under the same name;
fused operators keep the name of their last value. If h and g differ in the number of channels, R is a trained linear
regressor; otherwise the identity. Maps and relations need none. Regressors and discriminators exist in training only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from ...ir import Graph, Node, Value
from ...specs.options import FeatureKind, FeaturePair
from ..errors import PassError

_TINY = 1e-12
_SHORT = 0.1  # of the mean length of the teacher's vectors: shorter ones count less in the loss by cosine
_SEQUENCE = 3  # rank of [n, positions, channels]
_HIDDEN = 64  # units of a discriminator


class FeatureTerm(Protocol):
    """Loss between values of the network in training and of its teacher."""

    @property
    def values(self) -> Sequence[str]:
        """Names of the values of the network in training."""

    @property
    def teacher_values(self) -> Sequence[str]:
        """Names of the values of the teacher."""

    @property
    def is_comparable(self) -> bool:
        """True if a lower loss is a better network, so that validation counts it."""

    def start(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Initial parameters of the loss."""

    def error(
        self,
        features: Mapping[str, Tensor],
        teacher_features: Mapping[str, Tensor],
        parameters: Mapping[str, Tensor],
    ) -> Tensor:
        """The loss of a batch, a scalar."""


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
    judged: int = 0  # channels of the teacher that a discriminator sees

    @property
    def values(self) -> tuple[str, ...]:
        """Name of the value of the network in training."""
        return (self.value,)

    @property
    def teacher_values(self) -> tuple[str, ...]:
        """Name of the value of the teacher."""
        return (self.teacher_value,)

    @property
    def is_comparable(self) -> bool:
        """True unless a discriminator is trained against the network."""
        return self.kind != "adversarial"

    @property
    def regressor(self) -> str:
        """Parameter name of the regressor; no constant of a graph contains a colon."""
        return f"regressor:{self.module}:{self.teacher_value}"

    def start(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Initial regressor and discriminator, if there are any."""
        found = {}
        if self.channels is not None:
            wide, narrow = self.channels
            found[self.regressor] = torch.randn(wide, narrow, generator=generator) / narrow**0.5
        if self.kind == "adversarial":
            first, bias, last = self._discriminator
            found[first] = torch.randn(_HIDDEN, self.judged, generator=generator) / self.judged**0.5
            found[bias] = torch.zeros(_HIDDEN)
            found[last] = torch.randn(1, _HIDDEN, generator=generator) / _HIDDEN**0.5
        return found

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
        if self.kind == "adversarial":
            return self.weight * self._told_apart(own, wanted, parameters)
        return self.weight * self._compared(own, wanted)

    @property
    def _discriminator(self) -> tuple[str, str, str]:
        """Parameter names of the discriminator."""
        place = f"discriminator:{self.module}:{self.teacher_value}"
        return f"{place}:first", f"{place}:bias", f"{place}:last"

    def _told_apart(self, own: Tensor, wanted: Tensor, parameters: Mapping[str, Tensor]) -> Tensor:
        first, bias, last = (parameters[name] for name in self._discriminator)

        def judged(x: Tensor) -> Tensor:
            rows = x.movedim(self.axis, -1).flatten(0, -2)
            return functional.linear(functional.relu(functional.linear(rows, first, bias)), last)

        reversed_: Tensor = _Reversed.apply(own)  # type: ignore[no-untyped-call]  # torch's
        return functional.softplus(-judged(wanted)).mean() + functional.softplus(judged(reversed_)).mean()

    def _compared(self, own: Tensor, wanted: Tensor) -> Tensor:
        if self.kind == "mse":
            return (own - wanted).square().mean() / wanted.square().mean().clamp(min=_TINY)
        if self.kind == "cosine":
            return cosine_distance(own, wanted, axis=self.axis)
        if self.kind == "attention":
            maps = [functional.normalize(x.square().mean(self.axis).flatten(1)) for x in (own, wanted)]
            return (maps[0] - maps[1]).square().sum(1).mean()
        rows = [x.flatten(1) for x in (own, wanted)]
        products = [functional.normalize(x @ x.T) for x in rows]
        return (products[0] - products[1]).square().mean()


def cosine_distance(own: Tensor, wanted: Tensor, *, axis: int) -> Tensor:
    """1 - cosine of the vectors along `axis`, the mean over all positions.

    The direction of a vector of zeros has no bounded gradient: vectors that are short beside those of the teacher are
    divided by a tenth of the mean length of these, in place of their own length.
    """
    shortest = _SHORT * float(wanted.detach().norm(dim=axis).mean())
    return 1 - functional.cosine_similarity(own, wanted, dim=axis, eps=max(shortest, _TINY)).mean()


def find_feature_losses(
    graph: Graph, captured: Graph, teacher: Graph, pairs: Sequence[FeaturePair]
) -> tuple[FeatureLoss, ...]:
    """The feature losses of a graph in training; PassError for a module that is missing or not comparable.

    `captured` is the graph as captured, which has all modules and the names of their results.
    """
    return tuple(_find(graph, captured, teacher, pair) for pair in pairs)


class _Reversed(torch.autograd.Function):
    """The identity, whose gradient has the opposite sign (Ganin and Lempitsky, 2015)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:  # Any: torch's context
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # Any: torch's context
        return -gradient


def find_feature(graph: Graph, captured: Graph, module: str, *, place: str) -> Value:
    """The result of a module of the captured graph in the graph in training; PassError if it is not there."""
    own = {value.name: value for value in graph.results}
    within = _nodes_within(captured, module, "the network", place)
    last = next((node.outputs[0] for node in reversed(within) if node.outputs[0].name in own), None)
    if last is None:
        raise PassError(
            f"{place}: the result of {module} is not in the graph any more: it was fused into the next "
            "operator; name the enclosing module"
        )
    return own[last.name]


def find_teacher_feature(teacher: Graph, module: str) -> Value:
    """The result of a module of the teacher; PassError if there is none."""
    return _nodes_within(teacher, module, "the teacher", _LAYERS)[-1].outputs[0]


def channel_axis(rank: int) -> int:
    """Dimension of the channels of a value: the last one of [n, c] and [n, t, c], else dimension 1."""
    return rank - 1 if rank <= _SEQUENCE else 1


def _find(graph: Graph, captured: Graph, teacher: Graph, pair: FeaturePair) -> FeatureLoss:
    own = find_feature(graph, captured, pair.layer, place=_LAYERS)
    if pair.teacher is None and teacher is captured:
        wanted = {value.name: value for value in captured.results}[own.name]
    else:
        wanted = find_teacher_feature(teacher, pair.teacher or pair.layer)
    return _compared(pair, own, wanted)


def _nodes_within(graph: Graph, module: str, where: str, place: str) -> list[Node]:
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
        raise PassError(f"{place}: {where} has no module {module!r}; modules: {', '.join(known)}")
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
    axis = differing[0] if differing else channel_axis(rank)
    needs_regressor = bool(differing) and pair.loss != "attention"
    channels = (shapes[1][axis], shapes[0][axis]) if needs_regressor else None
    found = replace(found, axis=axis, channels=channels)
    return replace(found, judged=shapes[1][axis]) if pair.loss == "adversarial" else found


_LAYERS = "distill.layers"
_AND_POSITIONS = {"cosine": "", "adversarial": "", "attention": " and one of positions"}
