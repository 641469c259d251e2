"""AdaRound: the rounding of each weight, up or down, is learned against the output of its layer.

    w(V) = s * clip(floor(w / s) + h(V), -q, q),    h(V) = clip(1.2 sigmoid(V) - 0.1, 0, 1)
    minimize  ||f(x') - f_w(V)(x)||^2 / ||f(x') - f_nearest(x)||^2 + r * mean(1 - |2 h(V) - 1|^beta)

where f is the layer with its activation, x' its input in the float network, and x its input in the network whose
earlier layers are quantized. While beta decreases, h(V) tends to 0 or 1. Source: Nagel et al., Up or Down? Adaptive
rounding for post-training quantization, ICML 2020.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import cos, pi

import torch
from torch import Tensor
from torch.optim import Adam

from ...ir.ops.accumulate import Clamp, apply_clamp

_STRETCH, _SHIFT = 1.2, -0.1
_BATCH = 512  # places of a step
_WARM_UP = 0.2  # share of the steps in which h is free
_BETA_FIRST, _BETA_LAST = 20.0, 2.0
_PULL = 1.0  # r in the formula above


@dataclass(frozen=True)
class LayerSamples:
    """Output positions of one layer: groups g, positions n, weights k and outputs o of a group.

    `x` [g, n, k] is the input of the quantized layer, `added` [g, n, o] or 0 its residual, and `wanted` [g, n, o] the
        result of the float layer before its clamp.
    """

    x: Tensor
    added: Tensor | float
    wanted: Tensor
    clamp: Clamp

    def shortfall(self, weight: Tensor) -> Tensor:
        """Bias [g, 1, o] that gives each output its wanted mean before the clamp, with these weights."""
        return (self.wanted - self.x @ weight.mT - self.added).mean(1, keepdim=True)

    def centred(self) -> LayerSamples:
        """Samples with inputs of mean zero: one bias gives each output its wanted mean for any weights."""
        return replace(self, x=self.x - self.x.mean(1, keepdim=True))

    def error(self, weight: Tensor, bias: Tensor) -> float:
        """Mean squared error of the layer's result with weights [g, o, k] and bias [g, 1, o]."""
        return float(self._difference(weight, bias, slice(None)).square().mean())

    def power(self) -> float:
        """Mean square of the wanted result."""
        return float(apply_clamp(self.wanted, self.clamp).square().mean())

    def loss(self, weight: Tensor, bias: Tensor, places: Tensor) -> Tensor:
        """Mean squared error over some positions."""
        return self._difference(weight, bias, places).square().mean()

    def _difference(self, weight: Tensor, bias: Tensor, places: Tensor | slice) -> Tensor:
        added = self.added if isinstance(self.added, float) else self.added[:, places]
        y = self.x[:, places] @ weight.mT + bias + added
        return apply_clamp(y, self.clamp) - apply_clamp(self.wanted[:, places], self.clamp)


def learn_rounding(
    weight: Tensor,
    step: Tensor,
    bias: Tensor,
    samples: LayerSamples,
    *,
    largest: int,
    iterations: int,
    learning_rate: float,
    generator: torch.Generator,
) -> Tensor:
    """Integers of `weight` [g, o, k], each the integer below or above weight / step, within -largest..largest.

    `step` broadcasts against the weight: per tensor, channel or group.
    """
    ratio = weight / step
    below = ratio.floor()
    choice = _logit(ratio - below).requires_grad_()
    optimizer = Adam([choice], lr=learning_rate)
    nearest = ratio.round().clamp(-largest, largest) * step
    scale = samples.error(nearest, bias)
    if not scale:
        return ratio.round().clamp(-largest, largest)
    count = samples.x.shape[1]
    for iteration in range(iterations):
        done = iteration / iterations
        places = torch.randint(count, (min(_BATCH, count),), generator=generator)
        up = _rectified(choice)
        rounded = (below + up).clamp(-largest, largest) * step
        loss = samples.loss(rounded, bias, places) / scale
        if done >= _WARM_UP:
            loss = loss + _PULL * (1 - (2 * up - 1).abs() ** _beta(done)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return (below + (_rectified(choice.detach()) >= 0.5)).clamp(-largest, largest)


def _rectified(choice: Tensor) -> Tensor:
    """h(V), the fraction of rounding up."""
    return (_STRETCH * torch.sigmoid(choice) + _SHIFT).clamp(0, 1)


def _logit(share: Tensor) -> Tensor:
    """V with h(V) equal to `share`."""
    return torch.logit((share - _SHIFT) / _STRETCH)


def _beta(done: float) -> float:
    falling = max(0.0, (done - _WARM_UP) / (1 - _WARM_UP))
    return _BETA_LAST + (_BETA_FIRST - _BETA_LAST) * 0.5 * (1 + cos(pi * falling))
