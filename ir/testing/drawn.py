"""Constants and inputs of float graphs for examples: normally distributed, equal for equal seeds."""

from __future__ import annotations

import torch
from torch import Tensor

from ..graph import Graph
from ..tensor_type import Value

_INDICES = 8


def drawn_constant(value: Value) -> Tensor:
    """A constant of the value's type, for `parse(text, fill=drawn_constant)`; the same for the same name."""
    seed = sum(map(ord, value.name))
    return _normal(value, torch.Generator().manual_seed(seed))


def drawn_samples(graph: Graph, count: int, *, seed: int = 1) -> list[tuple[Tensor, ...]]:
    """Inputs for `count` runs of the graph; those that are integers are indices in 0..7."""
    generator = torch.Generator().manual_seed(seed)
    return [tuple(_input(value, generator) for value in graph.inputs) for _ in range(count)]


def _input(value: Value, generator: torch.Generator) -> Tensor:
    if value.type.dtype.is_floating:
        return _normal(value, generator)
    return torch.randint(0, _INDICES, value.type.shape, generator=generator).to(value.type.dtype.torch)


def _normal(value: Value, generator: torch.Generator) -> Tensor:
    return torch.randn(value.type.shape, generator=generator, dtype=value.type.dtype.torch)
