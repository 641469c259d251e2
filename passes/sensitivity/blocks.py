"""Blocks: weights and operand of a layer, whose bit widths are decided together.

All nodes of one module are one block, as are modules that share a weight, which is rounded once for all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from ...ir import Encoding, Graph, Node, Value
from ...ir.ops.layer import Layer
from ..calibration.observers import Range
from ..quantize.groups import UnionFind
from ..quantize.range_encodings import activation_encoding
from ..quantize.weights import quantize_weights
from ..weighted_layers import is_layer

Rounding = Callable[[Layer, Tensor, int], Tensor]
"""Function of (operator, weight, bits) to the reals of the stored weight, in the weight's dtype."""

_UNIT = Encoding((1.0,))


@dataclass(frozen=True)
class Block:
    """Nodes whose weights are rounded together; `layer` is the module path of the first one, `modules` are those of
    all.
    """

    layer: str
    modules: tuple[str, ...]
    nodes: tuple[Node, ...]

    @property
    def sites(self) -> dict[str, tuple[Node, ...]]:
        """The nodes that read each weight, by the weight's name."""
        found: dict[str, list[Node]] = {}
        for node in self.nodes:
            found.setdefault(weight_of(node).name, []).append(node)
        return {name: tuple(nodes) for name, nodes in found.items()}

    @property
    def elements(self) -> int:
        """Number of weights; a shared one is counted once."""
        return sum(weight_of(nodes[0]).type.numel for nodes in self.sites.values())

    def weight_errors(self, graph: Graph, bits: int, rounding: Rounding) -> dict[str, Tensor]:
        """Rounding errors of the weights at `bits` bits, by name."""
        errors = {}
        for name, nodes in self.sites.items():
            op, weight = nodes[0].op, graph.params[name].detach()
            assert is_layer(op)
            errors[name] = rounding(op, weight, bits) - weight
        return errors


def weight_of(node: Node) -> Value:
    """The weight of a layer."""
    return node.operand("weight")


def data_of(node: Node) -> Value:
    """The operand of a layer that is an activation."""
    return node.operand("x")


def find_blocks(graph: Graph) -> tuple[Block, ...]:
    """The blocks of a float graph in order; a node without a module path is named after its weight."""
    nodes = [n for n in graph.nodes if _is_weighted(graph, n)]
    groups = UnionFind()
    for node in nodes:
        groups.unite([f"module {_name(node)}", f"weight {weight_of(node).name}"])
    members: dict[str, list[Node]] = {}
    for node in nodes:
        members.setdefault(groups.find(f"module {_name(node)}"), []).append(node)
    return tuple(
        Block(_name(found[0]), tuple(dict.fromkeys(map(_name, found))), tuple(found))
        for found in members.values()
    )


def _name(node: Node) -> str:
    return node.source.module or weight_of(node).name.removesuffix(".weight")


def _is_weighted(graph: Graph, node: Node) -> bool:
    return (
        is_layer(node.op)
        and graph.is_constant(weight_of(node))
        and not graph.is_constant(data_of(node))
        and weight_of(node).type.dtype.is_floating
    )


def round_weight(op: Layer, weight: Tensor, bits: int) -> Tensor:
    """A weight quantized as by `quantize` with default options: symmetric, per output channel."""
    made = quantize_weights(op, weight, None, x=_UNIT, y=_UNIT, bits=bits)
    return made.weight_encoding.dequantize(made.weight, dtype=weight.dtype)


def round_activation(x: Tensor, covered: Range, bits: int) -> Tensor:
    """An activation quantized as by `quantize`: asymmetric, per tensor, from a range."""
    encoding = activation_encoding(covered, bits=bits)
    return encoding.dequantize(encoding.quantize(x), dtype=x.dtype)


def joined(ranges: Sequence[Range]) -> Range:
    """The smallest range that contains all of them."""
    return Range(min(r.low for r in ranges), max(r.high for r in ranges))
