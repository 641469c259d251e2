"""Gradients of all layers for each sample of a batch, from the layers' operands and the gradients of their results.

The gradient of a weight for one sample is the matrix product g U^T over the positions at which the layer is applied:
U are its inputs there, g the gradient of its results. The uses of a shared weight are further positions. Its squared
norm is

    ||g U^T||^2 = <g, g (U^T U)>

computed on the smaller side; one U is shared by the gradients of all outputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

import torch
from torch import Tensor
from torch.nn import functional

from ...ir import Graph, Node, Value, run
from ...ir.ops.activation import Clamp
from ...ir.ops.conv import Conv, ConvTranspose
from ...ir.ops.layer import Layer
from ...ir.ops.spatial import pairs
from ..weighted_layers import CLAMPED, clamp_of, is_layer, with_clamp
from .blocks import Block, data_of, weight_of

_BEFORE_CLAMP = "%before_clamp"


class Backward:
    """One run of a graph on `count` samples, for backward passes from its outputs."""

    def __init__(self, graph: Graph, blocks: Sequence[Block], inputs: Sequence[Tensor], count: int) -> None:
        nodes = [node for block in blocks for node in block.nodes]
        kept = {data_of(node).name for node in nodes} | {_product_name(node) for node in nodes}
        weights = {weight_of(n).name: graph.params[weight_of(n).name].detach() for n in nodes}
        found = {v.name: x for v, x in zip(graph.inputs, inputs, strict=True)}

        def keep(value: Value, tensor: Tensor) -> None:
            if value.name in kept:
                found[value.name] = tensor

        params = {name: weight.clone().requires_grad_() for name, weight in weights.items()}
        self.outputs = run(_apart_from_clamps(graph, nodes), inputs, observe=keep, params=params)
        self._products = [found[_product_name(node)] for node in nodes]
        self._names = [_product_name(node) for node in nodes]
        self._weights = {
            name: [_Use(node, found[data_of(node).name].detach(), weights[name], count) for node in uses]
            for block in blocks
            for name, uses in block.sites.items()
        }

    def send(self, z: Tensor, vectors: Tensor) -> Mapping[str, WeightGradients]:
        """Gradients of <v, z> for each v of `vectors` [columns, *z], by the weight's name."""
        sent = torch.autograd.grad(
            z,
            self._products,
            vectors.to(z.dtype),
            retain_graph=True,
            allow_unused=True,
            is_grads_batched=True,
        )
        given = {
            name: x.new_zeros((len(vectors), *x.shape)) if g is None else g
            for name, x, g in zip(self._names, self._products, sent, strict=True)
        }
        return {
            name: WeightGradients(
                _joined([use.reads for use in uses]),
                _joined([use.arranged(given[use.name]) for use in uses]),
                is_transposed=isinstance(uses[0].op, ConvTranspose),
            )
            for name, uses in self._weights.items()
        }


class WeightGradients:
    """Gradients of one weight: `reads` [n, groups, k, positions], `given` [n, groups, columns, m, positions]."""

    def __init__(self, reads: Tensor, given: Tensor, *, is_transposed: bool) -> None:
        self._reads, self._given, self._is_transposed = reads, given, is_transposed

    def squared_norms(self) -> Tensor:
        """Squared norms, [columns, n] in float64."""
        k, positions = self._reads.shape[-2:]
        rows = self._given.flatten(2, 3)
        if positions < k:
            products = (rows @ (self._reads.transpose(-1, -2) @ self._reads)).mul_(rows)
        else:
            products = (rows @ self._reads.transpose(-1, -2)).square_()
        norms = products.sum(-1, dtype=torch.float64).view(*self._given.shape[:4]).sum((1, 3))
        return norms.T

    def matrices(self) -> Tensor:
        """The gradients, [n, columns, elements], with elements in the order of the weight."""
        columns, m = self._given.shape[2:4]
        products = self._given.flatten(2, 3) @ self._reads.transpose(-1, -2)
        products = products.view(*products.shape[:2], columns, m, -1)
        if self._is_transposed:
            products = products.transpose(-1, -2)
        return products.transpose(1, 2).flatten(2)


