"""Trainable form of a graph whose weights are stored as integers: learned rounding and learned scales.

    w = s exp(t) * (clamp(round(v), low, high) - zero)

Parameters are the levels v and, per scale, its growth t; both have straight-through gradients. Zero points are fixed,
as are weights whose levels are a table. Weights start at their integers, moved within the rounding interval towards
the weights of the captured model. Rounding of activations is omitted in the forward pass: it has no gradient.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...ir import Builder, Encoding, Graph, Node, Value, rewrite, run
from ...ir.interpret import Observer
from ...ir.ops.quantize import FakeQuantizePerToken
from ...specs.options import FinetuneOptions
from ..base import Context
from ..clean import is_unmoved
from .reencode import reencode
from .trainable import trainable_constants

_LEVELS = (
    5.0  # relative unit of a parameter: a step of the optimizer changes a level 5 times as much as a scale
)
_WITHIN = 0.49  # share of a rounding interval


@dataclass(frozen=True)
class StoredTrainable:
    """Trainable form of a weight-only graph. Parameter `step:NAME`: log growth of the scales of a weight."""

    graph: Graph
    weights: tuple[Value, ...]
    others: tuple[str, ...]  # float constants that are trained
    levels: Mapping[str, Tensor]  # initial levels of each weight
    learns_steps: bool

    @staticmethod
    def of(graph: Graph, options: FinetuneOptions, context: Context) -> StoredTrainable:
        """Trainable form of a graph, restricted by the options."""
        found = trainable_constants(graph, options, context)
        weights = tuple(v for v in found if v.type.is_quantized and _encoding(v).levels is None)
        others = tuple(value.name for value in found if not value.type.is_quantized)
        levels = {value.name: _initial_levels(graph, value, context.original) for value in weights}
        return StoredTrainable(graph, weights, others, levels, options.learn_steps)

    def start(self) -> dict[str, Tensor]:
        """Initial parameters."""
        parameters = {name: self.graph.params[name].detach().clone() for name in self.others}
        parameters |= {name: levels / _LEVELS for name, levels in self.levels.items()}
        if self.learns_steps:
            parameters |= {_step(v.name): torch.zeros(len(_encoding(v).scale)) for v in self.weights}
        return parameters

    def forward(
        self, batched: Graph, inputs: Sequence[Tensor], parameters: Mapping[str, Tensor], *, observe: Observer
    ) -> list[Tensor]:
        """Differentiable outputs, with the rounded weights in place of the stored ones."""
        params = {name: parameters[name] for name in self.others}
        params |= {value.name: self._real(value, parameters) for value in self.weights}
        exact = rewrite(batched, without_rounding)
        return run(exact, inputs, params=params, observe=observe, rounding=lambda _, tensor: tensor)

    def export(self, parameters: Mapping[str, Tensor]) -> Graph:
        """The graph with the trained integers and scales; unchanged weights keep their bytes."""
        encodings: dict[str, Encoding] = {}
        constants = {name: parameters[name].detach().contiguous() for name in self.others}
        start = self.start()
        for value in self.weights:
            names = [name for name in (value.name, _step(value.name)) if name in start]
            if all(torch.equal(start[name], parameters[name]) for name in names):
                continue
            old = _encoding(value)
            with torch.no_grad():
                encodings[value.name] = replace(old, scale=old.scale.like(self._grown(value, parameters)))
                levels = (parameters[value.name] * _LEVELS).round().clamp(old.qmin, old.qmax)
            constants[value.name] = levels.to(old.container.torch).contiguous()
        return reencode(self.graph, encodings, constants)

    def _real(self, value: Value, parameters: Mapping[str, Tensor]) -> Tensor:
        encoding = _encoding(value)
        levels = parameters[value.name] * _LEVELS
        rounded = (levels + (levels.round() - levels).detach()).clamp(encoding.qmin, encoding.qmax)
        distance = rounded - _zeros(encoding, value.type.shape)
        return distance * encoding.spread(self._scales(value, parameters), value.type.shape)

    def _scales(self, value: Value, parameters: Mapping[str, Tensor]) -> Tensor:
        """Scales of a weight as stored, with a straight-through gradient."""
        grown, stored = self._grown(value, parameters), _encoding(value).scale
        if _step(value.name) not in parameters:
            return grown
        return grown + (stored.like(grown).tensor(torch.float32) - grown).detach()

    def _grown(self, value: Value, parameters: Mapping[str, Tensor]) -> Tensor:
        """Scales of a weight before they are rounded to their stored form."""
        start = _encoding(value).scale.tensor(torch.float32)
        growth = parameters.get(_step(value.name))
        return start if growth is None else start * growth.exp()


def _initial_levels(graph: Graph, value: Value, original: Graph | None) -> Tensor:
    """The stored integers as reals, moved towards the weight of the captured model if that is known."""
    encoding, levels = _encoding(value), graph.tensor(value).float()
    if original is None or not is_unmoved(original, graph, value.name):
        return levels
    real = original.params[value.name]
    if not real.is_floating_point():
        return levels
    scale = encoding.spread(encoding.scale.tensor(torch.float32), value.type.shape)
    wanted = real.float() / scale + _zeros(encoding, value.type.shape)
    return levels + (wanted - levels).clamp(-_WITHIN, _WITHIN)


def _zeros(encoding: Encoding, shape: tuple[int, ...]) -> Tensor:
    """Zero points that broadcast against a weight."""
    numbers = encoding.zero_point.tensor(torch.float32).expand(len(encoding.scale))
    return encoding.spread(numbers, shape)


def without_rounding(
    builder: Builder, node: Node, operands: tuple[Value | None, ...]
) -> tuple[Value, ...] | None:
    if not isinstance(node.op, FakeQuantizePerToken):
        return None
    (x,) = operands
    assert x is not None
    return (x,)


def _step(name: str) -> str:
    """Parameter name of the growth of a weight's scales; no constant of a graph contains a colon."""
    return f"step:{name}"


def _encoding(value: Value) -> Encoding:
    assert value.type.quantization is not None
    return value.type.quantization
