"""A graph without some of its channels, and the masked graph that it must equal.

`cut_graph` takes the rows and columns out; `run_masked` computes with the whole graph and holds what goes at zero,
so that the two meet in float rounding. Where a statistic spans channels that go (layer norm, group norm, a mean),
the masked graph takes it over the channels that stay: there the function itself changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from .coupling import Kept
from .errors import ShapeError
from .graph import Graph, Node
from .interpret import Observer, run
from .tensor_type import TensorType, Value
from .text import node_text

_LEAST = 1e-3  # values smaller than this differ by rounding of larger ones that they come from


def cut_graph(kept: Kept) -> Graph:
    """The graph with only the channels that stay; constants are copies of their parts."""
    graph = kept.coupling.graph
    params = {v.name: _part(graph.tensor(v), kept.value(v)) for v in graph.constants}
    current = {v.name: v for v in graph.inputs}
    current |= {v.name: Value(v.name, TensorType.of(params[v.name])) for v in graph.constants}
    nodes = []
    for node in graph.nodes:
        nodes.append(_cut_node(node, tuple(v and current[v.name] for v in node.inputs), kept))
        current.update((value.name, value) for value in nodes[-1].outputs)
    outputs = tuple(current[v.name] for v in graph.outputs)
    return Graph(graph.inputs, outputs, tuple(nodes), params, graph.output_names)


def run_masked(kept: Kept, inputs: Sequence[Tensor], *, observe: Observer | None = None) -> list[Tensor]:
    """The outputs of the whole graph, with every removed channel of every value at zero; `observe` sees each value."""
    graph = kept.coupling.graph
    values = {v.name: _masked(graph.tensor(v), kept.value(v)) for v in graph.constants}
    values |= {v.name: tensor for v, tensor in zip(graph.inputs, inputs, strict=True)}
    readers = {name: len(nodes) for name, nodes in graph.users.items()}
    needed = {v.name for v in graph.outputs}
    for node in graph.nodes:
        operands = [None if v is None else values[v.name] for v in node.inputs]
        for value, tensor in zip(node.outputs, _call_masked(node, operands, kept), strict=True):
            values[value.name] = _masked(tensor, kept.value(value))
            if observe is not None:
                observe(value, values[value.name])
        for value in node.operands:
            readers[value.name] -= 1
            if not readers[value.name] and value.name not in needed:
                values.pop(value.name, None)
    return [values[v.name] for v in graph.outputs]


def deviation_from_masked(kept: Kept, cut: Graph, inputs: Sequence[Tensor]) -> tuple[float, float]:
    """How far the cut graph is from the masked one: its outputs, and the worst of all its values.

    Outputs alone would hide a fault behind a last layer whose weights are zero.
    """
    parts: dict[str, Tensor] = {}
    worst = [0.0]

    def compare(value: Value, tensor: Tensor) -> None:
        worst.append(deviation([tensor], [parts.pop(value.name)], least=_LEAST))

    masked = run_masked(
        kept,
        inputs,
        observe=lambda value, tensor: parts.update({value.name: _part(tensor, kept.value(value))}),
    )
    outputs = run(cut, inputs, observe=compare)
    return deviation(outputs, masked), max(worst)


def deviation(outputs: Sequence[Tensor], expected: Sequence[Tensor], *, least: float = 0.0) -> float:
    """Largest difference over all outputs, relative to the largest expected element or to `least` where that is more;
    infinite where only one is finite.
    """
    largest = 0.0
    for y, z in zip(outputs, expected, strict=True):
        if not y.is_floating_point() and not y.is_complex():
            largest = max(largest, 0.0 if torch.equal(y, z) else float("inf"))
        elif y.numel():
            both = torch.isfinite(y) & torch.isfinite(z)
            same = (y == z) | (torch.isnan(y) & torch.isnan(z))
            error = torch.where(both, (y - z).abs(), torch.where(same, 0.0, float("inf")))
            scale = torch.where(both, z.abs(), 0.0).max().clamp(min=max(least, torch.finfo(error.dtype).tiny))
            largest = max(largest, float((error.max() / scale).nan_to_num(float("inf"), posinf=float("inf"))))
    return largest


def changed_statistics(kept: Kept) -> tuple[Node, ...]:
    """The nodes whose statistics span channels that go."""
    pooled, coupling = kept.coupling.pooled, kept.coupling
    return tuple(
        node
        for node in coupling.graph.nodes
        if any(kept.size(a) < len(coupling.on_axis(a)) for a in pooled.get(node.outputs[0].name, ()))
    )


def _cut_node(node: Node, operands: tuple[Value | None, ...], kept: Kept) -> Node:
    if operands == node.inputs and all(kept.shape(v) == v.type.shape for v in node.outputs):
        return node
    op = node.op.cut(kept.cut(node))
    types = op.infer(*(v and v.type for v in operands))
    outputs = tuple(Value(v.name, type) for v, type in zip(node.outputs, types, strict=True))
    for old, new in zip(node.outputs, outputs, strict=True):
        if new.type.shape != kept.shape(old):
            raise ShapeError(
                f"{node_text(node)}: the cut leaves {new.type.shape}, its channels {kept.shape(old)}"
            )
    return replace(node, op=op, inputs=operands, outputs=outputs)


def _call_masked(node: Node, operands: list[Tensor | None], kept: Kept) -> tuple[Tensor, ...]:
    cut = kept.cut(node)
    pooled = kept.coupling.pooled.get(node.outputs[0].name, ())
    if all(kept.size(axis) == len(kept.coupling.on_axis(axis)) for axis in pooled):
        results = node.op.reference(*operands)
        return results if isinstance(results, tuple) else (results,)
    parts = [None if t is None else _part(t, cut.operand(i)) for i, t in enumerate(operands)]
    results = node.op.cut(cut).reference(*parts)
    listed = results if isinstance(results, tuple) else (results,)
    return tuple(
        _spread(part, kept.value(value), value.type.shape)
        for part, value in zip(listed, node.outputs, strict=True)
    )


def _part(tensor: Tensor, kept: Sequence[Tensor]) -> Tensor:
    """The elements at the kept indices."""
    for axis, index in enumerate(kept):
        if len(index) < tensor.shape[axis]:
            tensor = tensor.index_select(axis, index)
    return tensor


def _masked(tensor: Tensor, kept: Sequence[Tensor]) -> Tensor:
    """The tensor with zeros wherever an index is not kept, whatever stood there."""
    for axis, index in enumerate(kept):
        if len(index) < tensor.shape[axis]:
            stays = torch.zeros(tensor.shape[axis], dtype=torch.bool).index_fill(0, index, True)
            along = stays.view([-1 if i == axis else 1 for i in range(tensor.ndim)])
            tensor = torch.where(along, tensor, torch.zeros((), dtype=tensor.dtype))
    return tensor


def _spread(part: Tensor, kept: Sequence[Tensor], shape: Sequence[int]) -> Tensor:
    """The part at its indices, zeros elsewhere."""
    for axis, index in enumerate(kept):
        if len(index) < shape[axis]:
            whole = [shape[axis] if i == axis else n for i, n in enumerate(part.shape)]
            part = part.new_zeros(whole).index_copy(axis, index, part)
    return part
