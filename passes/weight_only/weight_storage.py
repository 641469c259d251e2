"""The pass `weight_only`: weights of matrix products and embeddings as integers.

A weight becomes an integer constant and a `dequantize` that all its users read; a tied one stays tied, and one of half
precision is cast back to it. Weights are the constants that linear layers, embeddings and matrix products read,
directly or after moves (a transposed weight, the matrices of experts), whatever their rank. A scale serves a group,
consecutive weights along the last dimension. Rounding to nearest takes no calibration; `gptq` rounds the weights of
linear layers for the layers' outputs on the calibration data, as the float graph gives them.

Inputs of linear layers with such a weight are rounded to int8, with a scale for each token, by an operator of their
own (`fake_quantize_per_token`), which the torch backend computes inside the product.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from ...ir import Builder, DType, Encoding, Entry, Graph, LazyTensor, Node, Source, Value, rewrite, run
from ...ir.ops.call import TorchCall
from ...ir.ops.convert import Cast
from ...ir.ops.embedding import Embedding
from ...ir.ops.linear import Linear
from ...ir.ops.matmul import GroupedMatMul, MatMul
from ...ir.ops.quantize import Dequantize, FakeQuantizePerToken
from ...ir.ops.shape import Copy, Expand, Permute, Reshape
from ...ir.ops.slicing import Select, Slice, Split
from ...specs.options import Gptq, WeightOnlyOptions
from ..base import Context, PassResult, register
from ..calibration.calibrate import check_samples
from ..errors import PassError
from ..report import Cell, Decision, PassReport, Table
from .gptq import quantize_by_gptq
from .groupwise import encode_groupwise, nearest_group_size, quantize_groupwise

_BITS = {"float32": 32, "int8": 8, "int6": 6, "int5": 5, "int4": 4, "int3": 3, "int2": 2}
_SCALES = {"float32": "f32", "float16": "f16", "bfloat16": "bf16"}
_MOVES = (Copy, Expand, Permute, Reshape, Select, Slice, Split)
_PRODUCTS = {"einsum", "bmm", "baddbmm", "addmm", "addbmm", "mm", "matmul", "_grouped_mm"}  # calls of aten
_ELEMENTS = (DType.F32, DType.F16, DType.BF16)


@dataclass(frozen=True, slots=True)
class _Stored:
    """A weight, the bits that it is to have, and the first layer that reads it."""

    value: Value
    bits: int
    source: Source


@register(WeightOnlyOptions)
def weight_only(graph: Graph, options: WeightOnlyOptions, context: Context) -> PassResult:
    """Integer weights for a float graph; PassError if no linear layer or embedding has a constant one."""
    found = _weights(graph, options, context)
    if not found:
        raise PassError(
            "there is no linear layer or embedding, and no matrix product, with a floating point weight of its own"
        )
    decisions, rows, made = [], [], dict[str, tuple[Entry, Encoding]]()
    hessians = (
        _hessians(graph, found, options.rounding, context) if isinstance(options.rounding, Gptq) else {}
    )
    for name, stored in found.items():
        bytes_before = stored.value.type.storage_bytes
        if stored.bits == 32:
            reason = f"stays float, {bytes_before:,} bytes: the spec keeps it"
            decisions.append(Decision("weight_only", name, stored.source, False, reason))
            continue
        size = nearest_group_size(stored.value.type.shape[-1], options.group_size)
        integers, grid, error = _quantized(graph, stored, size, options, hessians.get(name))
        made[name] = (integers, grid)
        size_after = stored.value.type.quantized(grid).storage_bytes + grid.parameter_bytes
        rows.append((name, stored.bits, size, bytes_before, size_after, error))
        text = f"int{stored.bits}, a scale of {options.scales} for {size} weights"
        decisions.append(Decision("weight_only", name, stored.source, True, text))
    decisions += _kept(graph, found)
    real: dict[str, Value] = {}
    rounded: dict[str, Value] = {}

    def visit(builder: Builder, node: Node, operands: tuple[Value | None, ...]) -> tuple[Value, ...] | None:
        for name in (v.name for v in node.operands if v.name in made and v.name not in real):
            integers, grid = made[name]
            builder.release(name)
            constant = builder.constant(name, integers, quantization=grid)
            source, dtype = found[name].source, found[name].value.type.dtype
            real[name] = builder.add(Dequantize(), constant, source=source)
            if dtype is not DType.F32:
                real[name] = builder.add(Cast(dtype.value), real[name], source=source)
        kept = [old and real.get(old.name, new) for old, new in zip(node.inputs, operands, strict=True)]
        if (
            options.activations == "int8"
            and isinstance(node.op, Linear)
            and node.operand("weight").name in made
        ):
            x = node.op.operand(kept, "x")
            if x.name not in rounded:
                rounded[x.name] = builder.add(FakeQuantizePerToken(), x, source=node.source)
            kept[node.op.operand_names.index("x")] = rounded[x.name]
        return builder.keep(node, kept)

    columns = ("weight", "bits", "group", "bytes_before", "bytes_after", "relative_error")
    tables = (Table("weights", columns, tuple(rows)), _summary(graph, rows))
    after = rewrite(graph, visit)
    return PassResult(after, PassReport("weight_only", tuple(decisions), tables, _notes(after)))


def _notes(graph: Graph) -> tuple[str, ...]:
    """What a user loses beside the precision of weights."""
    rounded = {node.output.name for node in graph.nodes if isinstance(node.op, FakeQuantizePerToken)}
    layers = sum(isinstance(n.op, Linear) and n.operand("x").name in rounded for n in graph.nodes)
    if not layers:
        return ()
    return (
        f"inputs of {layers} linear layers are rounded to int8 at run time, with a scale for each token; "
        "`activations: float32` keeps them as they are, and is slower",
    )


def _quantized(
    graph: Graph, stored: _Stored, size: int, options: WeightOnlyOptions, hessian: Tensor | None
) -> tuple[Entry, Encoding, float]:
    """The integers of a weight, their encoding, and their error relative to the weight.

    The integers of a lazy weight are lazy, too: made again from it at each use.
    """
    entry, shape = graph.params.entry(stored.value.name), stored.value.type.shape
    weight = entry if isinstance(entry, Tensor) else entry.read()
    group_size = None if len(shape) == 2 and size == shape[1] else size
    dtype = DType(_SCALES[options.scales]).torch
    if hessian is not None and isinstance(options.rounding, Gptq):
        integers, encoding = quantize_by_gptq(
            weight,
            hessian,
            bits=stored.bits,
            group_size=group_size,
            damping=options.rounding.damping,
            observer=options.observer,
            dtype=dtype,
        )
    else:
        integers, encoding = quantize_groupwise(
            weight, bits=stored.bits, group_size=group_size, observer=options.observer, dtype=dtype
        )
    difference = encoding.dequantize(integers).sub_(weight)
    error = float(difference.norm() / weight.float().norm().clamp(min=1e-30))
    if isinstance(entry, Tensor) or hessian is not None:
        return integers, encoding, error
    return (
        LazyTensor(shape, encoding.container.torch, lambda: encode_groupwise(entry.read(), encoding)),
        encoding,
        error,
    )


def _hessians(
    graph: Graph, found: Mapping[str, _Stored], options: Gptq, context: Context
) -> dict[str, Tensor]:
    """The sum of x^T x over the calibration samples, for the inputs x of all linear layers that read a weight."""
    weights: dict[str, list[str]] = {}
    for node in graph.nodes:
        if isinstance(node.op, Linear) and found.get(node.operand("weight").name):
            weights.setdefault(node.operand("x").name, []).append(node.operand("weight").name)
    hessians: dict[str, Tensor] = {}

    def observe(value: Value, x: Tensor) -> None:
        if value.name in weights:
            rows = x.reshape(-1, x.shape[-1]).float()
            product = rows.T @ rows
            for name in weights[value.name]:
                hessians[name] = hessians[name] + product if name in hessians else product

    check_samples(graph, context.calibration)
    samples = context.calibration[: options.samples]
    with torch.no_grad():
        for index, sample in enumerate(samples):
            for value, x in zip(graph.inputs, sample, strict=True):
                observe(value, x)
            run(graph, sample, observe=observe)
            context.progress("calibration", index + 1, len(samples))
    return hessians


def _weights(graph: Graph, options: WeightOnlyOptions, context: Context) -> dict[str, _Stored]:
    """The float weights of products and embeddings, by name; the widest wish of a weight's layers holds."""
    moved = _moved_constants(graph)
    found: dict[str, _Stored] = {}
    for node in graph.nodes:
        for value in (moved[v.name] for v in _factors(node) if v.name in moved):
            if value.name not in found and _reason(graph, value) is not None:
                continue
            bits = _bits(node, options, context)
            if value.name in found:
                known = found[value.name]
                found[value.name] = _Stored(value, max(bits, known.bits), known.source)
            else:
                found[value.name] = _Stored(value, bits, node.source)
    return found


