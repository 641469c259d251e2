"""Channels of an integer graph that can be removed without changing an output.

Channels are removed by units of coupled channels (`ir.coupling`). A unit is live if

    an operator that sums over its channels, or that is not in integers, reads it, or
a dense layer has a nonzero weight from one of its channels to a live output channel, unless that channel is constant
and can be folded into the bias. A layer with padding can fold only channels that are constant at the zero point, like
the padding.

The set of live units grows from the empty set until this holds and every dimension keeps a channel.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ...ir import Graph, Node, Source, Value
from ...ir.coupling import STAYS, Coupling
from ...ir.ops.layer import Layer
from ..weighted_layers import is_layer
from .intervals import Interval


@dataclass(frozen=True)
class _Reader:
    """A dense layer: units of its input and output channels, nonzero weights between them, foldable inputs."""

    inputs: np.ndarray
    outputs: np.ndarray
    weighs: np.ndarray  # bool, [out, in]
    folds: np.ndarray  # bool, [in]


def dead_units(
    coupling: Coupling, intervals: Mapping[str, Interval], *, is_kept: Callable[[Source], bool]
) -> np.ndarray:
    """Boolean per unit: True if it can be removed. Results of nodes that `is_kept` selects keep all channels."""
    live = np.zeros(coupling.count, dtype=bool)
    readers: list[_Reader] = []
    for node in coupling.graph.nodes:
        if is_kept(node.source) or not is_in_integers(node):
            live[coupling.touched(node)] = True
        elif is_layer(node.op) and is_dense(coupling.graph, node):
            readers.append(_reader(coupling, node, node.op, intervals))
        else:
            live[coupling.mixed(node)] = True
    axes = _axes_that_can_empty(coupling)
    while _grow(readers, live) or _fill_empty(axes, live):
        pass
    return ~live


def is_in_integers(node: Node) -> bool:
    """True if all operands and results of the node are quantized."""
    return all(value.type.is_quantized for value in (*node.operands, *node.outputs))


def is_dense(graph: Graph, node: Node) -> bool:
    """True if the node is a layer with constant weights from every input channel to every output channel."""
    constants = [v for name in ("weight", "bias") if (v := node.optional(name)) is not None]
    return is_layer(node.op) and node.op.channel_groups == 1 and all(map(graph.is_constant, constants))


def _reader(coupling: Coupling, node: Node, op: Layer, intervals: Mapping[str, Interval]) -> _Reader:
    x, weight = node.operand("x"), node.operand("weight")
    axis, of_result = op.channel_axis(x.type), op.channel_axis(node.output.type)
    return _Reader(
        coupling.units(x, axis),
        coupling.units(node.output, of_result),
        op.taps(coupling.graph.tensor(weight))[0].ne(0).any(-1).numpy(),
        _folds(op, x, intervals[x.name].along(axis, x.type.shape[axis])).numpy(),
    )


def _folds(op: Layer, x: Value, interval: Interval) -> Tensor:
    """Input channels that are the same integer everywhere, and equal to the padding if there is any."""
    assert x.type.quantization is not None
    if op.reads_zeros:
        return interval.is_constant & (interval.low == x.type.quantization.zero_point[0])
    return interval.is_constant


def _axes_that_can_empty(coupling: Coupling) -> list[np.ndarray]:
    """The units of each axis whose channels could all be removed."""
    values = (*coupling.graph.constants, *coupling.graph.results)
    axes = dict.fromkeys(axis for value in values for axis in coupling.axes(value))
    found = [coupling.on_axis(axis) for axis in axes]
    return [units for units in found if len(units) and (units != STAYS).all()]


def _grow(readers: Sequence[_Reader], live: np.ndarray) -> bool:
    """One sweep over all dense layers, users before producers; False if nothing was added."""
    before = int(live.sum())
    for reader in reversed(readers):
        weighed = reader.weighs[
            np.append(live, True)[reader.outputs]
        ]  # entry -1: channels that are always kept
        units = reader.inputs[weighed.any(0) & ~reader.folds]
        live[units[units != STAYS]] = True
    return int(live.sum()) > before


def _fill_empty(axes: Sequence[np.ndarray], live: np.ndarray) -> bool:
    """Keeps the first unit of each axis that would lose all; False if there is none."""
    empty = [units for units in axes if not live[units].any()]
    for units in empty:
        live[units[0]] = True
    return bool(empty)
