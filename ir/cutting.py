"""A graph without some of its channels, and the masked graph that it must equal.

`cut_graph` removes rows and columns of the tensors. `run_masked` computes with the whole graph and keeps removed
channels at zero, so that the two agree up to float rounding. A residual branch whose channels are all removed is
replaced by the result of its last layer for zeros: a constant, or nothing. If a statistic spans removed channels
(layer norm, group norm, a mean), the masked graph computes it over the kept channels: there the function itself
changes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..specs.root_error import expect
from .branches import Branch
from .coupling import Kept
from .errors import ShapeError
from .graph import Graph, Node
from .interpret import Observer, run
from .ops.activation import Clamp
from .ops.binary import Add
from .ops.call import TorchCall
from .ops.layer import Layer
from .ops.linear import Linear
from .ops.norm import BatchNorm
from .params import Params
from .tensor_type import TensorType, Value
from .text import node_text

_LEAST = 1e-3  # differences of smaller values come from the rounding of larger values that they depend on


def cut_graph(kept: Kept) -> Graph:
    """The graph with only the kept channels; constants are copied parts."""
    _check_kept(kept, "cut_graph(kept)")
    graph = kept.coupling.graph
    params = {v.name: kept_part(graph.tensor(v), kept.value(v)) for v in graph.constants}
    current = {v.name: v for v in graph.inputs}
    current |= {v.name: Value(v.name, v.type.of_channels(kept.value(v))) for v in graph.constants}
    sums = {branch.sum.output.name: branch for branch in kept.dropped}
    gone = {n.outputs[0].name for branch in kept.dropped for n in (*branch.before, *branch.tail)}
    nodes: list[Node] = []
    for node in graph.nodes:
        name = node.outputs[0].name
        if name in sums:
            current[name] = _without_branch(sums[name], current[sums[name].around.name], kept, nodes, params)
        elif name not in gone:
            nodes.append(_cut_node(node, tuple(v and current[v.name] for v in node.inputs), kept))
            current.update((value.name, value) for value in nodes[-1].outputs)
    outputs = tuple(current[v.name] for v in graph.outputs)
    read = {v.name for node in nodes for v in node.operands} | {v.name for v in outputs}
    return Graph(
        graph.inputs, outputs, tuple(nodes), Params(params).only(read), graph.output_names, graph.precisions
    )


def run_masked(kept: Kept, inputs: Sequence[Tensor], *, observe: Observer | None = None) -> list[Tensor]:
    """Outputs of the whole graph, with every removed channel of every value at zero; `observe` is called with each
    value.
    """
    _check_kept(kept, "run_masked(kept, inputs)")
    graph = kept.coupling.graph
    values = {v.name: masked(graph.tensor(v), kept.value(v)) for v in graph.constants}
    values |= {v.name: tensor for v, tensor in zip(graph.inputs, inputs, strict=True)}
    values |= {b.joint.name: _zeros(b.joint) for b in kept.dropped}
    idle = {node.outputs[0].name for b in kept.dropped for node in b.before}
    readers = {name: len(nodes) for name, nodes in graph.users.items()}
    needed = {v.name for v in graph.outputs}
    for node in graph.nodes:
        if node.outputs[0].name in idle:
            continue
        operands = [None if v is None else values[v.name] for v in node.inputs]
        for value, tensor in zip(node.outputs, _call_masked(node, operands, kept), strict=True):
            values[value.name] = masked(tensor, kept.value(value))
            if observe is not None:
                observe(value, values[value.name])
        for value in node.operands:
            readers[value.name] -= 1
            if not readers[value.name] and value.name not in needed:
                values.pop(value.name, None)
    return [values[v.name] for v in graph.outputs]


def deviation_from_masked(kept: Kept, cut: Graph, inputs: Sequence[Tensor]) -> tuple[float, float]:
    """Max error of the cut graph against the masked graph: of the outputs, and of all values.

    An error in outputs alone would be hidden if the weights of the last layer are zero. Memory that is not yet
    written is not compared.
    """
    parts: dict[str, Tensor] = {}
    worst = [0.0]
    nodes = (node for node in cut.nodes if isinstance(node.op, TorchCall) and node.op.is_uninitialized)
    unwritten = {value.name for node in nodes for value in node.outputs}

    def compare(value: Value, tensor: Tensor) -> None:
        if value.name in unwritten:
            return
        worst.append(deviation([tensor], [parts.pop(value.name)], least=_LEAST))

    expected = run_masked(
        kept,
        inputs,
        observe=lambda value, tensor: parts.update({value.name: kept_part(tensor, kept.value(value))}),
    )
    outputs = run(cut, inputs, observe=compare)
    return deviation(outputs, expected), max(worst)


def deviation(outputs: Sequence[Tensor], expected: Sequence[Tensor], *, least: float = 0.0) -> float:
    """Largest difference over all outputs, relative to the larger of `least` and the largest expected element;
    infinite if only one of two elements is finite.
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
    """The nodes whose statistics span removed channels."""
    _check_kept(kept, "changed_statistics(kept)")
    pooled, coupling = kept.coupling.pooled, kept.coupling
    gone = {node.outputs[0].name for b in kept.dropped for node in (*b.before, *b.tail)}
    return tuple(
        node
        for node in coupling.graph.nodes
        if node.outputs[0].name not in gone
        and any(kept.size(a) < len(coupling.on_axis(a)) for a in pooled.get(node.outputs[0].name, ()))
    )