def _factors(node: Node) -> tuple[Value, ...]:
    """The operands of a node that can be weights of a product, or the table of an embedding."""
    if isinstance(node.op, Linear | Embedding):
        return node.operands[1:2]
    if isinstance(node.op, MatMul | GroupedMatMul):
        return node.operands[:2]
    is_product = isinstance(node.op, TorchCall) and node.op.target.split(".")[1] in _PRODUCTS
    return node.operands if is_product else ()


def _moved_constants(graph: Graph) -> dict[str, Value]:
    """The constant whose elements each value holds, by the value's name: a constant, or what moves make of one."""
    moved = {value.name: value for value in graph.constants}
    for node in graph.nodes:
        if isinstance(node.op, _MOVES) and node.operands[0].name in moved:
            moved |= {value.name: moved[node.operands[0].name] for value in node.outputs}
    return moved


def _reason(graph: Graph, value: Value) -> str | None:
    """Why a constant cannot be stored as integers, if so."""
    if value.type.is_quantized or value.type.dtype not in _ELEMENTS:
        return f"its elements are {value.type.dtype.value}"
    if value.type.rank < 2 or not prod(value.type.shape):
        return "it is no matrix"
    if value in graph.outputs:
        return "it is a result of the model"
    return None if bool(graph.tensor(value).isfinite().all()) else "some of its elements are not finite"


