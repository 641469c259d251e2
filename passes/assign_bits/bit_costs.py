"""Data of the integer program over bit widths: costs of each layer at each width, and layers that must agree.

Bytes of packed weights and bit operations follow from the graph. Flash, instructions, cycles and the arena come from
the cost model, which is called once for each pair of widths on all layers together; the cost of the chosen mix is
predicted again.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...ir import Graph, Node, Precision
from ..base import Cost, CostModel
from ..errors import PassError
from ..fuse.fuse_activation import FUSE_ACTIVATION
from ..masks import lift_masks
from ..pattern import apply_rules
from ..quantize.groups import UnionFind
from ..quantize.integer_forms import INTEGER_FORMS
from ..quantize.layer_precisions import accepts_wide
from ..quantize.quantization_plan import make_plan
from ..sensitivity.blocks import Block, find_blocks, weight_of
from .bit_program import Tie

BYTE = 8
Widths = tuple[int, int]
"""Bit widths of the weights and of the activations of a layer."""


@dataclass(frozen=True)
class BitLayer:
    """A layer whose bit widths are decided: the nodes and module paths that share them, and the allowed widths."""

    name: str
    modules: tuple[str, ...]
    nodes: tuple[Node, ...]
    widths: tuple[Widths, ...]

    @property
    def weights(self) -> tuple[int, ...]:
        """Allowed bit widths of the weights."""
        return tuple(sorted({w for w, _ in self.widths}))

    def weight_bytes(self, bits: int) -> int:
        """Bytes of the packed weights; a shared weight counts once."""
        sizes = {weight_of(node).name: weight_of(node).type.numel for node in self.nodes}
        return sum((size * bits + BYTE - 1) // BYTE for size in sizes.values())

    def bit_operations(self, widths: Widths) -> int:
        """Weight bits times activation bits, summed over all multiply-accumulates."""
        return sum(node.macs for node in self.nodes) * widths[0] * widths[1]


@dataclass(frozen=True)
class BitCosts:
    """Costs by layer, widths and resource; `fixed` is the cost independent of the choice, `whole` the cost of int8."""

    layers: tuple[BitLayer, ...]
    ties: tuple[Tie, ...]
    amounts: Mapping[tuple[str, Widths], Mapping[str, float]]
    fixed: Mapping[str, float]
    whole: Mapping[str, float]


def bit_layers(
    graph: Graph,
    weights: Sequence[int],
    activations: Sequence[int],
    kept: Iterable[str],
    model: CostModel | None,
) -> tuple[BitLayer, ...]:
    """The layers of a float graph with their widths; layers in `kept` have 8 bits.

    PassError if a layer has no module path, or no width for which the target has a kernel.
    """
    held = frozenset(kept)
    limits = _limits(graph)
    layers, problems = [], []
    for block in find_blocks(graph):
        if not all(node.source.module for node in block.nodes):
            problems.append(f"%{block.nodes[0].output.name} has no module path")
            continue
        allowed = _allowed(block, model)
        wanted = [BYTE] if held.intersection(block.modules) else sorted(weights)
        most = min(limits[node.output.name] for node in block.nodes)
        pairs = tuple(
            (w, a)
            for w in wanted
            for a in sorted(activations)
            if allowed is None or (w, a) in allowed
            if a <= most or a == min(activations)
        )
        if not pairs:
            have = ", ".join(f"int{w} x int{a}" for w, a in sorted(allowed or ()))
            problems.append(f"{block.layer}: the target has kernels for {have or 'none of its widths'}")
        layers.append(BitLayer(block.layer, block.modules, block.nodes, pairs))
    if problems:
        raise PassError(f"no bits can be assigned: {'; '.join(problems)}")
    if not layers:
        raise PassError("the graph has no layer with constant float weights")
    return tuple(layers)


def bit_costs(
    graph: Graph, layers: tuple[BitLayer, ...], model: CostModel | None, latency: Path | None
) -> BitCosts:
    """Costs of all layers at all their widths."""
    amounts: dict[tuple[str, Widths], dict[str, float]] = {}
    for layer in layers:
        for widths in (*layer.widths, (BYTE, BYTE)):
            amounts[layer.name, widths] = {
                "weights": float(layer.weight_bytes(widths[0])),
                "bit_operations": float(layer.bit_operations(widths)),
            }
    fixed = {"weights": 0.0, "bit_operations": 0.0}
    if model is not None:
        fixed |= _ask(graph, layers, model, amounts)
    if latency is not None:
        _read_latencies(latency, layers, amounts)
        fixed["latency"] = 0.0
    eights = [amounts[layer.name, (BYTE, BYTE)] for layer in layers]
    whole = {name: spent + sum(row.get(name, 0.0) for row in eights) for name, spent in fixed.items()}
    return BitCosts(layers, _ties(graph, layers), amounts, fixed, whole)


def precisions(
    layers: Iterable[BitLayer], widths: Mapping[str, Widths], *, says_activations: bool
) -> dict[str, Precision]:
    """The decision by module path, in the form that `quantize` reads."""
    found: dict[str, Precision] = {}
    for layer in layers:
        w, a = widths[layer.name]
        for module in layer.modules:
            found[module] = Precision(w, a if says_activations else None)
    return found


def _allowed(block: Block, model: CostModel | None) -> frozenset[Widths] | None:
    """Bit widths that the target has kernels for. None: no restriction. int16 activations require int8 weights."""
    if model is None:
        return None
    weights = set.intersection(*(set(model.weight_bits(node)) for node in block.nodes))
    activations = set.intersection(*(set(model.activation_bits(node)) for node in block.nodes))
    return frozenset((w, a) for w in weights for a in activations if BYTE in (w, a))


def _ask(
    graph: Graph,
    layers: tuple[BitLayer, ...],
    model: CostModel,
    amounts: Mapping[tuple[str, Widths], dict[str, float]],
) -> dict[str, float]:
    """Fills in the model's predictions; returns the costs outside of layers."""
    wide = any(a > BYTE for layer in layers for _, a in layer.widths)
    pairs = sorted({pair for layer in layers for pair in layer.widths} - {(BYTE, BYTE)})
    fixed: dict[str, float] = {}
    for pair in [(BYTE, BYTE), *pairs]:
        mix = {layer.name: pair if pair in layer.widths else (BYTE, BYTE) for layer in layers}
        cost = model.predict(graph, layers=precisions(layers, mix, says_activations=wide))
        for layer in layers:
            if mix[layer.name] != pair:
                continue
            steps = [node for node in cost.nodes if node.module in layer.modules]
            amounts[layer.name, pair]["flash"] = float(sum(node.flash_bytes for node in steps))
            amounts[layer.name, pair]["instructions"] = float(sum(node.instructions for node in steps))
            if cost.cycles is not None:
                amounts[layer.name, pair]["cycles"] = float(sum(node.cycles or 0 for node in steps))
        if pair == (BYTE, BYTE):
            whole = {"flash": float(cost.flash_bytes), "instructions": float(cost.instructions)}
            whole |= {"cycles": float(cost.cycles)} if cost.cycles is not None else {}
            spent = {name: sum(amounts[layer.name, pair][name] for layer in layers) for name in whole}
            fixed = {name: whole[name] - spent[name] for name in whole}
            fixed |= _arena(graph, layers, cost, amounts) if wide else {"ram": float(cost.arena_bytes)}
    return fixed


