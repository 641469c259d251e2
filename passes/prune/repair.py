"""Repairs of a pruned graph without training, on calibration data.

least squares: channels that a layer no longer reads are reconstructed from those that it reads,

    x_removed ~ A x_kept + b,      W_kept += W_removed A,      bias += W_removed b

with A and b of least squared error over all positions of the calibration data, in the graph before the cut (ThiNet,
Luo et al., 2017, in closed form). At the border of a padded convolution, where b is not padded, this is approximate.

bias: like least squares with A = 0, so that b is the mean of the removed channels; a layer without a bias gets one.

batch norm: means and variances are measured again, layer after layer, as in training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...ir import Graph, Node, Params, TensorType, Value, run
from ...ir.coupling import Kept
from ...ir.ops.norm import BatchNorm
from ..weighted_layers import bias_name, is_layer

_RIDGE = 1e-4  # share of the mean variance of the kept channels: bounds the solution for similar channels


def reconstruct_inputs(kept: Kept, cut: Graph, calibration: Sequence[tuple[Tensor, ...]]) -> Graph:
    """The cut graph with weights that compensate for the channels that are no longer read."""
    layers = [node for node in kept.coupling.graph.nodes if loses_inputs(kept, cut, node)]
    moments = _measure(kept, layers, calibration)
    params: dict[str, Tensor] = {}
    with torch.no_grad():
        for node in layers:
            params |= _refitted(kept, cut, node, moments[node.operand("x").name])
    return cut.with_params(params)


def absorb_means(kept: Kept, cut: Graph, calibration: Sequence[tuple[Tensor, ...]]) -> Graph:
    """The cut graph with biases that include the mean of the channels that are no longer read."""
    layers = [node for node in kept.coupling.graph.nodes if loses_inputs(kept, cut, node)]
    moments = _measure(kept, layers, calibration)
    params, biases = dict(cut.params), dict[str, Value]()
    taken = {v.name for node in cut.nodes for v in (*node.operands, *node.outputs)}
    for node in layers:
        shift = _mean_of_removed(kept, node, moments[node.operand("x").name])
        bias = node.optional("bias")
        if bias is not None and cut.is_constant(bias) and cut.use_count(bias) == 1:
            params[bias.name] = (params[bias.name].double() + shift).to(params[bias.name].dtype)
        elif bias is None and (name := bias_name(node.operand("weight").name)) not in taken:
            params[name] = shift.to(params[node.operand("weight").name].dtype)
            biases[node.output.name] = Value(name, TensorType.of(params[name]))
    nodes = tuple(
        n.with_operands(bias=biases[n.outputs[0].name]) if n.outputs[0].name in biases else n
        for n in cut.nodes
    )
    return replace(cut, nodes=nodes, params=Params(params))


def _measure(
    kept: Kept, layers: Sequence[Node], calibration: Sequence[tuple[Tensor, ...]]
) -> dict[str, _Moments]:
    """The moments of each layer's operand, in the whole graph."""
    moments = {node.operand("x").name: _Moments() for node in layers}
    axes = {
        node.operand("x").name: node.op.channel_axis(node.output.type) for node in layers if is_layer(node.op)
    }

    def observe(value: Value, tensor: Tensor) -> None:
        if value.name in moments:
            moments[value.name].add(tensor.movedim(axes[value.name], -1).flatten(0, -2))

    with torch.no_grad():
        for inputs in calibration:
            run(kept.coupling.graph, inputs, observe=observe)
    return moments


def remeasure_batchnorms(graph: Graph, calibration: Sequence[tuple[Tensor, ...]]) -> Graph:
    """The graph with batch norm statistics of the calibration data, each measured after the update of the earlier
    ones.
    """
    values: dict[str, list[Tensor]] = {v.name: [graph.tensor(v)] * len(calibration) for v in graph.constants}
    values |= {v.name: [inputs[i] for inputs in calibration] for i, v in enumerate(graph.inputs)}
    readers = {name: len(nodes) for name, nodes in graph.users.items()}
    params: dict[str, Tensor] = {}
    with torch.no_grad():
        for node in graph.nodes:
            if isinstance(node.op, BatchNorm):
                measured = _measured(node, values)
                params |= measured
                values |= {name: [tensor] * len(calibration) for name, tensor in measured.items()}
            results = [_results(node, values, i) for i in range(len(calibration))]
            for place, value in enumerate(node.outputs):
                values[value.name] = [result[place] for result in results]
            for value in node.operands:
                readers[value.name] -= 1
                if not readers[value.name]:
                    values.pop(value.name, None)
    return graph.with_params(params)


