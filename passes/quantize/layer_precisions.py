"""Bit widths of layers and values: from the spec, else from an earlier pass, else the default.

A layer's activations are its operands; the states of a recurrent layer have 16 bits, and the operands of an attention
have 8, unless its own layer requests more. Values that share an encoding share their bit width, the widest one
requested for a member; the result of an operator with 8 bits has 8, and an operand of such an operator is converted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from ...ir import BINARY_BITS, FLOAT_BITS, Encoding, Graph, Node, Precision, ShapeError
from ...ir.ops.activation import Elementwise
from ...ir.ops.attention import Attention
from ...ir.ops.base import Quantized
from ...ir.ops.matmul import MatMul
from ...ir.ops.recurrent import Recurrent
from ...ir.ops.recurrent_form import STATE_BITS
from ...specs.options import LayerBits, LayerPrecision, QuantizeOptions
from ..weighted_layers import is_layer
from .groups import UnionFind
from .quantization_plan import Plan
from .value_roles import wide_values

BITS: Mapping[str, int] = {"binary": BINARY_BITS, "int2": 2, "int4": 4, "int8": 8, "int16": 16}
NARROW_BITS = 8


@dataclass(frozen=True)
class Precisions:
    """Bits by module path. A path not in the spec's `layers` has the bits in `decided`, else the options'."""

    options: QuantizeOptions
    decided: Mapping[str, Precision] = field(default_factory=dict)
    selects: Callable[[str, str], bool] = str.__eq__

    def is_float(self, module: str) -> bool:
        """True if the layer stays in float."""
        settings = self._settings(module)
        return bool(settings) and settings[0].weights == FLOAT_BITS

    def weight_bits(self, module: str) -> int:
        """Storage bits of the layer's weights."""
        given = (p.weights for p in self._settings(module) if p.weights not in (None, FLOAT_BITS))
        return next(given, None) or BITS[self.options.weights]

    def activation_bits(self, module: str) -> int:
        """Bits that the layer requests for its operands."""
        return self.chosen_bits(module) or BITS[self.options.activations]

    def chosen_bits(self, module: str) -> int | None:
        """Bits of its operands that were chosen for this layer only; None if there are none."""
        return next((p.activations for p in self._settings(module) if p.activations is not None), None)

    def _settings(self, module: str) -> tuple[Precision, ...]:
        """Settings for the layer, in order of precedence."""
        matching = [p for pattern, p in self.options.layers.items() if self.selects(pattern, module)]
        return (
            *map(precision_of, matching[-1:]),
            *([self.decided[module]] if module in self.decided else ()),
        )


def precision_of(setting: LayerPrecision) -> Precision:
    """The precision that a setting of a layer in the spec describes."""
    if not isinstance(setting, LayerBits):
        return Precision(BITS.get(setting, FLOAT_BITS))
    weights, activations = (name and BITS[name] for name in (setting.weights, setting.activations))
    return Precision(weights or None, activations or None)


@dataclass(frozen=True)
class GroupBits:
    """Bit width of each group of values that share an encoding, nodes limited to 8 bits, and warnings of unmet
    requests.
    """

    by_group: Mapping[str, int]
    narrow: frozenset[str]  # first results of nodes
    warnings: tuple[str, ...] = ()


def group_bits(graph: Graph, plan: Plan, groups: UnionFind, precisions: Precisions) -> GroupBits:
    """The widest width that a reader requests for a value of each group; the default without a request.

    Values in a role (`value_roles`) may have 16 bits although layers and products read them in fewer. Widths below 8
    apply to the operands of layers and products; all other values, and inputs of the network, have at least 8 bits.

    If the default is 16 bits for all, operators without a 16-bit form stay in float instead.
    """
    default = max(BITS[precisions.options.activations], NARROW_BITS)
    computing = [n for n in graph.nodes if n.outputs[0].name in plan.computing]
    narrow = [n for n in computing if default == NARROW_BITS and not accepts_wide(n)]
    requested: dict[str, list[tuple[int, str]]] = {}
    for node in computing:
        one, module = is_layer(node.op) or isinstance(node.op, Recurrent), node.source.module
        bits = precisions.activation_bits(module)
        if not is_layer(node.op) and not isinstance(node.op, MatMul):
            bits = max(bits, NARROW_BITS)
        asks = [(v, bits) for v in (node.operands[:1] if one else node.operands)]
        if isinstance(node.op, Attention):  # products of 16 bits would need sums of 64
            narrow_bits = max(precisions.chosen_bits(module) or NARROW_BITS, NARROW_BITS)
            asks = [(v, narrow_bits) for v in node.operands[:3]]
        if isinstance(node.op, Recurrent):
            states = (*node.op.states_of(node.inputs), *node.outputs)
            asks += [(v, STATE_BITS) for v in states if v is not None]
        for value, bits in asks:
            if value.name in plan.observed:
                requested.setdefault(groups.find(value.name), []).append((bits, module))
    whole = {groups.find(value.name) for value in graph.inputs if value.name in plan.observed}
    capped = {groups.find(node.outputs[0].name): node for node in narrow}
    by_group, warnings = {}, []
    for group in {groups.find(name) for name in plan.observed}:
        bits, module = max(requested.get(group, [(default, "")]))
        maker = capped.get(group)
        if maker is not None and bits > NARROW_BITS:
            warnings.append(
                f"{module}: requests {bits} bits for the result of {maker.op.name} %{group}, which has 8"
            )
            bits = NARROW_BITS
        by_group[group] = max(bits, NARROW_BITS) if group in whole else bits
    in_roles = wide_values(graph, precisions.options) & plan.observed.keys()
    wide = {groups.find(name) for name in in_roles} - capped.keys()
    readers = [
        n
        for n in computing
        if _reads_narrow(n, precisions) and any(groups.find(v.name) in wide for v in n.operands)
    ]
    by_group |= dict.fromkeys(wide, BITS["int16"])
    names = frozenset(n.outputs[0].name for n in (*narrow, *readers))
    return GroupBits(by_group, names, tuple(sorted(warnings)))


def _reads_narrow(node: Node, precisions: Precisions) -> bool:
    """True if a layer, an attention or a matrix product requests 8 bits."""
    if isinstance(node.op, Attention):
        return precisions.chosen_bits(node.source.module) in (None, NARROW_BITS)
    is_product = is_layer(node.op) or isinstance(node.op, MatMul)
    return is_product and precisions.activation_bits(node.source.module) == NARROW_BITS


def accepts_wide(node: Node) -> bool:
    """True if the operator has an integer form on 16-bit activations."""
    if node.op.quantized is Quantized.MOVE or is_layer(node.op) or isinstance(node.op, Recurrent | Attention):
        return True
    fine, coarse = (
        Encoding((scale,), bits=BITS["int16"]) for scale in (2.0**-12, 2.0**3)
    )  # nothing overflows
    operands = [
        t.quantized(fine) if t is not None and t.dtype.is_floating and not node.op.stays_real(index) else t
        for index, t in enumerate(node.operand_types)
    ]
    imposed = node.op.result_encoding(1.0, bits=BITS["int16"])
    free = fine if isinstance(node.op, Elementwise) else coarse
    outputs = [t.quantized(imposed or free) for t in node.output_types]
    try:
        node.op.check_quantized(operands, outputs)
    except ShapeError:
        return False
    return True
