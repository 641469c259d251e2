"""Blocks of consecutive weights along the input channels, in the order in which emitted C has the inputs in memory.

Images are channels last in memory, also where a linear layer reads a flattened one.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor
from torch.nn import functional

from ...ir import Graph, Node, Value
from ...ir.ops.linear import Linear
from ...ir.ops.shape import Reshape

_IMAGE_RANK = 4
_IMAGE_OPERATORS = frozenset({"conv", "conv_transpose", "max_pool", "avg_pool", "adaptive_avg_pool"})


@dataclass(frozen=True, eq=False)
class Blocks:
    """Blocks of `size` weights; `order` has the input channels in the order of memory, if that is another one."""

    size: int = 1
    order: Tensor | None = None

    def scores(self, scores: Tensor) -> Tensor:
        """Sums of the absolute scores of each block along dimension 1; the last block may be shorter."""
        if self.size == 1:
            return scores
        ordered = scores if self.order is None else scores[:, self.order]
        moved = ordered.detach().abs().movedim(1, -1)
        padded = functional.pad(moved, (0, -moved.shape[-1] % self.size)).contiguous()
        return padded.view(*moved.shape[:-1], -1, self.size).sum(-1).movedim(-1, 1)

    def mask(self, mask: Tensor, channels: int) -> Tensor:
        """Mask of weights with this many input channels, from a mask of their blocks."""
        if self.size == 1:
            return mask
        ordered = mask.repeat_interleave(self.size, dim=1).narrow(1, 0, channels)
        return ordered if self.order is None else ordered[:, self.order.argsort()]


SINGLE = Blocks()
"""Single weights."""


def blocks_of(graph: Graph, node: Node, size: int) -> Blocks:
    """The blocks of the weight of a layer."""
    image = _flattened_image(graph, node) if size > 1 else None
    if image is None:
        return Blocks(size)
    channels = image.type.shape[1]
    return Blocks(size, torch.arange(prod(image.type.shape[1:])).view(channels, -1).T.flatten())


def _flattened_image(graph: Graph, node: Node) -> Value | None:
    """The image [n, c, spatial...] whose flattened elements a linear layer reads."""
    if not isinstance(node.op, Linear) or node.operand("x").type.rank != 2:
        return None
    flatten = graph.producers.get(node.operand("x").name)
    if flatten is None or not isinstance(flatten.op, Reshape):
        return None
    image, rows = flatten.operand("x"), node.operand("x").type.shape
    is_flat = image.type.rank > 2 and (image.type.shape[0], prod(image.type.shape[1:])) == rows
    return image if is_flat and (image.type.rank == _IMAGE_RANK or _is_of_image(graph, image)) else None


def _is_of_image(graph: Graph, value: Value) -> bool:
    """True if an operator on images computes the value, or one before functions of single elements."""
    producer = graph.producers.get(value.name)
    while producer is not None and producer.op.name not in _IMAGE_OPERATORS:
        same = [v for v in producer.operands if v.type.shape == value.type.shape]
        producer = graph.producers.get(same[0].name) if len(producer.operands) == len(same) == 1 else None
    return producer is not None
