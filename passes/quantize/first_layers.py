"""Folding of elementwise and per-channel input normalization into the first layers.

    W (a x + b) + c = (W a) x + (c + W b)

An integer input keeps its integers: for (p - 127.5) / 128, the half step, which no zero point can represent, becomes
part of the bias. Means and deviations of channels are folded completely, so that one scale fits all channels. A layer
that pads inserts 0 into a x + b, not into x: a fold would be wrong by W b at the border, so that only parts of a
step, no more than a rounding error, are folded.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from ...ir import Builder, DType, Graph, Node, Value, rewrite
from ...ir.affine import is_movement
from ...ir.ops.binary import Add, Div, Mul, Sub
from ...ir.ops.convert import Cast
from ..report import Decision
from ..weighted_layers import bias_name, is_layer

_INTEGERS = (DType.U8, DType.I8)
_ALIKE = 4.0  # ratio of the channels' scales up to which one scale fits them
_WHOLE = 1e-4  # of a step


@dataclass(frozen=True)
class _Chain:
    """Arithmetic from an input to a layer: `scale` and `offset` of each channel of the layer, or of all, [1]."""

    input: Value
    nodes: tuple[Node, ...]
    layer: Node
    scale: Tensor
    offset: Tensor

    @property
    def pads(self) -> bool:
        return is_layer(self.layer.op) and self.layer.op.reads_zeros


@dataclass(frozen=True)
class _Fold:
    """A chain, and the scale and offset that remain in the graph."""

    chain: _Chain
    scale: float
    offset: float


def fold_into_first_layers(graph: Graph) -> tuple[Graph, tuple[Decision, ...]]:
    """The graph after folding the scales and offsets of its inputs into the weights and biases that read them."""
    folds: list[_Fold] = []
    decisions: list[Decision] = []
    for chain in filter(None, (_chain(graph, value) for value in graph.inputs)):
        fold, reason = _decide(chain)
        folds += [] if fold is None else [fold]
        if reason:
            name, source = chain.layer.outputs[0].name, chain.layer.source
            decisions.append(Decision("fold_input", name, source, fold is not None, reason))
    return (_folded(graph, folds) if folds else graph), tuple(decisions)


def _decide(chain: _Chain) -> tuple[_Fold | None, str]:
    """Fold decision with its reason; None if nothing can be folded."""
    is_integer = chain.input.type.dtype in _INTEGERS
    if chain.scale.numel() > 1 or chain.offset.numel() > 1:
        if chain.pads:
            return None, "means of channels stay a step of their own: the layer pads, with 0 after them"
        scales = chain.scale.abs()
        if not is_integer and float(scales.max()) > _ALIKE * float(scales.min()):
            return None, "scales of channels stay a step of their own: they differ too much for one scale"
        return _Fold(chain, 1.0, 0.0), "scales and offsets of the input's channels are in its weights"
    scale, offset = float(chain.scale), float(chain.offset)
    steps = offset / scale
    if not is_integer or abs(steps - round(steps)) < _WHOLE:
        return None, ""
    border = "; at the border, where it pads with 0, this is wrong by as much" if chain.pads else ""
    part = abs(steps - round(steps))
    reason = f"{part:.2g} of a step of the input, which no zero point represents, is in its bias{border}"
    return _Fold(chain, scale, round(steps) * scale), reason


def _chain(graph: Graph, value: Value) -> _Chain | None:
    """Arithmetic between an input and the layer that is its only reader; None if the input has other readers or
    operators.
    """
    at, nodes = value, list[Node]()
    while graph.use_count(at) == 1 and graph.users.get(at.name):
        (node,) = graph.users[at.name]
        if is_layer(node.op) and node.op.out_axis == 0:
            return _measured(graph, value, nodes, node) if node.operand("x") == at else None
        if not (_is_arithmetic(graph, node, at) or (is_movement(node.op) and not _arithmetic(nodes))):
            return None
        nodes.append(node)
        at = node.output
    return None


def _is_arithmetic(graph: Graph, node: Node, data: Value) -> bool:
    if isinstance(node.op, Cast):
        return node.output.type.dtype is DType.F32
    if not isinstance(node.op, Add | Sub | Mul | Div) or node.op.clamp is not None:
        return False
    constants = [graph.is_constant(v) and not v.type.is_quantized for v in node.operands]
    linear = not isinstance(node.op, Div) or node.operand("a") == data
    return sum(constants) == 1 and linear and node.output.type == data.type and data.type.dtype is DType.F32


def _arithmetic(nodes: Iterable[Node]) -> list[Node]:
    return [node for node in nodes if isinstance(node.op, Add | Sub | Mul | Div)]


def _measured(graph: Graph, value: Value, nodes: list[Node], layer: Node) -> _Chain | None:
    """The chain with its scale and offset, computed from its values at 1 and 0."""
    weight, bias, data = layer.operand("weight"), layer.optional("bias"), layer.operand("x")
    constants = [v for v in (weight, bias) if v is not None]
    if not _arithmetic(nodes) or not all(
        graph.is_constant(v) and v.type.dtype is DType.F32 for v in constants
    ):
        return None
    rank, ends = data.type.rank, []
    assert is_layer(layer.op)
    axis = layer.op.channel_axis(data.type)
    for number in (0.0, 1.0):
        at = torch.full((1,) * rank, number, dtype=torch.float64)
        for node in _arithmetic(nodes):
            reals = [graph.tensor(v).double() if graph.is_constant(v) else at for v in node.operands]
            result = node.op.reference(*reals)
            assert isinstance(result, Tensor)
            at = result
        if at.numel() != at.shape[axis]:
            return None
        ends.append(at.flatten())
    offset, scale = ends[0], ends[1] - ends[0]
    if not bool((scale != 0).all() and scale.isfinite().all() and offset.isfinite().all()):
        return None
    return _Chain(value, tuple(nodes), layer, scale, offset)


def _folded(graph: Graph, folds: list[_Fold]) -> Graph:
    skipped = {node.output.name for fold in folds for node in _arithmetic(fold.chain.nodes)}
    last = {_arithmetic(fold.chain.nodes)[-1].output.name: fold for fold in folds}
    layers = {fold.chain.layer.outputs[0].name: fold for fold in folds}

    def visit(builder: Builder, node: Node, operands: tuple[Value | None, ...]) -> Value | None:
        name = node.outputs[0].name
        if name in layers:
            return _layer(builder, graph, node, operands, layers[name])
        if name not in skipped:
            return None
        (data,) = (
            v for v, old in zip(operands, node.inputs, strict=True) if old and not graph.is_constant(old)
        )
        assert data is not None
        return _left(builder, node, data, last[name]) if name in last else data

    return rewrite(graph, visit)


def _left(builder: Builder, node: Node, data: Value, fold: _Fold) -> Value:
    """Remainder of a chain, which replaces its last node."""
    for op, number, neutral in ((Mul(), fold.scale, 1.0), (Add(), fold.offset, 0.0)):
        if number != neutral:
            constant = builder.constant(f"{node.output.name}_{op.name}", torch.tensor(number))
            data = builder.add(op, data, constant, source=node.source)
    return data


def _layer(
    builder: Builder, graph: Graph, node: Node, operands: tuple[Value | None, ...], fold: _Fold
) -> Value:
    old_weight, old_bias = node.operand("weight"), node.optional("bias")
    data, residual = node.op.operand(operands, "x"), node.op.optional(operands, "residual")
    weight = graph.tensor(old_weight).double()
    assert is_layer(node.op)
    groups = node.op.channel_groups
    channels = weight.shape[1] * groups
    # of W (a x + b): a x + b = (a / s) (s x + t) + (b - a t / s), where s x + t is left of the chain
    scale = (fold.chain.scale / fold.scale).expand(channels)
    offset = (fold.chain.offset - fold.chain.scale / fold.scale * fold.offset).expand(channels)

    def by_output(numbers: Tensor) -> Tensor:
        """The numbers of the channels that each output channel reads, in the shape of the weight."""
        rows = numbers.reshape(groups, -1).repeat_interleave(weight.shape[0] // groups, dim=0)
        return rows.reshape(*rows.shape, *[1] * (weight.ndim - 2))

    added = (weight * by_output(offset)).flatten(1).sum(1)
    bias = added if old_bias is None else graph.tensor(old_bias).double() + added
    names = (old_weight.name, bias_name(old_weight.name) if old_bias is None else old_bias.name)
    made = [
        builder.derived_constant(f"{name}_folded", tensor.float())
        for name, tensor in zip(names, (weight * by_output(scale), bias), strict=True)
    ]
    return builder.add(node.op, data, *made, residual, name=node.output.name, source=node.source)
