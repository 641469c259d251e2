"""Classifiers after inner modules, which learn from the labels and from the final output (self-distillation).

    e = W mean(h) + b over the positions of each channel;   Be Your Own Teacher, Zhang et al., ICCV 2019

The exits exist in training only. Their losses give earlier layers a shorter path to the labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...ir import Graph
from ..errors import PassError
from .feature_loss import channel_axis, find_feature

_SCORES = 2  # rank of [n, classes]


@dataclass(frozen=True, slots=True)
class Exit:
    """Linear classifier of a value. Parameters `exit:MODULE:weight` and `exit:MODULE:bias`."""

    module: str
    value: str
    axis: int  # dimension of the channels
    channels: int
    classes: int

    def start(self, generator: torch.Generator) -> dict[str, Tensor]:
        """Initial parameters."""
        weight = torch.randn(self.classes, self.channels, generator=generator) / self.channels**0.5
        return {f"exit:{self.module}:weight": weight, f"exit:{self.module}:bias": torch.zeros(self.classes)}

    def scores(self, features: Mapping[str, Tensor], parameters: Mapping[str, Tensor]) -> Tensor:
        """Class scores [n, classes]."""
        channels = features[self.value].movedim(self.axis, 1)
        mean = channels.reshape(*channels.shape[:2], -1).mean(2)
        weight, bias = (parameters[f"exit:{self.module}:{name}"] for name in ("weight", "bias"))
        return torch.nn.functional.linear(mean, weight, bias)


def find_exits(
    graph: Graph, captured: Graph, modules: Sequence[str], shape: Sequence[int]
) -> tuple[Exit, ...]:
    """The exits of a graph whose first output has this shape; PassError if it is not [n, classes]."""
    if modules and len(shape) != _SCORES:
        raise PassError(
            f"distill.exits: an exit has one class per sample; the output has shape {tuple(shape)}"
        )
    found = []
    for module in modules:
        value = find_feature(graph, captured, module, place="distill.exits")
        if value.type.rank < _SCORES or not value.type.real().dtype.is_floating:
            raise PassError(f"distill.exits: {module} has no float channels: {value.type.shape}")
        axis = channel_axis(value.type.rank)
        found.append(Exit(module, value.name, axis, value.type.shape[axis], shape[1]))
    return tuple(found)
