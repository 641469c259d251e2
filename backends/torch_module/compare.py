"""Difference of an emitted quantized module from the integer semantics, in quantization steps."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...ir import Graph, Node, Value, run_integer
from ...ir.ops.quantize import Dequantize
from .emit import Form, to_module


@dataclass(frozen=True, slots=True)
class Mismatch:
    """Number of elements that differ from `run_integer`, and the largest difference in steps."""

    elements: int
    differing: int
    largest_step: int

    @property
    def rate(self) -> float:
        """Share of the elements that differ."""
        return self.differing / max(self.elements, 1)

    @staticmethod
    def total(parts: Iterable[Mismatch]) -> Mismatch:
        """All of `parts` as one."""
        listed = list(parts)
        return Mismatch(
            sum(part.elements for part in listed),
            sum(part.differing for part in listed),
            max((part.largest_step for part in listed), default=0),
        )


def requantization_mismatch(
    graph: Graph, batches: Sequence[Sequence[Tensor]], *, form: Form
) -> dict[str, Mismatch]:
    """For each quantized value that a node computes: the results of the node's module against its integers.

    Each node is emitted alone and gets the exact integers of `run_integer`, so that differences do not add up.
    """
    nodes = [node for node in graph.nodes if all(value.type.is_quantized for value in node.outputs)]
    modules = {
        node.output.name: to_module(_alone(graph, node), form=form)
        for node in nodes
        if len(node.outputs) == 1
    }
    found: dict[str, list[Mismatch]] = {name: [] for name in modules}
    for inputs in batches:
        exact = _integers(graph, inputs)
        for node in nodes:
            if len(node.outputs) == 1:
                operands = [exact[value.name] for value in _varying(graph, node)]
                with torch.no_grad():
                    computed = modules[node.output.name](*operands)
                found[node.output.name].append(_difference(computed, exact[node.output.name]))
    return {name: Mismatch.total(parts) for name, parts in found.items()}


def output_mismatch(graph: Graph, module: nn.Module, batches: Sequence[Sequence[Tensor]]) -> Mismatch:
    """The whole module's outputs against `run_integer`, in quantization steps; float outputs are not compared.

    Here the differences of all layers add up.
    """
    parts = []
    for inputs in batches:
        with torch.no_grad():
            results = module(*inputs)
        listed = [results] if isinstance(results, Tensor) else list(results)
        for value, computed, exact in zip(graph.outputs, listed, run_integer(graph, inputs), strict=True):
            step = _step(graph, value)
            if step is not None:
                parts.append(_difference((computed / step).round(), (exact / step).round()))
    return Mismatch.total(parts)


def _alone(graph: Graph, node: Node) -> Graph:
    constants = graph.params.only({value.name for value in node.operands})
    return Graph(_varying(graph, node), node.outputs, (node,), constants)


def _varying(graph: Graph, node: Node) -> tuple[Value, ...]:
    """The operands that are not constants, each once."""
    return tuple({value.name: value for value in node.operands if not graph.is_constant(value)}.values())


def _integers(graph: Graph, inputs: Sequence[Tensor]) -> dict[str, Tensor]:
    values = {value.name: tensor for value, tensor in zip(graph.inputs, inputs, strict=True)}
    run_integer(
        graph,
        inputs,
        observe=lambda value, tensor: values.update({value.name: tensor.to(value.type.dtype.torch)}),
    )
    return values


def _difference(computed: Tensor, exact: Tensor) -> Mismatch:
    steps = (computed.double() - exact.double()).abs()
    return Mismatch(steps.numel(), int((steps > 0).sum()), int(steps.max()) if steps.numel() else 0)


def _step(graph: Graph, value: Value) -> float | None:
    """The distance between adjacent values of an output that is quantized, or dequantized at the end."""
    if value.type.is_quantized:
        return 1.0
    producer = graph.producers.get(value.name)
    if producer is None or not isinstance(producer.op, Dequantize):
        return None
    (quantized,) = producer.operands
    assert quantized.type.quantization is not None
    return quantized.type.quantization.scale[0]
