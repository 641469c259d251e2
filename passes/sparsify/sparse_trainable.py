"""Trainable form of a float graph whose weights become sparse while they are trained.

    surgery        w * m(w), m the mask of the largest magnitudes, chosen anew in each step; its gradient reaches all
                   weights, so that removed ones can come back   Guo et al., Dynamic Network Surgery, NeurIPS 2016
    learned        sign(w) max(|w| - c exp(s), 0), s a trained number for each weight tensor, c the number that gives
                   all tensors together the share of zeros       after Kusupati et al., STR, ICML 2020
    learned_masks  w * step(|w| - c exp(s)), s a trained number for each row of a weight, c as above; in place of the
                   step's derivative: 2 - 4 |x| up to |x| = 0.4, then 0.4 up to 1, so that removed weights can come
                   back                                          after Liu et al., Dynamic Sparse Training, ICLR 2020

The share of zeros rises as `share * (1 - (1 - t)^3)` with t from 0 to 1 within the first half of the training (Zhu and
Gupta, 2017). Validation and export use the final share. With a pattern N:M the mask keeps the N largest of every M
consecutive weights along the input channels from the first step on (Zhou et al., SR-STE, ICLR 2021). Masks of
blocks compare the sums of their magnitudes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from ...ir import Graph, run
from ...ir.interpret import Observer
from ..training.trainable import FloatTrainable
from .blocks import Blocks
from .criteria import mask_pattern, mask_smallest, mask_smallest_of_all

_RISES = 0.5  # share of the training in which the share of zeros rises
_NEAR, _SLOPE = 0.4, 0.4  # where the derivative of the step ends to fall, and its value from there to 1


@dataclass(frozen=True)
class SparseTrainable:
    """Trainable form with zeros in the blocks of the weights `sparse`.

    Parameter `threshold:NAME`: s of a weight or of its rows, if learned.
    """

    dense: FloatTrainable
    sparse: Mapping[str, Blocks]
    schedule: Literal["surgery", "learned", "learned_masks"]
    share: float  # of zeros
    scope: Literal["layer", "global"] = "global"
    kept_of: tuple[int, int] | None = None
    progress: float = 1.0  # share of the training that is done

    def start(self) -> dict[str, Tensor]:
        """Initial parameters: copies of the constants, and thresholds that are equal relative to each weight."""
        parameters = self.dense.start()
        match self.schedule:
            case "learned":
                thresholds = {name: torch.zeros(1) for name in self.sparse}
            case "learned_masks":
                thresholds = {name: _by_row(parameters[name]) for name in self.sparse}
            case "surgery":
                thresholds = {}
        return parameters | {_threshold(name): tensor for name, tensor in thresholds.items()}

    def at(self, progress: float) -> SparseTrainable:
        """The form when this share of the training is done."""
        return replace(self, progress=progress)

    def forward(
        self, batched: Graph, inputs: Sequence[Tensor], parameters: Mapping[str, Tensor], *, observe: Observer
    ) -> list[Tensor]:
        """Differentiable outputs, with sparse weights."""
        dense = {name: parameters[name] for name in self.dense.names}
        return run(batched, inputs, params=dense | self._sparse(parameters), observe=observe)

    def export(self, parameters: Mapping[str, Tensor]) -> Graph:
        """The graph with the trained constants and all zeros."""
        dense = {name: parameters[name].detach() for name in self.dense.names}
        with torch.no_grad():
            trained = dense | self.at(1.0)._sparse(parameters)
        return self.dense.graph.with_params({name: t.contiguous() for name, t in trained.items()})

    def _sparse(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        weights = {name: parameters[name] for name in self.sparse}
        done = min(1.0, self.progress / _RISES)
        share = self.share * (1 - (1 - done) ** 3)
        if self.schedule != "surgery":
            thresholds = _thresholds(weights, {n: parameters[_threshold(n)] for n in weights}, share)
            cut = _shrunk if self.schedule == "learned" else _masked
            return {name: cut(weight, thresholds[name]) for name, weight in weights.items()}
        with torch.no_grad():
            masks = self._masks(weights, share)
            removed = {name: torch.where(masks[name], 0.0, weight) for name, weight in weights.items()}
        return {name: weight - removed[name] for name, weight in weights.items()}

    def _masks(self, weights: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
        if self.kept_of is not None:
            return {name: mask_pattern(weight, *self.kept_of) for name, weight in weights.items()}
        scores = {name: self.sparse[name].scores(weight) for name, weight in weights.items()}
        if self.scope == "layer":
            masks = {name: mask_smallest(score, share) for name, score in scores.items()}
        else:
            masks = mask_smallest_of_all(scores, share)
        return {name: self.sparse[name].mask(mask, weights[name].shape[1]) for name, mask in masks.items()}


def _thresholds(weights: Mapping[str, Tensor], logs: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """Thresholds c exp(s) of the magnitudes, with c such that this share of all weights is below."""
    with torch.no_grad():
        relative = torch.cat([(w.abs() / logs[name].exp()).flatten() for name, w in weights.items()])
        zeros = round(share * relative.numel())
        common = relative.kthvalue(zeros).values if zeros else relative.new_zeros(())
    return {name: common * log.exp() for name, log in logs.items()}


def _shrunk(weight: Tensor, threshold: Tensor) -> Tensor:
    """Weights moved towards zero by the threshold."""
    return weight.sign() * (weight.abs() - threshold).clamp(min=0)


def _masked(weight: Tensor, threshold: Tensor) -> Tensor:
    """Weights above the threshold; gradients are those of a wide step."""
    over = weight.abs() - threshold
    near = over.clamp(-_NEAR, _NEAR)
    wide = 2 * near * (1 - near.abs()) + _SLOPE * (over.clamp(-1.0, 1.0) - near)
    return weight * ((over.detach() > 0).to(weight.dtype) + (wide - wide.detach()))


def _by_row(weight: Tensor) -> Tensor:
    """Zeros that broadcast against a weight, one for each row."""
    return torch.zeros(len(weight), *[1] * (weight.ndim - 1))


def _threshold(name: str) -> str:
    """Parameter name of a weight's threshold; no constant of a graph contains a colon."""
    return f"threshold:{name}"