@dataclass
class _Moments:
    """Sums over positions of the products of channels, with a channel of ones appended."""

    products: Tensor | None = None

    def add(self, rows: Tensor) -> None:
        rows = torch.cat([rows.double(), rows.new_ones(len(rows), 1, dtype=torch.float64)], 1)
        products = rows.T @ rows
        self.products = products if self.products is None else self.products + products


def loses_inputs(kept: Kept, cut: Graph, node: Node) -> bool:
    """True for a dense layer with an unshared weight that loses some of its input channels."""
    if not is_layer(node.op) or node.op.out_axis == 1 or node.op.channel_groups > 1:
        return False
    graph, weight = kept.coupling.graph, node.operand("weight")
    owns = (
        graph.is_constant(weight)
        and graph.use_count(weight) == 1
        and not graph.is_constant(node.operand("x"))
    )
    return owns and weight.name in cut.params and len(kept.value(weight)[1]) < weight.type.shape[1]


def _mean_of_removed(kept: Kept, node: Node, moments: _Moments) -> Tensor:
    """Contribution of the removed channels, at their mean, to each kept output channel."""
    assert moments.products is not None and is_layer(node.op)
    weight = node.operand("weight")
    outputs, inputs = kept.value(weight)[:2]
    gone = torch.ones(weight.type.shape[1], dtype=torch.bool).index_fill(0, inputs, False)
    means = moments.products[:-1, -1] / moments.products[-1, -1]
    taps = node.op.taps(kept.coupling.graph.tensor(weight).double())[0][outputs].sum(2)
    return taps[:, gone] @ means[gone]


def _refitted(kept: Kept, cut: Graph, node: Node, moments: _Moments) -> dict[str, Tensor]:
    """The cut layer's constants with the contribution of the removed channels."""
    graph, weight, bias = kept.coupling.graph, node.operand("weight"), node.optional("bias")
    assert moments.products is not None and is_layer(node.op)
    outputs, inputs = kept.value(weight)[:2]
    size = weight.type.shape[1]
    gone = torch.ones(size, dtype=torch.bool).index_fill(0, inputs, False).nonzero().flatten()
    has_bias = bias is not None and graph.is_constant(bias) and graph.use_count(bias) == 1
    known = torch.cat([inputs, torch.tensor([size])]) if has_bias else inputs
    square = moments.products[known][:, known]
    ridge = _RIDGE * moments.products.diagonal()[inputs].mean() * torch.ones(len(known), dtype=torch.float64)
    ridge[len(inputs) :] = 0
    solved = torch.linalg.lstsq(square + torch.diag(ridge), moments.products[known][:, gone]).solution
    taps = node.op.taps(graph.tensor(weight).double())[0][outputs]  # [out, in, taps]
    added = torch.einsum("ogt,kg->okt", taps[:, gone], solved[: len(inputs)])
    old = cut.params[weight.name]
    params = {weight.name: (old.double() + added.reshape(old.shape)).to(old.dtype)}
    if has_bias and bias is not None:
        shift = taps[:, gone].sum(2) @ solved[len(inputs)]
        params[bias.name] = (cut.params[bias.name].double() + shift).to(old.dtype)
    return params


def _measured(node: Node, values: dict[str, list[Tensor]]) -> dict[str, Tensor]:
    x, mean, variance = (node.operand(name) for name in ("x", "mean", "var"))
    rows = torch.cat([t.movedim(1, -1).flatten(0, -2) for t in values[x.name]]).double()
    dtype = values[mean.name][0].dtype
    return {mean.name: rows.mean(0).to(dtype), variance.name: rows.var(0, correction=0).to(dtype)}


def _results(node: Node, values: dict[str, list[Tensor]], index: int) -> tuple[Tensor, ...]:
    results = node.op.reference(*(None if v is None else values[v.name][index] for v in node.inputs))
    return results if isinstance(results, tuple) else (results,)
