"""Trainable form of a graph to which constants were added: only they are trained, all others keep their bytes.

The constants are added so that the batch size can still change, so that training and calibration take several samples
at once. Rounding of activations is left out of the forward pass: it has no gradient.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ...ir import Graph, rebatch, rewrite, run
from ...ir.interpret import Observer
from ..report import Decision
from .stored_trainable import without_rounding


@dataclass(frozen=True)
class AddedTrainable:
    """Trainable form of a graph that contains the added constants already, with their initial values."""

    graph: Graph
    added: tuple[str, ...]
    decisions: tuple[Decision, ...]  # where the constants were added

    def start(self) -> dict[str, Tensor]:
        """Initial parameters: the added constants in float32."""
        return {name: self.graph.params[name].detach().to(torch.float32, copy=True) for name in self.added}

    def forward(
        self, batched: Graph, inputs: Sequence[Tensor], parameters: Mapping[str, Tensor], *, observe: Observer
    ) -> list[Tensor]:
        """Differentiable outputs, with the parameters in place of the added constants."""
        params = {name: parameters[name].to(self.graph.params[name].dtype) for name in self.added}
        return run(self._batched(len(inputs[0])), inputs, params=params, observe=observe)

    def export(self, parameters: Mapping[str, Tensor]) -> Graph:
        """The graph with the trained constants."""
        trained = {name: parameters[name].detach().to(self.graph.params[name].dtype) for name in self.added}
        return self.graph.with_params({name: tensor.contiguous() for name, tensor in trained.items()})

    def _batched(self, batch: int) -> Graph:
        if batch not in self._by_batch:
            is_own = self.graph.inputs[0].type.shape[0] == batch
            graph = self.graph if is_own else rebatch(self.graph, batch)
            self._by_batch[batch] = rewrite(graph, without_rounding)
        return self._by_batch[batch]

    @cached_property
    def _by_batch(self) -> dict[int, Graph]:
        return {}


def free_name(graph: Graph, wish: str) -> str:
    """`wish`, or with a number if a value of the graph has this name."""
    taken = {value.name for value in (*graph.inputs, *graph.results)} | set(graph.params)
    name, number = wish, 1
    while name in taken:
        name, number = f"{wish}_{number}", number + 1
    return name
