"""The pass `equalize`: each channel between two layers gets the same range of weights in both.

    W2 f(W1 x + b1) = (W2 S) f(S^-1 W1 x + S^-1 b1),    s_i = sqrt(r1_i / r2_i)

for every f with f(s x) = s f(x), s > 0: ReLU, pooling, zero padding, magnitudes of a spectrum, whose real and
imaginary parts share a factor. r1_i is the largest weight of output channel i in the first layer, r2_i that of input
channel i in the second; afterwards both are sqrt(r1_i r2_i). Chains of layers need several rounds. Source: Nagel et
al., Data-free quantization through weight equalization and bias correction, ICCV 2019.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

import numpy as np
import torch
from torch import Tensor

from ..ir import Graph, Node, Value, couple
from ..ir.coupling import STAYS
from ..specs.options import EqualizeOptions
from .base import Context, PassResult, register
from .channel_scales import is_own
from .report import Cell, Decision, PassReport, Table
from .weighted_layers import is_layer

_ROUNDS = 1000
_WORTH = 1e-2  # a pair is changed if a factor differs from 1 by more
_DONE = 1e-4  # and skipped if none differs by more, so that a second run changes nothing


@register(EqualizeOptions)
def equalize(graph: Graph, options: EqualizeOptions, context: Context) -> PassResult:
    """An equivalent graph, with equal ranges of weights in both layers of each pair, channel by channel."""
    pairs: list[_Pair] = []
    decisions: list[Decision] = []
    for node in graph.nodes:
        if not is_layer(node.op):
            continue
        found = _pair(graph, node)
        if isinstance(found, _Pair) and any(
            context.selects_any(options.keep, layer.source) for layer in (found.first, found.second)
        ):
            found = "the spec keeps one of the layers"
        if isinstance(found, _Pair):
            pairs.append(found)
        else:
            decisions.append(Decision("equalize", node.output.name, node.source, False, found))
    params, factors = _balanced(graph, pairs)
    rows: list[tuple[Cell, ...]] = []
    for pair, factor in zip(pairs, factors, strict=True):
        name, spread = pair.first.output.name, float(factor.max() / factor.min())
        applied = bool((factor != 1).any())
        reason = (
            f"channels of {pair.second.output.name} are scaled" if applied else "the ranges agree already"
        )
        decisions.append(Decision("equalize", name, pair.first.source, applied, reason))
        rows.append(
            (name, pair.second.output.name, len(factor), float(factor.min()), float(factor.max()), spread)
        )
    columns = ("first", "second", "channels", "smallest_factor", "largest_factor", "spread")
    report = PassReport("equalize", tuple(decisions), (Table("pairs", columns, tuple(rows)),))
    return PassResult(graph.with_params(params), report)


@dataclass(frozen=True)
class _Pair:
    """Two layers and the `count` factors between them: one for each output channel of the first, and input channel of
    the second.
    """

    first: Node
    second: Node
    count: int
    written: Tensor
    read: Tensor


def _pair(graph: Graph, first: Node) -> _Pair | str:
    """The layer and its only reader, if a factor can be moved between them; else the reason against it."""
    assert is_layer(first.op)
    own = [first.operand("weight"), first.optional("bias")]
    if first.optional("residual") is not None:
        return "a residual is added to its result"
    if not all(is_own(graph, v) for v in own if v is not None):
        return "its weights are not unshared float constants"
    low, high = first.op.clamp or (-inf, inf)
    if low not in (-inf, 0.0) or high not in (inf, 0.0):
        return "its clamp would need a different bound for each channel"
    return _followed(graph, first)


def _followed(graph: Graph, first: Node) -> _Pair | str:
    """The layer that alone reads all results of the first, through operators that propagate a factor."""
    between, known, waiting = list[Node](), {first.output.name}, [first.output]
    found: tuple[Node, Value] | None = None
    while waiting:
        value = waiting.pop(0)
        readers = graph.users.get(value.name, ())
        is_output = graph.use_count(value) != len(readers)
        if is_output or not (readers or between):
            return "its result is read more than once, or is an output"
        for user in readers:
            if is_layer(user.op):
                if found is not None:
                    return "its result is read more than once, or is an output"
                found = user, value
            elif not user.op.facts.homogeneous:
                return f"{user.op.name} after it does not propagate a factor"
            elif all(v.name in known for v in user.operands) and user not in between:
                between.append(user)
                known.update(v.name for v in user.outputs)
                waiting += user.outputs
    if found is None:
        return next(
            f"{node.op.name} after it does not propagate a factor: it reads another value, too"
            for name in known
            for node in graph.users.get(name, ())
            if node not in between
        )
    entered = [node for name in known for node in graph.users.get(name, ()) if node is not found[0]]
    apart = next((node for node in entered if node not in between), None)
    if apart is not None:
        return f"{apart.op.name} after it does not propagate a factor: it reads another value, too"
    return _joined(graph, first, between, *found)


def _joined(graph: Graph, first: Node, between: Sequence[Node], second: Node, value: Value) -> _Pair | str:
    assert is_layer(first.op) and is_layer(second.op)
    if second.op.out_axis == 1:
        return "a transposed convolution reads it"
    x, weight = second.operand("x"), second.operand("weight")
    if x.name != value.name:
        return "the next layer reads it as another operand"
    if not is_own(graph, weight):
        return "the next layer has no unshared constant float weights"
    made = first.op.channel_axis(first.output.type)
    part = Graph((first.output,), (value,), tuple(between))
    coupling = couple(part, follows=(first.output, made))
    units = coupling.units(first.output, made)
    read = coupling.units(value, second.op.channel_axis(x.type))
    if STAYS in units or STAYS in read:
        return "the next layer reads it along another dimension"
    names, written = np.unique(units, return_inverse=True)
    places = np.searchsorted(names, read)
    return _Pair(first, second, len(names), torch.from_numpy(written), torch.from_numpy(places))


def _constants(graph: Graph, pairs: list[_Pair]) -> dict[str, Tensor]:
    return {
        v.name: graph.tensor(v).double()
        for pair in pairs
        for v in (pair.first.operand("weight"), pair.first.optional("bias"), pair.second.operand("weight"))
        if v is not None
    }


def _balanced(graph: Graph, pairs: list[_Pair]) -> tuple[dict[str, Tensor], list[Tensor]]:
    """Constants and the total factor of each channel of each pair, after all pairs are balanced."""
    exact = _constants(graph, pairs)
    totals = [torch.ones(pair.count, dtype=torch.float64) for pair in pairs]
    if not any(_deviation(_factors(pair, exact)) > _WORTH for pair in pairs):
        return {}, totals
    for _ in range(_ROUNDS):
        moved = 0.0
        for index, pair in enumerate(pairs):
            factor = _factors(pair, exact)
            moved = max(moved, _deviation(factor))
            _apply(pair, factor, exact)
            totals[index] = totals[index] * factor
        if moved < _DONE:
            break
    return {name: tensor.to(graph.params[name].dtype) for name, tensor in exact.items()}, totals


def _factors(pair: _Pair, tensors: dict[str, Tensor]) -> Tensor:
    """s of each channel; 1 if one of the layers has only zeros."""
    first, second = pair.first.op, pair.second.op
    assert is_layer(first) and is_layer(second)
    written = first.taps(tensors[pair.first.operand("weight").name]).abs().amax((2, 3)).flatten()
    read = second.taps(tensors[pair.second.operand("weight").name]).abs().amax((1, 3)).flatten()
    nothing = torch.zeros(pair.count, dtype=torch.float64)
    written = nothing.scatter_reduce(0, pair.written, written, "amax")
    read = nothing.scatter_reduce(0, pair.read, read, "amax")
    usable = (written > 0) & (read > 0)
    return torch.where(usable, (written / torch.where(usable, read, 1.0)).sqrt(), 1.0)


def _deviation(factor: Tensor) -> float:
    return float(factor.log().abs().max())


def _apply(pair: _Pair, factor: Tensor, tensors: dict[str, Tensor]) -> None:
    first, second = pair.first.op, pair.second.op
    assert is_layer(first) and is_layer(second)
    weight, bias = pair.first.operand("weight"), pair.first.optional("bias")
    read = pair.second.operand("weight")
    tensors[weight.name] = first.scale_outputs(tensors[weight.name], 1 / factor[pair.written])
    if bias is not None:
        tensors[bias.name] = tensors[bias.name] / factor[pair.written]
    tensors[read.name] = second.scale_inputs(tensors[read.name], factor[pair.read])
