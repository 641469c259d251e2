"""Networks that are trained together, each with the others as its teacher.

    codistillation   the teacher of each is the mean of the others                     Anil et al., ICLR 2018
    attention        the teacher of peer a is sum_b softmax_b(q(z_a) . k(z_b)) p_b, q and k linear and trained; the
                     teacher of the first peer, the leader, is the mean of the others  OKDDip, Chen et al., AAAI 2020

p are probabilities at the temperature of the distillation, or the outputs themselves if they are not compared by KL
divergence. Parameters of peer i > 0 are named `peer_i:NAME`: no constant of a graph contains a colon.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...specs.options import Distillation
from ..errors import PassError

_QUERY, _KEY = "peers:query", "peers:key"
_WIDTH = 16  # of queries and keys
_TINY = 1e-12


@dataclass(frozen=True)
class Peers:
    """The networks that are trained; the first one is exported."""

    distill: Distillation
    axis: int | None  # dimension of the classes, if the outputs are class scores
    classes: int

    @staticmethod
    def of(distill: Distillation, axis: int | None, shape: Sequence[int]) -> Peers:
        """Peers whose first output has this shape; PassError if attention has no class scores to compare."""
        if distill.peer_weights == "attention" and axis is None:
            raise PassError(
                "distill.peer_weights: attention needs class scores; set `class_axis`, or use `mean`"
            )
        return Peers(distill, axis, shape[axis] if axis is not None else 0)

    def start(self, first: Mapping[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
        """Initial parameters beside those of the first peer: weights in random order, vectors unchanged."""
        found = {}
        for index in range(1, self.distill.peers):
            for name, tensor in first.items():
                order = torch.randperm(tensor.numel(), generator=generator)
                is_weight = tensor.ndim > 1
                found[_name(index, name)] = (
                    tensor.flatten()[order].view_as(tensor) if is_weight else tensor.clone()
                )
        if self.distill.peer_weights == "attention":
            shape = _WIDTH, self.classes
            found |= {name: torch.randn(shape, generator=generator) / _WIDTH for name in (_QUERY, _KEY)}
        return found

    def parameters_of(self, index: int, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The parameters of a peer by their names in the graph."""
        if index == 0:
            return dict(parameters)
        prefix = _name(index, "")
        return {
            name.removeprefix(prefix): tensor
            for name, tensor in parameters.items()
            if name.startswith(prefix)
        }

    def teachers(
        self, outputs: Sequence[Sequence[Tensor]], parameters: Mapping[str, Tensor]
    ) -> list[list[Tensor]]:
        """Outputs of the teacher of each peer, without gradients to the peers."""
        given = [[self._compared(i, y.detach()) for i, y in enumerate(ys)] for ys in outputs]
        means = [_mean([ys for at, ys in enumerate(given) if at != own]) for own in range(len(given))]
        if self.distill.peer_weights == "attention":
            others = given[1:]
            for own, weights in enumerate(self._weights([ys[0].detach() for ys in outputs[1:]], parameters)):
                first = torch.stack([weight * ys[0] for weight, ys in zip(weights, others, strict=True)])
                means[own + 1] = [first.sum(0), *means[own + 1][1:]]
        return [[self._as_output(i, y) for i, y in enumerate(ys)] for ys in means]

    @property
    def _has_probabilities(self) -> bool:
        return self.axis is not None and self.distill.outputs == "kl"

    def _compared(self, index: int, y: Tensor) -> Tensor:
        if index or not self._has_probabilities:
            return y
        assert self.axis is not None
        return (y / self.distill.temperature).softmax(self.axis)

    def _as_output(self, index: int, y: Tensor) -> Tensor:
        """Scores with these probabilities at the temperature."""
        if index or not self._has_probabilities:
            return y
        return self.distill.temperature * y.clamp(min=_TINY).log()

    def _weights(self, scores: Sequence[Tensor], parameters: Mapping[str, Tensor]) -> list[Tensor]:
        """For each peer, the weights [peers, ...] of all, which sum to 1; the class dimension has size 1."""
        assert self.axis is not None
        rows = [z.movedim(self.axis, -1) for z in scores]
        queries = [z @ parameters[_QUERY].T for z in rows]
        keys = torch.stack([z @ parameters[_KEY].T for z in rows])
        return [(query * keys).sum(-1).softmax(0).unsqueeze(self.axis + 1) for query in queries]


def _mean(outputs: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    return [
        torch.stack(list(ys)).mean(0) if ys[0].is_floating_point() else ys[0]
        for ys in zip(*outputs, strict=True)
    ]


def _name(index: int, name: str) -> str:
    return f"peer_{index}:{name}"
