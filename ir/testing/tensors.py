"""Strategies for tensors of a type, and for inputs of a graph. They shrink towards zeros."""

from __future__ import annotations

from collections.abc import Callable

import torch
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from torch import Tensor

from ..element_type import DType
from ..graph import Graph
from ..ops.embedding import Embedding
from ..tensor_type import TensorType, Value

_DENORMAL = 1e-40
_LARGE = 1e4
_INDICES = 8

Fill = Callable[[TensorType, torch.Generator], Tensor]


def tensors(type: TensorType, *, extreme: bool = True) -> SearchStrategy[Tensor]:
    """Tensors of `type`: random ones and, unless `extreme` is False, constant ones at the ends of the range.

    Integers of a quantized type cover its whole range; plain integers are in 0..7, as indices are. Floats are finite:
    normally distributed, or everywhere zero, one, a denormal or a large number.
    """
    fills = (*_RANDOM, *_constants(type)) if extreme else _RANDOM
    return st.builds(
        lambda fill, seed: fill(type, torch.Generator().manual_seed(seed)),
        st.sampled_from(fills),
        st.integers(0, 2**16),
    )


def inputs(graph: Graph, *, extreme: bool = True) -> SearchStrategy[list[Tensor]]:
    """One tensor for each input of the graph, as `tensors` draws them; indices fit their tables."""
    return st.tuples(*(_input(graph, value, extreme) for value in graph.inputs)).map(list)


def _input(graph: Graph, value: Value, extreme: bool) -> SearchStrategy[Tensor]:
    drawn = tensors(value.type, extreme=extreme)
    rows = [
        node.operand("weight").type.shape[0]
        for node in graph.users.get(value.name, ())
        if isinstance(node.op, Embedding) and node.operand("indices") == value
    ]
    return drawn.map(lambda t: t.clamp(max=min(rows) - 1)) if rows else drawn


def _zeros(type: TensorType, _: torch.Generator) -> Tensor:
    zero = 0 if type.quantization is None else type.quantization.zero_point[0]
    return torch.full(type.shape, zero, dtype=type.dtype.torch)


def _random(type: TensorType, generator: torch.Generator) -> Tensor:
    if type.quantization is not None:
        low, high = type.quantization.qmin, type.quantization.qmax
        return torch.randint(low, high + 1, type.shape, generator=generator).to(type.dtype.torch)
    if type.dtype is DType.BOOL:
        return torch.rand(type.shape, generator=generator) < 0.5
    if not type.dtype.is_floating:
        return torch.randint(0, _INDICES, type.shape, generator=generator).to(type.dtype.torch)
    return torch.randn(type.shape, generator=generator, dtype=torch.float64).to(type.dtype.torch)


def _wide(type: TensorType, generator: torch.Generator) -> Tensor:
    x = _random(type, generator)
    return x * 30 if type.quantization is None and type.dtype.is_floating else x


_RANDOM: tuple[Fill, ...] = (_zeros, _random, _random, _random, _wide, _wide)  # zeros first: the simplest


def _constants(type: TensorType) -> tuple[Fill, ...]:
    if type.quantization is not None:
        numbers: tuple[float, ...] = (type.quantization.qmin, type.quantization.qmax)
    elif type.dtype.is_floating:
        numbers = (1.0, -1.0, _DENORMAL, _LARGE, -_LARGE)
    else:
        numbers = ()
    return tuple(_constant(number) for number in numbers)


def _constant(number: float) -> Fill:
    return lambda type, _: torch.full(type.shape, number, dtype=type.dtype.torch)
