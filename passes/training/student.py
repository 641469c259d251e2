"""What is trained: a graph whose constants are learned, run on a batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from ...ir import Graph, Node, Value, run
from ...ir.interpret import Observer
from ...ir.ops.embedding import Embedding
from ...ir.ops.norm import BatchNorm, GroupNorm, InstanceNorm, LayerNorm, RmsNorm
from ...ir.ops.prelu import Prelu
from ...ir.ops.recurrent import Recurrent
from ...specs.options import FinetuneOptions
from ..base import Context
from ..layers import LAYERS, constants_read

_AFFINE = (BatchNorm, LayerNorm, GroupNorm, InstanceNorm, RmsNorm, Prelu, Embedding)


class Student(Protocol):
    """A graph in training. What it learns is a mapping of names to tensors that it gives out once, and takes back."""

    def start(self) -> dict[str, Tensor]:
        """What is learned, as it is before training."""

    def answer(
        self, batched: Graph, inputs: Sequence[Tensor], learned: Mapping[str, Tensor], *, observe: Observer
    ) -> list[Tensor]:
        """Outputs for inputs, differentiable; `batched` is the student's graph for a batch of their size."""

    def taught(self, learned: Mapping[str, Tensor]) -> Graph:
        """The graph with what was learned."""


@dataclass(frozen=True)
class FloatStudent:
    """Float constants of a graph, by name. With `keep_zeros` the zeros of weights that have others too stay."""

    graph: Graph
    names: tuple[str, ...]
    keep_zeros: bool = True

    @cached_property
    def masks(self) -> Mapping[str, Tensor]:
        """Which elements of sparse weights may be trained: those that are not zero."""
        weights = {name: self.graph.params[name] for name in self.names if self.keep_zeros}
        masks = {name: tensor != 0 for name, tensor in weights.items() if tensor.ndim > 1}
        return {name: mask for name, mask in masks.items() if mask.any() and not mask.all()}

    def start(self) -> dict[str, Tensor]:
        """The constants."""
        return {name: self.graph.params[name].detach().clone() for name in self.names}

    def answer(
        self, batched: Graph, inputs: Sequence[Tensor], learned: Mapping[str, Tensor], *, observe: Observer
    ) -> list[Tensor]:
        """The graph run with the learned constants in place of its own."""
        sparse = {name: learned[name] * mask for name, mask in self.masks.items()}
        return run(batched, inputs, params={**learned, **sparse}, observe=observe)

    def taught(self, learned: Mapping[str, Tensor]) -> Graph:
        """The graph with the learned constants."""
        known = {name: learned[name].detach() for name in self.names}
        known |= {name: torch.where(mask, known[name], 0.0) for name, mask in self.masks.items()}
        return self.graph.with_params({name: tensor.contiguous() for name, tensor in known.items()})


def trainable(graph: Graph, options: FinetuneOptions, context: Context) -> list[Value]:
    """Weights and biases of layers, float or quantized; not those of kept layers, nor what those share."""
    found = constants_read(graph, _weights, lambda source: context.selects_any(options.keep, source))
    return [value for _, value in found.values()]


def _weights(node: Node) -> list[Value]:
    if isinstance(node.op, (*LAYERS, *_AFFINE)):
        values = [node.operand(1), node.operand(2)]
    elif isinstance(node.op, Recurrent):
        values = list(node.inputs[1 + node.op.states :])
    else:
        return []
    return [v for v in values if v is not None and (v.type.is_quantized or v.type.dtype.is_floating)]
