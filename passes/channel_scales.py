"""Scales that move between a layer's weights and the producer of its input, channel by channel.

    x W^T = (x / s) (W diag(s))^T,   x / s = norm(h) * (g / s) + b / s,   or rows of the layer before it divided by s

The function is unchanged, while the weights, or the input, become easier to quantize. A site is a value that only
linear layers read, with constants that can absorb 1 / s: weight and bias of a norm over the last dimension, or of a
linear layer, also through operators that propagate a factor (ReLU, a product with another value). Source: Xiao et
al., SmoothQuant, ICML 2023; Lin et al., AWQ, MLSys 2024.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..ir import Graph, Node, Value
from ..ir.ops.activation import Elementwise
from ..ir.ops.binary import Mul
from ..ir.ops.facts import scales
from ..ir.ops.linear import Linear
from ..ir.ops.norm import RowNorm


@dataclass(frozen=True)
class Site:
    """A value that linear layers read, and the constants of its producer, whose first dimension is the channels of
    the value.
    """

    value: Value
    readers: tuple[Node, ...]
    divided: tuple[Value, ...]

    @property
    def weights(self) -> tuple[Value, ...]:
        """The weight of each layer."""
        return tuple(node.operand("weight") for node in self.readers)

    def scaled(self, graph: Graph, scale: Tensor) -> dict[str, Tensor]:
        """The constants of an equivalent graph with input channel j of the layers divided by scale[j] > 0."""
        wide = scale.double()
        params = {v.name: graph.tensor(v).double() * wide for v in self.weights}
        for value in self.divided:
            tensor = graph.tensor(value).double()
            params[value.name] = tensor / wide.view(-1, *[1] * (tensor.ndim - 1))
        return {name: tensor.to(graph.params[name].dtype) for name, tensor in params.items()}


@dataclass(frozen=True)
class NoSite:
    """A value that linear layers read, and the reason why no scale can be moved there."""

    value: Value
    readers: tuple[Node, ...]
    reason: str


def find_sites(graph: Graph) -> Iterator[Site | NoSite]:
    """All inputs of linear layers with constant weights, in order."""
    read: dict[str, list[Node]] = {}
    for node in graph.nodes:
        if isinstance(node.op, Linear) and graph.is_constant(node.operand("weight")):
            read.setdefault(node.operand("x").name, []).append(node)
    for nodes in read.values():
        value, readers = nodes[0].operand("x"), tuple(nodes)
        found = _divided(graph, value, len(readers))
        if not all(is_own(graph, node.operand("weight")) for node in readers):
            found = "a weight of its readers is shared, or not float"
        yield NoSite(value, readers, found) if isinstance(found, str) else Site(value, readers, found)


def is_own(graph: Graph, value: Value) -> bool:
    """True if a value is a float constant with a single reader."""
    is_float = value.type.dtype.is_floating and not value.type.is_quantized
    return graph.is_constant(value) and is_float and graph.use_count(value) == 1


def _divided(graph: Graph, value: Value, readers: int) -> tuple[Value, ...] | str:
    """The constants that can absorb a factor for each element of the last dimension; else the reason against it."""
    node = graph.producers.get(value.name)
    if node is None:
        return "it is an input or a constant"
    if graph.use_count(value) != readers:
        return "other operators read it, too, or it is an output"
    if isinstance(node.op, RowNorm | Linear):
        return _constants_of(graph, node)
    if isinstance(node.op, Mul) and scales(node.op.clamp):
        factors = [v for v in node.operands if v.type.shape[-1:] == value.type.shape[-1:]]
        found = [_divided(graph, factor, 1) for factor in factors if not graph.is_constant(factor)]
        return next(
            (f for f in found if not isinstance(f, str)),
            found[0] if found else "it is computed from a constant",
        )
    if not (isinstance(node.op, Elementwise) and node.op.facts.homogeneous):
        return f"{node.op.name} computes it, and does not propagate a factor"
    return _divided(graph, node.operands[0], 1)


def _constants_of(graph: Graph, node: Node) -> tuple[Value, ...] | str:
    """Weight and bias of a norm over the last dimension, or of a linear layer."""
    weight, bias = node.optional("weight"), node.optional("bias")
    if weight is None:
        return f"{node.op.name} computes it, without a weight"
    if isinstance(node.op, RowNorm) and node.op.dimensions(node.output.type.rank) != (
        node.output.type.rank - 1,
    ):
        return f"{node.op.name} computes it, over several dimensions"
    if isinstance(node.op, Linear) and (node.optional("residual") is not None or not scales(node.op.clamp)):
        return "the linear layer that computes it adds a residual, or clamps"
    constants = tuple(value for value in (weight, bias) if value is not None)
    if not all(is_own(graph, value) for value in constants):
        return f"the constants of the {node.op.name} that computes it are shared, or not floats"
    return constants


def normalized(scale: Tensor) -> Tensor:
    """Scales divided by the geometric mean of the smallest and the largest; 1 if not finite and positive."""
    usable = scale.isfinite() & (scale > 0)
    if not bool(usable.any()):
        return torch.ones_like(scale)
    middle = (scale[usable].max() * scale[usable].min()).sqrt()
    return torch.where(usable, scale / middle, 1.0)
