"""The interface of a graph to the caller: its inputs and outputs as the integers that `outputs.c.io` defines.

    uint8    int8 + 128
    int16    int8 - zero point, saturated on input; the graph's own integers if they are int16

A network that scales and shifts an input before quantization takes integers in place of that input: scale and shift
become part of their encoding.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from ....ir import DType, Encoding, Graph, Node, TensorType, Value, decode_codebooks, rewrite
from ....ir.affine import Affine, affine_inputs, is_movement
from ....ir.ops.quantize import Dequantize, OffsetBinary, Quantize, Requantize
from .encoding import PortEncoding

Words = Callable[[str], str]
"""Number format of an input or output, from `outputs.c.io`."""

_NARROW_BITS = 8


@dataclass(frozen=True)
class StrippedEdges:
    """A graph with inputs and outputs in the form that the caller stores, and the encodings of these integers."""

    graph: Graph
    inputs: tuple[PortEncoding | None, ...]
    outputs: tuple[PortEncoding | None, ...]


def strip_edges(graph: Graph, io: Words = lambda name: "auto") -> StrippedEdges:
    """The graph with integers at inputs that it quantizes and at outputs that it dequantizes.

    An input that is quantized in only one way becomes a quantized input; an output that is a dequantized value
    becomes that quantized value. An input of integers is used without conversion if the graph computes on exactly
    these. Weights with a codebook become the integers that their codes represent: kernels pack these according to the
    options.
    """
    graph = decode_codebooks(graph)
    chains = {chain.input.name: chain for chain in affine_inputs(graph).values()}
    taken = [_taken(graph, chains.get(v.name, Affine(v)), io(v.name)) for v in graph.inputs]
    inputs = tuple(found.value for found in taken)
    renamed = {v.name: v for v in inputs} | {name: found.last for found in taken for name in found.replaced}
    dropped = {name for found in taken for name in found.dropped}
    nodes = [node for found in taken for node in found.nodes]
    nodes += [
        replace(node, inputs=tuple(v and renamed.get(v.name, v) for v in node.inputs))
        for node in graph.nodes
        if node.outputs[0].name not in dropped
    ]
    producers = {v.name: node for node in nodes for v in node.outputs}
    given = [
        _given(renamed.get(value.name, value), producers, io(name))
        for name, value in zip(graph.output_names, graph.outputs, strict=True)
    ]
    nodes += {node.output.name: node for found in given for node in found.nodes}.values()
    outputs = tuple(found.value for found in given)
    whole = Graph(inputs, outputs, tuple(nodes), graph.params, graph.output_names, graph.precisions)
    return StrippedEdges(
        rewrite(whole, lambda builder, node, operands: None),  # without nodes that have lost their readers
        tuple(found.encoding for found in taken),
        tuple(found.encoding for found in given),
    )


@dataclass(frozen=True)
class _Taken:
    """An input as stored: `nodes` compute `last` from it, which replaces the values `replaced`; `dropped` are removed
    nodes.
    """

    value: Value
    last: Value
    encoding: PortEncoding | None = None
    nodes: tuple[Node, ...] = ()
    replaced: frozenset[str] = frozenset()
    dropped: frozenset[str] = frozenset()


@dataclass(frozen=True)
class _Given:
    """An output as stored, and the nodes that compute it."""

    value: Value
    encoding: PortEncoding | None = None
    nodes: tuple[Node, ...] = ()


def _taken(graph: Graph, chain: Affine, word: str) -> _Taken:
    value, quantization, readers = chain.input, chain.input.type.quantization, _quantizers(graph, chain)
    if quantization is None and readers and (word != "float" or not value.type.dtype.is_floating):
        quantization = readers[0].output.type.quantization
        assert quantization is not None
        if not value.type.dtype.is_floating and not _are_codes(graph, chain, quantization):
            quantization = None
    if quantization is None:
        return _Taken(value, value)
    codes = Value(f"{value.name}@codes", TensorType(value.type.shape).quantized(quantization))
    stored, encoding = _stored(codes.type, word, model=value.type.dtype)
    taken = Value(value.name, stored)
    nodes = _conversion(taken, codes)
    last = codes if nodes else taken
    for node in chain.nodes:
        if is_movement(node.op):
            moved = Value(node.output.name, TensorType(node.output.type.shape).quantized(quantization))
            nodes += (replace(node, inputs=(last,), outputs=(moved,)),)
            last = moved
    quantized = frozenset(node.output.name for node in readers)
    return _Taken(
        taken,
        last,
        encoding and encoding.before(scale=chain.scale, offset=chain.offset),
        nodes,
        quantized or frozenset({value.name}),
        quantized.union(node.output.name for node in chain.nodes),
    )


def _quantizers(graph: Graph, chain: Affine) -> tuple[Node, ...]:
    """The nodes that quantize the end of a chain, all in the same way; empty if it has other readers, too."""
    last = chain.nodes[-1].output if chain.nodes else chain.input
    found = tuple(node for node in graph.users.get(last.name, ()) if isinstance(node.op, Quantize))
    alike = len({node.output.type for node in found}) == 1
    return found if alike and len(found) == graph.use_count(last) else ()


def _are_codes(graph: Graph, chain: Affine, quantization: Encoding) -> bool:
    """True if an input of integers, which a chain converts to reals, is quantized to exactly these; all integers are
    tested.
    """
    dtype = chain.input.type.dtype
    if dtype not in (DType.U8, quantization.container) or (
        dtype is DType.U8 and quantization.bits != _NARROW_BITS
    ):
        return False
    limits = torch.iinfo(dtype.torch)
    integers = torch.arange(limits.min, limits.max + 1)
    reals = integers.to(dtype.torch)
    for node in chain.nodes:
        if not is_movement(node.op):
            numbers = [graph.tensor(v).reshape(()) if graph.is_constant(v) else reals for v in node.operands]
            result = node.op.reference(*numbers)
            assert isinstance(result, torch.Tensor)
            reals = result
    wanted = integers - 128 if dtype is DType.U8 else integers
    return torch.equal(quantization.quantize(reals), wanted)


def _given(value: Value, producers: dict[str, Node], word: str) -> _Given:
    node = producers.get(value.name)
    if node is not None and isinstance(node.op, Dequantize) and word != "float":
        (value,) = node.operands
    if not value.type.is_quantized:
        return _Given(value)
    type, encoding = _stored(value.type, word)
    stored = Value(f"{value.name}@{type.dtype.value}", type)
    nodes = _conversion(value, stored)
    return _Given(stored if nodes else value, encoding, nodes)


def _stored(
    codes: TensorType, word: str, *, model: DType = DType.F32
) -> tuple[TensorType, PortEncoding | None]:
    """Type of a quantized port in the caller's buffer: the graph's integers, unless `word` requests others."""
    quantization, encoding = codes.quantization, PortEncoding.of(codes)
    assert quantization is not None
    if encoding is None or quantization.bits != _NARROW_BITS:
        return codes, encoding
    if word == "uint8" or (model is DType.U8 and word in ("auto", "float")):
        shifted = PortEncoding(encoding.scale, encoding.zero_point + 128, 0, 255)
        return TensorType(codes.shape, DType.U8), shifted
    if word == "int16":
        wide = TensorType(codes.shape).quantized(Encoding(quantization.scale, bits=16))
        return wide, PortEncoding.of(wide)
    return codes, encoding


def _conversion(before: Value, after: Value) -> tuple[Node, ...]:
    """The node between the caller's form of a value and that of the graph, if they differ."""
    if before.type == after.type:
        return ()
    op = OffsetBinary() if DType.U8 in (before.type.dtype, after.type.dtype) else Requantize()
    return (Node(op, (before,), (after,)),)
