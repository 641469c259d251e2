"""Shared weights: a layer's int8 weights have few distinct values, the codebook of their encoding.

The table is the one of least squared error, found exactly: in one dimension clusters are intervals, and

    error(k, j) = min over i of error(k - 1, i) + cost of one value for the integers i..j-1

is a recursion over at most 255 integers. Sources: Han et al., Deep Compression, ICLR 2016; Wang and Song,
Ckmeans.1d.dp, The R Journal, 2011.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...ir import Graph
from ...ir.huffman import code_lengths, encoded_bits
from ..report import Cell, Table
from ..weighted_layers import is_layer


def share_values(integers: Tensor, importance: Tensor, *, bits: int) -> Tensor:
    """Integers with at most 2^bits distinct values and the least squared error weighted by `importance` (>= 0)."""
    values, index = torch.unique(integers.to(torch.int64), return_inverse=True)
    count = 1 << bits
    if len(values) <= count:
        return integers
    mass = torch.zeros(len(values), dtype=torch.float64)
    mass.index_add_(0, index.flatten(), importance.double().expand(integers.shape).flatten())
    mass = mass / mass.max() if bool(mass.max()) else torch.ones_like(mass)
    mean, cost = _intervals(values.double(), mass)
    table = torch.empty_like(values)
    end = len(values)
    for start in _starts(cost, count):
        table[start:end] = mean[start, end].round().to(torch.int64)
        end = start
    return table[index].to(integers.dtype)


def shared_weights(graph: Graph, *, bits: int) -> frozenset[str]:
    """Names of int8 weights of layers with at most 2^bits distinct values."""
    weights = (node.operand("weight") for node in graph.nodes if is_layer(node.op))
    return frozenset(
        weight.name
        for weight in weights
        if graph.is_constant(weight)
        and weight.type.quantization is not None
        and weight.type.quantization.bits == 8
        and len(graph.tensor(weight).unique()) <= 1 << bits
    )


def storage_table(graph: Graph) -> Table:
    """Bytes of each layer's int8 weights: without coding, as indices into a table, and with Huffman coding.

    The Huffman image contains the value and the code length of each distinct value, then the codes.
    """
    rows: dict[str, tuple[Cell, ...]] = {}
    for node in graph.nodes:
        weight = node.operand("weight") if is_layer(node.op) else None
        if weight is None or weight.type.quantization is None or weight.type.quantization.bits != 8:
            continue
        if graph.is_constant(weight):
            values, counts = torch.unique(graph.tensor(weight), return_counts=True)
            width = max(1, (len(values) - 1).bit_length())
            indices = len(values) + (weight.type.numel * width + 7) // 8
            lengths = code_lengths(counts.tolist())
            coded = 2 * len(values) + (encoded_bits(counts.tolist(), lengths) + 7) // 8
            rows[weight.name] = (
                node.output.name,
                node.source.module,
                len(values),
                weight.type.numel,
                indices,
                coded,
            )
    columns = ("layer", "module", "distinct_values", "plain_bytes", "index_bytes", "huffman_bytes")
    return Table("codebooks", columns, tuple(rows.values()))


def _intervals(values: Tensor, mass: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and cost of one rounded value for the sorted values i..j-1, at [i, j]; infinite if i >= j."""
    sums = [torch.cat([torch.zeros(1, dtype=torch.float64), (mass * values**p).cumsum(0)]) for p in range(3)]
    weight, first, second = (s[None, :] - s[:, None] for s in sums)
    mean = torch.where(weight > 0, first / weight, values[0])
    low, high = torch.cat([values, values[-1:]])[:, None], torch.cat([values[:1], values])[None, :]
    mean = mean.clamp(low, torch.maximum(low, high)).round()
    cost = second - 2 * mean * first + mean**2 * weight
    is_interval = torch.ones_like(cost).triu(1) > 0
    return mean, torch.where(is_interval, cost.clamp(min=0), torch.inf)


def _starts(cost: Tensor, count: int) -> list[int]:
    """First index of each of at most `count` intervals of least total cost, the last interval first."""
    best, choices = cost[0].clone(), []
    for _ in range(count - 1):
        total = best[:, None] + cost
        reached, choice = total.min(0)
        choices.append(choice)
        best = reached
    end, starts = len(best) - 1, []
    for choice in reversed(choices):
        starts.append(int(choice[end]))
        end = starts[-1]
    return [*starts, 0]