class _Use:
    """One node that reads a weight, and its operand on the samples."""

    def __init__(self, node: Node, x: Tensor, weight: Tensor, count: int) -> None:
        assert is_layer(node.op)
        self.op: Layer = node.op
        self.name = _product_name(node)
        self._kernel = tuple(weight.shape[2:])
        self._sizes = tuple(
            x.shape[2:]
        )  # of the operand, which slides over the gradient of a transposed convolution
        self._count = count
        if isinstance(node.op, Conv):
            x = _taps(node.op, x, self._kernel, node.output.type.shape[2:])
        self.reads = self._matrix(x[None]).squeeze(2)

    def arranged(self, gradients: Tensor) -> Tensor:
        """Gradients of the node's result, [columns, rows, ...], in the form of `WeightGradients.given`."""
        if isinstance(self.op, ConvTranspose):
            taps = _taps(self.op, gradients.flatten(0, 1), self._kernel, self._sizes)
            gradients = taps.view(*gradients.shape[:2], *taps.shape[1:])
        return self._matrix(gradients)

    def _matrix(self, x: Tensor) -> Tensor:
        """[columns, rows, channels, ...] as [n, groups, columns, channels of a group, positions]."""
        if not isinstance(self.op, Conv | ConvTranspose):
            x = x.reshape(x.shape[0], self._count, -1, x.shape[-1])
            return x.permute(1, 0, 3, 2)[:, None].contiguous()
        columns, rows, channels = x.shape[:3]
        groups = self.op.groups
        x = x.reshape(columns, self._count, rows // self._count, groups, channels // groups, -1)
        return x.permute(1, 3, 0, 4, 2, 5).flatten(4)


def _joined(matrices: Sequence[Tensor]) -> Tensor:
    """The matrices side by side; a single matrix is not copied."""
    return matrices[0] if len(matrices) == 1 else torch.cat(list(matrices), -1)


def _taps(op: Conv | ConvTranspose, x: Tensor, kernel: tuple[int, ...], sizes: tuple[int, ...]) -> Tensor:
    """Inputs of each kernel tap, [rows, channels * taps, *sizes]."""
    if kernel == (1,) * len(kernel) and not any(op.padding) and all(s == 1 for s in op.stride):
        return x
    flat = [n for pair in reversed(pairs(op.padding)) for n in pair]
    x = functional.pad(x, flat).contiguous()
    rows, channels, *space = x.stride()
    over_taps = [step * d for step, d in zip(space, op.dilation, strict=True)]
    over_positions = [step * s for step, s in zip(space, op.stride, strict=True)]
    shape = (*x.shape[:2], *kernel, *sizes)
    windows = x.as_strided(shape, (rows, channels, *over_taps, *over_positions))
    return windows.reshape(x.shape[0], x.shape[1] * prod(kernel), *sizes)


def _product_name(node: Node) -> str:
    """Name of the layer's value before its clamp."""
    return node.output.name + (_BEFORE_CLAMP if clamp_of(node.op) else "")


def _apart_from_clamps(graph: Graph, nodes: Sequence[Node]) -> Graph:
    """The graph with the clamps of these layers as separate nodes."""
    apart = {node.output.name for node in nodes if clamp_of(node.op)}
    split: list[Node] = []
    for node in graph.nodes:
        if isinstance(node.op, CLAMPED) and node.output.name in apart:
            clamp = clamp_of(node.op)
            assert clamp is not None
            product = Value(_product_name(node), node.output.type)
            split.append(Node(with_clamp(node.op, None), node.inputs, (product,), node.source))
            split.append(Node(Clamp(*clamp), (product,), node.outputs, node.source))
        else:
            split.append(node)
    return Graph(
        graph.inputs, graph.outputs, tuple(split), graph.params, graph.output_names, graph.precisions
    )