def _kept(graph: Graph, found: dict[str, _Stored]) -> list[Decision]:
    """A decision for each float matrix that stays as it is, with its bytes and the reason."""
    decisions = []
    for value in graph.constants:
        if value.name in found or value.type.rank < 2 or not value.type.dtype.is_floating:
            continue
        readers = graph.users.get(value.name, ())
        ops = ", ".join(dict.fromkeys(node.op.name for node in readers)) or "nothing"
        reason = _reason(graph, value) or f"{ops} reads it, which is no matrix product or embedding"
        text = f"stays float, {value.type.storage_bytes:,} bytes: {reason}"
        source = readers[0].source if readers else Source()
        decisions.append(Decision("weight_only", value.name, source, False, text))
    return decisions


def _bits(node: Node, options: WeightOnlyOptions, context: Context) -> int:
    module = node.source.module
    matching = [kind for pattern, kind in options.layers.items() if context.selects(pattern, module)]
    return _BITS[matching[-1] if matching else options.weights]


def _summary(graph: Graph, rows: list[tuple[str, int, int, int, int, float]]) -> Table:
    constants = sum(v.type.storage_bytes for v in graph.constants if v.type.dtype.is_floating)
    before, after = sum(row[3] for row in rows), sum(row[4] for row in rows)
    figures: tuple[tuple[str, Cell], ...] = (
        ("weight_bytes_before", before),
        ("weight_bytes_after", after),
        ("constant_bytes_before", constants),
        ("constant_bytes_after", constants - before + after),
    )
    return Table("summary", ("figure", "value"), figures)
