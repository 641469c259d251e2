"""Trainable form of a float graph: its parameters, a differentiable forward pass, and the export to a graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from ...ir import Graph, Node, Value, run
from ...ir.interpret import Observer
from ...ir.ops.convert import Cast
from ...ir.ops.norm import BatchNorm, GroupNorm, InstanceNorm, LayerNorm, RmsNorm
from ...ir.ops.quantize import Dequantize
from ...specs.options import FinetuneOptions
from ..base import Context
from ..weighted_layers import constants_read

_NORMS = (BatchNorm, LayerNorm, GroupNorm, InstanceNorm, RmsNorm)


class Trainable(Protocol):
    """A graph in training. The caller owns the parameters, tensors by name, and passes them to each call."""

    def start(self) -> dict[str, Tensor]:
        """Initial parameters."""

    def forward(
        self, batched: Graph, inputs: Sequence[Tensor], parameters: Mapping[str, Tensor], *, observe: Observer
    ) -> list[Tensor]:
        """Differentiable outputs; `batched` is the graph with the batch size of `inputs`."""

    def export(self, parameters: Mapping[str, Tensor]) -> Graph:
        """The graph with the trained parameters."""


@dataclass(frozen=True)
class FloatTrainable:
    """Trainable form of a float graph. `keep_zeros`: zeros of sparse weights stay zero."""

    graph: Graph
    names: tuple[str, ...]
    keep_zeros: bool = True

    @cached_property
    def masks(self) -> Mapping[str, Tensor]:
        """Masks of the nonzero elements of sparse weights."""
        weights = {name: self.graph.params[name] for name in self.names if self.keep_zeros}
        masks = {name: tensor != 0 for name, tensor in weights.items() if tensor.ndim > 1}
        return {name: mask for name, mask in masks.items() if mask.any() and not mask.all()}

    def start(self) -> dict[str, Tensor]:
        """Initial parameters: copies of the constants."""
        return {name: self.graph.params[name].detach().clone() for name in self.names}

    def forward(
        self, batched: Graph, inputs: Sequence[Tensor], parameters: Mapping[str, Tensor], *, observe: Observer
    ) -> list[Tensor]:
        """Differentiable outputs, with the parameters in place of the constants."""
        sparse = {name: parameters[name] * mask for name, mask in self.masks.items()}
        return run(batched, inputs, params={**parameters, **sparse}, observe=observe)

    def export(self, parameters: Mapping[str, Tensor]) -> Graph:
        """The graph with the trained constants."""
        trained = {name: parameters[name].detach() for name in self.names}
        trained |= {name: torch.where(mask, trained[name], 0.0) for name, mask in self.masks.items()}
        return self.graph.with_params({name: tensor.contiguous() for name, tensor in trained.items()})


def trainable_constants(graph: Graph, options: FinetuneOptions, context: Context) -> list[Value]:
    """Weights and biases of layers, float or quantized, without those that layers in `keep` read.

    With `trains: norms_and_biases` only the weights of norms, and vectors.
    """
    takes_all = options.trains == "all"

    def weights(node: Node) -> list[Value]:
        learned = [constant_behind(graph, v) for v in node.op.learned(node.inputs) if v is not None]
        if not takes_all and not isinstance(node.op, _NORMS):
            learned = [v for v in learned if v.type.rank == 1]
        return [v for v in learned if v.type.is_quantized or v.type.dtype.is_floating]

    found = constants_read(graph, weights, lambda source: context.selects_any(options.keep, source))
    return [value for _, value in found.values()]


def constant_behind(graph: Graph, value: Value) -> Value:
    """The stored weight that a layer reads as reals; any other value unchanged."""
    node = graph.producers.get(value.name)
    if node is None or not isinstance(node.op, Cast | Dequantize):
        return value
    return constant_behind(graph, node.operands[0])
