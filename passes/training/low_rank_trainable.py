"""Trainable form of a graph with low-rank adapters: of each weight only a change of low rank is trained (LoRA).

    W + s B A,   A [rank, in],  B [out, rank],  s = alpha / rank           Hu et al., LoRA, ICLR 2022

A starts uniform, B at zero, so that the network starts as it is. Float weights are exported with the change added.
Stored weights (of `weight_only`) keep their bytes: a layer then adds two small ones, y + (x A^T) (s B)^T, as in QLoRA
(Dettmers et al., NeurIPS 2023). Tables that an embedding reads as well have no adapter then. Rounding of activations
is left out of the forward pass: it has no gradient.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...ir import Builder, Graph, Node, Value, rewrite, run
from ...ir.interpret import Observer
from ...ir.ops.binary import Add
from ...ir.ops.convert import Cast
from ...ir.ops.linear import Linear
from ...ir.ops.quantize import Dequantize, FakeQuantizePerToken
from ...specs.options import FinetuneOptions, Lora
from ..base import Context
from ..errors import PassError
from ..weighted_layers import constants_read
from .stored_trainable import without_rounding
from .trainable import constant_behind


@dataclass(frozen=True)
class LowRankTrainable:
    """Trainable form with adapters. Parameters `lora_a:NAME` and `lora_b:NAME` of each weight."""

    graph: Graph
    weights: tuple[Value, ...]  # [out, in], float or stored
    rank: int
    scale: float
    seed: int
    masks: Mapping[str, Tensor]  # of the nonzero elements of sparse float weights, which stay zero

    @staticmethod
    def of(graph: Graph, options: FinetuneOptions, lora: Lora, context: Context) -> LowRankTrainable:
        """Trainable form of a graph; PassError if no layer takes an adapter."""

        def weights(node: Node) -> list[Value]:
            if not isinstance(node.op, Linear):
                return []
            if lora.layers and not context.selects_any(lora.layers, node.source):
                return []
            weight = constant_behind(graph, node.operand("weight"))
            if weight.type.is_quantized and not _read_by_layers_alone(graph, weight):
                return []
            return [weight]

        found = constants_read(graph, weights, lambda source: context.selects_any(options.keep, source))
        values = tuple(value for _, value in found.values())
        if not values:
            raise PassError("trains: lora: there is no linear layer with a weight of its own to adapt")
        low = [value.name for value in values if lora.rank > min(value.type.shape)]
        if low:
            raise PassError(
                f"trains: lora: rank {lora.rank} is more than the rank of {low[0]}; lower `rank`, or name other "
                "`layers`"
            )
        scale = 1.0 if lora.alpha is None else lora.alpha / lora.rank
        floats = [value.name for value in values if not value.type.is_quantized]
        masks = {name: graph.params[name] != 0 for name in floats if options.keep_zeros}
        masks = {name: mask for name, mask in masks.items() if mask.any() and not mask.all()}
        return LowRankTrainable(graph, values, lora.rank, scale, options.seed, masks)

    def start(self) -> dict[str, Tensor]:
        """Initial parameters: A uniform as in `torch.nn.Linear`, B zero."""
        generator = torch.Generator().manual_seed(self.seed)
        parameters: dict[str, Tensor] = {}
        for value in self.weights:
            rows, columns = value.type.shape
            uniform = torch.rand(self.rank, columns, generator=generator)
            parameters[_a(value.name)] = (2 * uniform - 1) / columns**0.5
            parameters[_b(value.name)] = torch.zeros(rows, self.rank)
        return parameters

    def forward(
        self, batched: Graph, inputs: Sequence[Tensor], parameters: Mapping[str, Tensor], *, observe: Observer
    ) -> list[Tensor]:
        """Differentiable outputs, with the changed weights in place of the constants."""
        changed = {value.name: self._changed(value, parameters) for value in self.weights}
        exact = rewrite(batched, without_rounding)
        return run(exact, inputs, params=changed, observe=observe)

    def export(self, parameters: Mapping[str, Tensor]) -> Graph:
        """The graph with changed float weights, and adapters beside stored ones."""
        with torch.no_grad():
            merged = {
                value.name: self._changed(value, parameters).to(self.graph.params[value.name].dtype)
                for value in self.weights
                if not value.type.is_quantized
            }
        graph = self.graph.with_params({name: tensor.contiguous() for name, tensor in merged.items()})
        stored = {value.name for value in self.weights if value.type.is_quantized}
        return self._with_adapters(graph, stored, parameters) if stored else graph

    def _changed(self, value: Value, parameters: Mapping[str, Tensor]) -> Tensor:
        """The weight and its change, real numbers."""
        base = self.graph.params[value.name].detach()
        if value.type.quantization is not None:
            base = value.type.quantization.dequantize(base)
        change = self.scale * parameters[_b(value.name)] @ parameters[_a(value.name)]
        mask = self.masks.get(value.name)
        return base + (change if mask is None else change * mask).to(base.dtype)

    def _with_adapters(self, graph: Graph, stored: set[str], parameters: Mapping[str, Tensor]) -> Graph:
        exact: dict[str, Value] = {}  # operand of each rounded input
        adapters: dict[str, tuple[Value, Value]] = {}

        def visit(
            builder: Builder, node: Node, operands: tuple[Value | None, ...]
        ) -> tuple[Value, ...] | None:
            if isinstance(node.op, FakeQuantizePerToken):
                exact[node.output.name] = node.op.operand(operands, "x")
                return None
            if not isinstance(node.op, Linear):
                return None
            name = constant_behind(graph, node.operand("weight")).name
            if name not in stored:
                return None
            change = exact.get(node.operand("x").name, node.op.operand(operands, "x"))
            if name not in adapters:
                matrices = parameters[_a(name)], self.scale * parameters[_b(name)]
                a, b = (matrix.detach().to(change.type.dtype.torch) for matrix in matrices)
                adapters[name] = builder.constant(f"{name}_lora_a", a), builder.constant(f"{name}_lora_b", b)
            result = node.output.name  # names of its own, or the builder gives those of later nodes
            for part, matrix in zip(("a", "b"), adapters[name], strict=True):
                change = builder.add(
                    Linear(), change, matrix, name=f"{result}_lora_{part}", source=node.source
                )
            residual = node.op.optional(operands, "residual")
            if residual is not None:
                change = builder.add(Add(), residual, change, name=f"{result}_lora_sum", source=node.source)
            bias = node.op.optional(operands, "bias")
            return builder.keep(node, (*operands[:2], bias, change))

        return rewrite(graph, visit)


def _read_by_layers_alone(graph: Graph, value: Value) -> bool:
    """True if all readers of a stored weight, or of the real numbers made of it, are linear layers."""
    readers = graph.users[value.name]
    converted = [node for node in readers if isinstance(node.op, Cast | Dequantize)]
    others = [node for node in readers if not isinstance(node.op, Cast | Dequantize)]
    return all(isinstance(node.op, Linear) for node in others) and all(
        _read_by_layers_alone(graph, node.output) for node in converted
    )


def _a(name: str) -> str:
    """Parameter name of an adapter's A; no constant of a graph contains a colon."""
    return f"lora_a:{name}"


def _b(name: str) -> str:
    """Parameter name of an adapter's B."""
    return f"lora_b:{name}"
