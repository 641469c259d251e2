"""Optimizers, learning rate schedule, and optimizer state by parameter name.

rate(t) = rate * t / warmup                          while t < warmup
          rate * (1 + cos(pi * (t - warmup) / (end - warmup))) / 2   after it
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, AdamW, Optimizer

from ...specs.options import FinetuneOptions

_MOMENTUM = 0.9
_STEP = "step"  # torch's key of the step count


@dataclass(frozen=True)
class OptimizerState:
    """Optimizer state: `moments[kind][name]` has the shape of the constant `name`.

    The kinds are those of torch: `exp_avg` and `exp_avg_sq` of AdamW, `momentum_buffer` of SGD.
    """

    steps: int = 0
    moments: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)

    def mapped(self, change: Callable[[str, Tensor], Tensor]) -> OptimizerState:
        """The state with each moment replaced by `change(name, moment)`, for example to remove channels."""
        return OptimizerState(
            self.steps,
            {
                kind: {name: change(name, tensor) for name, tensor in of_kind.items()}
                for kind, of_kind in self.moments.items()
            },
        )

    @staticmethod
    def of(optimizer: Optimizer, parameters: Mapping[str, Tensor]) -> OptimizerState:
        """Copy of the state of an optimizer of these tensors."""
        steps, moments = 0, dict[str, dict[str, Tensor]]()
        for name, tensor in parameters.items():
            for kind, value in optimizer.state[tensor].items():
                if kind == _STEP:
                    steps = int(value)
                elif value is not None:
                    moments.setdefault(kind, {})[name] = value.detach().clone()
        return OptimizerState(steps, moments)

    def enter(self, optimizer: Optimizer, parameters: Mapping[str, Tensor]) -> None:
        """Load this state into an optimizer; tensors that it does not contain start without moments."""
        for kind, of_kind in self.moments.items():
            for name in of_kind.keys() & parameters.keys():
                moment, tensor = of_kind[name], parameters[name]
                assert moment.shape == tensor.shape, (
                    f"{kind} of {name} is {tuple(moment.shape)}, not {tuple(tensor.shape)}"
                )
                optimizer.state[tensor][kind] = moment.clone().contiguous()
                if isinstance(optimizer, AdamW):
                    optimizer.state[tensor][_STEP] = torch.tensor(float(self.steps))


class SignSgd(Optimizer):
    """Steps of one size against the sign of each gradient: p <- p - rate * sign(dp)."""

    def __init__(self, params: Any, lr: float) -> None:  # Any: what torch's optimizers take
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # no closure is called
        """Change all parameters that have a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.add_(parameter.grad.sign(), alpha=-group["lr"])


def make_optimizer(parameters: Mapping[str, Tensor], options: FinetuneOptions) -> Optimizer:
    """Optimizer of these parameters; weight decay applies to tensors of two or more dimensions."""
    groups = [
        {"params": [p for p in parameters.values() if p.ndim > 1], "weight_decay": options.weight_decay},
        {"params": [p for p in parameters.values() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if options.optimizer == "sign_sgd":
        return SignSgd(groups, lr=options.learning_rate)
    if options.optimizer == "sgd":
        return SGD(groups, lr=options.learning_rate, momentum=_MOMENTUM)
    return AdamW(groups, lr=options.learning_rate)


def learning_rate(options: FinetuneOptions, epoch: float) -> float:
    """Learning rate after `epoch` epochs, a fraction within an epoch."""
    if epoch < options.warmup:
        return options.learning_rate * epoch / options.warmup
    done = (epoch - options.warmup) / (options.epochs - options.warmup)
    return options.learning_rate * (1 + math.cos(math.pi * done)) / 2
