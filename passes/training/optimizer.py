"""Optimizers, their rate over the steps, and their state by the names of what they train.

rate(t) = rate * t / warmup                          while t < warmup
          rate * (1 + cos(pi * (t - warmup) / (end - warmup))) / 2   after it
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.optim import SGD, AdamW, Optimizer

from ...specs.options import FinetuneOptions

_MOMENTUM = 0.9
_STEP = "step"  # under which torch keeps the number of steps


@dataclass(frozen=True)
class OptimizerState:
    """What an optimizer remembers: `moments[kind][name]` has the shape of the trained constant `name`.

    The kinds are those of torch: `exp_avg` and `exp_avg_sq` of AdamW, `momentum_buffer` of SGD.
    """

    steps: int = 0
    moments: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)

    def mapped(self, change: Callable[[str, Tensor], Tensor]) -> OptimizerState:
        """Each moment as `change(name, moment)`: cut by the index sets by which the constant `name` was cut."""
        return OptimizerState(
            self.steps,
            {
                kind: {name: change(name, tensor) for name, tensor in of_kind.items()}
                for kind, of_kind in self.moments.items()
            },
        )

    @staticmethod
    def of(optimizer: Optimizer, learned: Mapping[str, Tensor]) -> OptimizerState:
        """The state of an optimizer of these tensors, as copies."""
        steps, moments = 0, dict[str, dict[str, Tensor]]()
        for name, tensor in learned.items():
            for kind, value in optimizer.state[tensor].items():
                if kind == _STEP:
                    steps = int(value)
                elif value is not None:
                    moments.setdefault(kind, {})[name] = value.detach().clone()
        return OptimizerState(steps, moments)

    def enter(self, optimizer: Optimizer, learned: Mapping[str, Tensor]) -> None:
        """Make an optimizer go on from here; it starts afresh with tensors that the state does not know."""
        for kind, of_kind in self.moments.items():
            for name in of_kind.keys() & learned.keys():
                moment, tensor = of_kind[name], learned[name]
                assert moment.shape == tensor.shape, (
                    f"{kind} of {name} is {tuple(moment.shape)}, not {tuple(tensor.shape)}"
                )
                optimizer.state[tensor][kind] = moment.clone().contiguous()
                if isinstance(optimizer, AdamW):
                    optimizer.state[tensor][_STEP] = torch.tensor(float(self.steps))


def make_optimizer(learned: Mapping[str, Tensor], options: FinetuneOptions) -> Optimizer:
    """An optimizer of these tensors; weights decay, vectors and numbers do not."""
    groups = [
        {"params": [p for p in learned.values() if p.ndim > 1], "weight_decay": options.weight_decay},
        {"params": [p for p in learned.values() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if options.optimizer == "sgd":
        return SGD(groups, lr=options.learning_rate, momentum=_MOMENTUM)
    return AdamW(groups, lr=options.learning_rate)


def learning_rate(options: FinetuneOptions, epoch: float) -> float:
    """The rate after so many epochs, in the middle of one too."""
    if epoch < options.warmup:
        return options.learning_rate * epoch / options.warmup
    done = (epoch - options.warmup) / (options.epochs - options.warmup)
    return options.learning_rate * (1 + math.cos(math.pi * done)) / 2
