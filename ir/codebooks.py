"""Weights with a codebook of integers: a layer computes with the integers that its codes represent.

    %w: u8[8x3x3x3]<scale=0.01, bits=4, levels=(-90, -31, 0, 28, 77)>    codes 0..4; the layer computes on int8

The codebook is part of the type, so that the text form has it and other passes keep it. Kernels and emitted modules
read the integers (`decode_codebooks`) and pack them in their own form.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

import torch

from .encoding import CODEBOOK_BITS
from .graph import Graph, Node
from .numbers import Numbers
from .ops.base import Quantized
from .ops.quantize import Dequantize
from .tensor_type import TensorType, Value


def computes_on_codes(graph: Graph, node: Node, value: Value) -> bool:
    """True if a node computes on the integers that the codes of a constant represent."""
    return _is_arithmetic(node) and graph.is_constant(value) and _stands_for_integers(graph, value)


def integer_type(type: TensorType) -> TensorType | None:
    """The int8 type with the same reals as a type with a codebook; None without a codebook, or if its levels are not
    int8.
    """
    encoding = type.quantization
    if encoding is None or encoding.levels is None:
        return None
    levels = encoding.levels.tensor(torch.float64)
    if not bool(((levels == levels.round()) & (levels >= -128) & (levels <= 127)).all()):
        return None
    plain = replace(encoding, bits=8, levels=None)
    return TensorType(type.shape).quantized(plain) if plain.is_integer else None


def decode_codebooks(graph: Graph) -> Graph:
    """The graph with int8 weights in place of codes that layers compute on; the graph itself if there are none."""
    coded, plain, params = coded_weights(graph), dict[str, Value](), dict[str, torch.Tensor]()
    for value in graph.constants:
        type, encoding = integer_type(value.type), value.type.quantization
        if value.name in coded and type is not None and encoding is not None and encoding.levels is not None:
            plain[value.name] = Value(value.name, type)
            levels = encoding.levels.tensor(torch.float64).to(torch.int8)
            params[value.name] = levels[graph.tensor(value).to(torch.int64)]
    return _placed(graph, plain, params)


def encode_codebooks(graph: Graph, names: Collection[str]) -> Graph:
    """The graph with codes in place of these int8 weights, and their distinct integers as codebooks."""
    coded, params = dict[str, Value](), dict[str, torch.Tensor]()
    for value in graph.constants:
        encoding = value.type.quantization
        if value.name in names and encoding is not None and _only_computed_with(graph, value):
            levels, codes = torch.unique(graph.tensor(value), return_inverse=True)
            bits = next(bits for bits in CODEBOOK_BITS if len(levels) <= 1 << bits)
            with_levels = replace(encoding, bits=bits, levels=Numbers.of_reals(levels.tolist()))
            coded[value.name] = Value(value.name, TensorType(value.type.shape).quantized(with_levels))
            params[value.name] = codes.to(torch.uint8)
    return _placed(graph, coded, params)


def coded_weights(graph: Graph) -> frozenset[str]:
    """Names of constants whose codes represent integers that only arithmetic reads."""
    return frozenset(value.name for value in graph.constants if _stands_for_integers(graph, value))


def _stands_for_integers(graph: Graph, value: Value) -> bool:
    return integer_type(value.type) is not None and _only_computed_with(graph, value)


def _only_computed_with(graph: Graph, value: Value) -> bool:
    users = graph.users.get(value.name, ())
    return len(users) == graph.use_count(value) and all(map(_is_arithmetic, users))


def _is_arithmetic(node: Node) -> bool:
    return node.op.quantized is Quantized.COMPUTE and not isinstance(node.op, Dequantize)


def _placed(graph: Graph, values: Mapping[str, Value], params: Mapping[str, torch.Tensor]) -> Graph:
    if not values:
        return graph
    nodes = tuple(node.with_values(lambda value: values.get(value.name, value)) for node in graph.nodes)
    return replace(graph, nodes=nodes, params=graph.params | params)