def _check_kept(kept: object, call: str) -> None:
    expect(kept, Kept, call, "a `Kept`", "make it from a graph with couple(graph)")


def _without_branch(
    branch: Branch, around: Value, kept: Kept, nodes: list[Node], params: dict[str, Tensor]
) -> Value:
    """Replacement of the residual sum: `around`, plus the constant of the branch if it is not zero.

    If a layer with a bias computes `around` only for this sum, the constant is added to the bias.
    """
    graph, node = kept.coupling.graph, branch.sum
    constant = branch_constant(branch, kept)
    assert isinstance(node.op, Add)
    if not constant.any():
        if node.op.clamp is None:
            return around
        nodes.append(
            replace(
                node,
                op=Clamp(*node.op.clamp),
                inputs=(around,),
                outputs=(replace(node.output, type=around.type),),
            )
        )
        return nodes[-1].output
    maker = nodes[-1] if nodes and around.name == nodes[-1].outputs[0].name else None
    bias = None if maker is None else _free_bias(graph, maker, around, constant)
    if maker is not None and bias is not None and node.op.clamp is None:
        params[bias.name] = params[bias.name] + constant.flatten()
        nodes[-1] = replace(maker, outputs=(replace(node.output, type=around.type),))
        return nodes[-1].output
    value = Value(f"{branch.result.name}_left", TensorType.of(constant))
    params[value.name] = constant
    nodes.append(replace(node, inputs=(around, value), outputs=(replace(node.output, type=around.type),)))
    return nodes[-1].output


def branch_constant(branch: Branch, kept: Kept) -> Tensor:
    """Constant that a removed branch contributes, reduced to one element per channel if possible."""
    values = {branch.joint.name: _zeros(branch.joint)}
    with torch.no_grad():
        for node in branch.tail:
            operands = [None if v is None else _known(v, values, kept) for v in node.inputs]
            for value, tensor in zip(node.outputs, _call_masked(node, operands, kept), strict=True):
                values[value.name] = masked(tensor, kept.value(value))
    constant = kept_part(values[branch.result.name], kept.value(branch.result))
    for axis in range(constant.ndim):
        first = constant.narrow(axis, 0, 1)
        if torch.allclose(constant, first.expand_as(constant), rtol=1e-5, atol=0.0):
            constant = first
    while constant.ndim and constant.shape[0] == 1:
        constant = constant[0]
    return constant.clone()


def _known(value: Value, values: Mapping[str, Tensor], kept: Kept) -> Tensor:
    if value.name in values:
        return values[value.name]
    return masked(kept.coupling.graph.tensor(value), kept.value(value))


def _free_bias(graph: Graph, maker: Node, around: Value, constant: Tensor) -> Value | None:
    """The bias of a layer that only the sum reads, if the constant has one element per channel."""
    if not isinstance(maker.op, Layer | BatchNorm) or graph.use_count(around) != 1:
        return None
    bias = maker.optional("bias")
    per_channel = (constant.numel(), *[1] * (0 if isinstance(maker.op, Linear) else around.type.rank - 2))
    is_free = bias is not None and graph.is_constant(bias) and graph.use_count(bias) == 1
    is_plain = isinstance(maker.op, BatchNorm) or (
        maker.op.clamp is None and maker.optional("residual") is None
    )
    return bias if is_free and is_plain and tuple(constant.shape) == per_channel else None


def _zeros(value: Value) -> Tensor:
    return torch.zeros(value.type.shape, dtype=value.type.dtype.torch)


def _cut_node(node: Node, operands: tuple[Value | None, ...], kept: Kept) -> Node:
    if operands == node.inputs and all(kept.shape(v) == v.type.shape for v in node.outputs):
        return node
    op = node.op.cut(kept.cut(node))
    outputs = tuple(Value(v.name, v.type.of_channels(kept.value(v))) for v in node.outputs)
    for type, value in zip(op.infer(*(v and v.type for v in operands)), outputs, strict=True):
        if type.shape != value.type.shape:
            raise ShapeError(
                f"{node_text(node)}: the cut leaves {type.shape}, its channels {value.type.shape}"
            )
    return replace(node, op=op, inputs=operands, outputs=outputs)


def _call_masked(node: Node, operands: list[Tensor | None], kept: Kept) -> tuple[Tensor, ...]:
    cut = kept.cut(node)
    pooled = kept.coupling.pooled.get(node.outputs[0].name, ())
    if all(kept.size(axis) == len(kept.coupling.on_axis(axis)) for axis in pooled):
        results = node.op.reference(*operands)
        return results if isinstance(results, tuple) else (results,)
    parts = [
        None if t is None or stays is None else kept_part(t, stays)
        for t, stays in zip(operands, cut.operands, strict=True)
    ]
    results = node.op.cut(cut).reference(*parts)
    listed = results if isinstance(results, tuple) else (results,)
    return tuple(
        _spread(part, kept.value(value), value.type.shape)
        for part, value in zip(listed, node.outputs, strict=True)
    )


def kept_part(tensor: Tensor, kept: Sequence[Tensor]) -> Tensor:
    """The elements at the kept indices."""
    for axis, index in enumerate(kept):
        if len(index) < tensor.shape[axis]:
            tensor = tensor.index_select(axis, index)
    return tensor


def masked(tensor: Tensor, kept: Sequence[Tensor]) -> Tensor:
    """The tensor with zeros at all indices that are not kept, also where it was infinite or NaN."""
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