def _arena(
    graph: Graph,
    layers: tuple[BitLayer, ...],
    cost: Cost,
    amounts: Mapping[tuple[str, Widths], dict[str, float]],
) -> dict[str, float]:
    """Arena contents at each step: int16 values take twice the bytes, counted at one layer of the group."""
    groups = _operand_groups(graph)
    first: dict[str, BitLayer] = {}
    for layer in layers:
        for node in layer.nodes:
            first.setdefault(groups.find(_operand(node)), layer)
    fixed = {}
    for step in sorted({block.first for block in cost.arena}):
        live = [block for block in cost.arena if block.first <= step <= block.last]
        name = f"ram at step {step}"
        fixed[name] = float(sum(block.bytes for block in live))
        for block in live:
            layer_of = first.get(groups.find(block.value.removesuffix("_q")))
            for widths in layer_of.widths if layer_of else ():
                row = amounts[layer_of.name, widths] if layer_of else {}
                row[name] = row.get(name, 0.0) + (block.bytes if widths[1] > BYTE else 0.0)
    return fixed


def _operand(node: Node) -> str:
    return node.operand("x").name


def _limits(graph: Graph) -> dict[str, int]:
    """The widest operand that each layer can have: results of operators with only 8 bits have 8."""
    prepared, _ = apply_rules(lift_masks(graph).graph, (*INTEGER_FORMS, FUSE_ACTIVATION))
    plan, groups = make_plan(prepared, lambda module: False), _operand_groups(graph)
    narrow = {
        groups.find(node.outputs[0].name)
        for node in prepared.nodes
        if node.outputs[0].name in plan.computing and not accepts_wide(node)
    }
    return {
        node.output.name: BYTE if groups.find(_operand(node)) in narrow else 2 * BYTE
        for block in find_blocks(graph)
        for node in block.nodes
    }


def _operand_groups(graph: Graph) -> UnionFind:
    """Values that data movement joins, as in `quantize`."""
    prepared, _ = apply_rules(lift_masks(graph).graph, (*INTEGER_FORMS, FUSE_ACTIVATION))
    plan, groups = make_plan(prepared, lambda module: False), UnionFind()
    for node in prepared.nodes:
        if node.outputs[0].name in plan.moving:
            groups.unite(v.name for v in (*node.operands, *node.outputs) if v.type.dtype.is_floating)
    return groups


def _ties(graph: Graph, layers: tuple[BitLayer, ...]) -> tuple[Tie, ...]:
    """Layers whose operands share an encoding."""
    groups = _operand_groups(graph)
    members: dict[str, dict[str, None]] = {}
    for layer in layers:
        for node in layer.nodes:
            members.setdefault(groups.find(_operand(node)), {})[layer.name] = None
    return tuple(Tie("activations", tuple(names)) for names in members.values() if len(names) > 1)


def _read_latencies(
    path: Path, layers: tuple[BitLayer, ...], amounts: Mapping[tuple[str, Widths], dict[str, float]]
) -> None:
    try:
        table = json.loads(path.read_text())
    except (OSError, ValueError) as err:
        raise PassError(f"{path}: is not a JSON table of latencies: {err}") from err
    if not isinstance(table, dict) or not all(isinstance(row, dict) for row in table.values()):
        raise PassError(f'{path}: is not of the form {{"layer": {{"int8": 1.5}}}}')
    unknown = sorted(table.keys() - {layer.name for layer in layers})
    if unknown:
        raise PassError(f"{path}: the graph has no layer {', '.join(unknown)}")
    missing = []
    for layer in layers:
        row = table.get(layer.name, {})
        for w, a in (*layer.widths, (BYTE, BYTE)) if layer.name in table else ():
            measured = row.get(f"int{w} x int{a}", row.get(f"int{w}"))
            if not isinstance(measured, int | float):
                missing.append(f"{layer.name} at int{w} x int{a}")
                continue
            amounts[layer.name, (w, a)]["latency"] = float(measured)
    if missing:
        raise PassError(f"{path}: no latency of {', '.join(dict.fromkeys(missing))}")
