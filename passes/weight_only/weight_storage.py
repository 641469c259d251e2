"""The pass `weight_only`: weights of matrix products and embeddings as integers.

A weight becomes an integer constant and a `dequantize` that all its users read; a tied one stays tied, and one of half
precision is cast back to it. Weights are the constants that linear layers, embeddings and matrix products read,
directly or after moves (a transposed weight, the matrices of experts), whatever their rank. A scale serves a group,
consecutive weights along the last dimension. Rounding to nearest takes no calibration; `gptq` rounds the weights of
linear layers for the layers' outputs on the calibration data, as the float graph gives them. A budget chooses the
bit width of each weight.

Inputs of linear layers with such a weight are rounded to int8, with a scale for each token, by an operator of their
own (`fake_quantize_per_token`), which the torch backend computes inside the product.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...ir import Builder, DType, Encoding, Entry, Graph, LazyTensor, Node, Value, rewrite
from ...ir.ops.convert import Cast
from ...ir.ops.embedding import Embedding
from ...ir.ops.linear import Linear
from ...ir.ops.quantize import Dequantize, FakeQuantizePerToken
from ...specs.options import Gptq, WeightOnlyOptions
from ..base import Context, PassResult, register
from ..errors import PassError
from ..report import Cell, Decision, PassReport, Table
from .bit_widths import Candidate, choose_widths
from .gptq import input_hessians, quantize_by_gptq
from .groupwise import encode_groupwise, nearest_group_size, quantize_groupwise
from .stored_weights import FLOAT_BITS, OPEN_BITS, StoredWeight, find_weights, kept_decisions

_SCALES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_COLUMNS = ("weight", "bits", "group", "bytes_before", "bytes_after", "relative_error")


@dataclass(frozen=True, slots=True)
class _Coded:
    """The integers of a weight and their encoding."""

    integers: Entry
    encoding: Encoding


@register(WeightOnlyOptions)
def weight_only(graph: Graph, options: WeightOnlyOptions, context: Context) -> PassResult:
    """Integer weights for a float graph; PassError if no linear layer or embedding has a constant one."""
    weights = find_weights(graph, options, context)
    if not weights:
        raise PassError(
            "there is no linear layer or embedding, and no matrix product, with a weight of its own of float32, "
            "bfloat16 or float16"
        )
    found, tables, notes = _with_widths(graph, weights, options, context)
    hessians = _hessians(graph, found, options, context)
    decisions, rows, coded = list[Decision](), list[tuple[Cell, ...]](), dict[str, _Coded]()
    for name, stored in found.items():
        before = stored.value.type.storage_bytes
        if stored.bits == FLOAT_BITS:
            reason = f"stays float, {before:,} bytes: the spec keeps it"
            decisions.append(Decision("weight_only", name, stored.source, False, reason))
            continue
        size = nearest_group_size(stored.value.type.shape[-1], options.group_size)
        coded[name], error = _rounded(graph, stored, options, hessians.get(name))
        after = _stored_bytes(stored.value, coded[name].encoding)
        rows.append((name, stored.bits, size, before, after, error))
        scales = str(coded[name].encoding.scale.dtype.torch).removeprefix("torch.")
        text = f"int{stored.bits}, a scale of {scales} for {size} weights"
        decisions.append(Decision("weight_only", name, stored.source, True, text))
    decisions += kept_decisions(graph, found)
    rewritten = _rewritten(graph, found, coded, rounds_inputs=options.activations == "int8")
    tables = (Table("weights", _COLUMNS, tuple(rows)), _summary(graph, found, coded), *tables)
    notes = (*notes, *_input_notes(rewritten), *_product_notes(rewritten, coded))
    return PassResult(rewritten, PassReport("weight_only", tuple(decisions), tables, notes))


def _with_widths(
    graph: Graph, found: Mapping[str, StoredWeight], options: WeightOnlyOptions, context: Context
) -> tuple[Mapping[str, StoredWeight], tuple[Table, ...], tuple[str, ...]]:
    """The weights with the widths that the budget gives them, the table of losses, and what was reached."""
    if options.budget is None:
        return found, (), ()
    candidates = {
        name: [_candidate(graph, stored, bits, options) for bits in sorted(options.widths)]
        for name, stored in found.items()
        if stored.bits == OPEN_BITS
    }
    samples = context.calibration[: options.budget.samples]
    widths = choose_widths(graph, candidates, options.budget, samples, progress=context.progress)
    note = f"widths: {widths.bytes:,} bytes, predicted loss {widths.loss:.3g}"
    chosen = {name: replace(s, bits=widths.bits.get(name, s.bits)) for name, s in found.items()}
    return chosen, (widths.table,), (note,)


def _candidate(graph: Graph, stored: StoredWeight, bits: int, options: WeightOnlyOptions) -> Candidate:
    weight = graph.tensor(stored.value)
    integers, encoding = _nearest(weight, bits, options)
    return Candidate(bits, _stored_bytes(stored.value, encoding), weight, integers, encoding)


def _hessians(
    graph: Graph, found: Mapping[str, StoredWeight], options: WeightOnlyOptions, context: Context
) -> dict[str, Tensor]:
    if not isinstance(options.rounding, Gptq):
        return {}
    names = [name for name, stored in found.items() if stored.bits != FLOAT_BITS]
    samples = context.calibration[: options.rounding.samples]
    return input_hessians(graph, names, samples, progress=context.progress)


def _rounded(
    graph: Graph, stored: StoredWeight, options: WeightOnlyOptions, hessian: Tensor | None
) -> tuple[_Coded, float]:
    """A weight as integers, and their error relative to the weight.

    The integers of a lazy weight that are rounded to nearest are lazy, too: made again from it at each use.
    """
    entry, bits = graph.params.entry(stored.value.name), stored.bits
    weight = entry if isinstance(entry, Tensor) else entry.read()
    if hessian is not None and isinstance(options.rounding, Gptq):
        integers, encoding = quantize_by_gptq(
            weight,
            hessian,
            bits=bits,
            group_size=_group_size(weight, options),
            damping=options.rounding.damping,
            observer=options.observer,
            dtype=_SCALES[options.scales],
        )
    else:
        integers, encoding = _nearest(weight, bits, options)
    difference = encoding.dequantize(integers).sub_(weight)
    error = float(difference.norm() / weight.float().norm().clamp(min=1e-30))
    if isinstance(entry, Tensor) or hessian is not None:
        return _Coded(integers, encoding), error
    dtype = encoding.container.torch
    lazy = LazyTensor(tuple(weight.shape), dtype, lambda: encode_groupwise(entry.read(), encoding))
    return _Coded(lazy, encoding), error


def _nearest(weight: Tensor, bits: int, options: WeightOnlyOptions) -> tuple[Tensor, Encoding]:
    return quantize_groupwise(
        weight,
        bits=bits,
        group_size=_group_size(weight, options),
        observer=options.observer,
        dtype=_SCALES[options.scales],
    )


def _group_size(weight: Tensor, options: WeightOnlyOptions) -> int | None:
    """The size of groups; None where one scale serves a row of a matrix."""
    size = nearest_group_size(weight.shape[-1], options.group_size)
    return None if weight.ndim == 2 and size == weight.shape[1] else size


def _rewritten(
    graph: Graph, found: Mapping[str, StoredWeight], coded: Mapping[str, _Coded], *, rounds_inputs: bool
) -> Graph:
    """The graph with a `dequantize` of integers for each weight, and rounded inputs of linear layers."""
    real: dict[str, Value] = {}
    rounded: dict[str, Value] = {}

    def visit(builder: Builder, node: Node, operands: tuple[Value | None, ...]) -> tuple[Value, ...] | None:
        for name in (v.name for v in node.operands if v.name in coded and v.name not in real):
            builder.release(name)
            constant = builder.constant(name, coded[name].integers, quantization=coded[name].encoding)
            source, dtype = found[name].source, found[name].value.type.dtype
            real[name] = builder.add(Dequantize(), constant, source=source)
            if dtype is not DType.F32:
                real[name] = builder.add(Cast(dtype.value), real[name], source=source)
        kept = [old and real.get(old.name, new) for old, new in zip(node.inputs, operands, strict=True)]
        if rounds_inputs and isinstance(node.op, Linear) and node.operand("weight").name in coded:
            x = node.op.operand(kept, "x")
            if x.name not in rounded:
                rounded[x.name] = builder.add(FakeQuantizePerToken(), x, source=node.source)
            kept[node.op.operand_names.index("x")] = rounded[x.name]
        return builder.keep(node, kept)

    return rewrite(graph, visit)


def _input_notes(graph: Graph) -> tuple[str, ...]:
    """The loss of precision beside that of weights."""
    rounded = {node.output.name for node in graph.nodes if isinstance(node.op, FakeQuantizePerToken)}
    layers = sum(isinstance(n.op, Linear) and n.operand("x").name in rounded for n in graph.nodes)
    if not layers:
        return ()
    return (
        f"inputs of {layers} linear layer{'s' * (layers > 1)} are rounded to int8 at run time, with a scale for each "
        "token; `activations: float32` keeps them as they are, and is slower",
    )


def _product_notes(graph: Graph, coded: Mapping[str, _Coded]) -> tuple[str, ...]:
    """Weights whose reals are made anew in each call, because no kernel multiplies with their integers."""
    slow = []
    for node in graph.nodes:
        if isinstance(node.op, Dequantize) and node.operand("x").name in coded:
            readers = graph.users.get(node.output.name, ())
            if not all(
                isinstance(r.op, Linear | Embedding) and r.operand("weight") == node.output for r in readers
            ):
                slow.append(node.operand("x").name)
    if not slow:
        return ()
    shown = ", ".join(slow[:3]) + (f" and {len(slow) - 3} more" if len(slow) > 3 else "")
    return (
        f"{shown}: read by other operators than linear layers and embeddings, and dequantized in each call; write the "
        "product as a linear layer where it has to be fast",
    )


def _stored_bytes(value: Value, encoding: Encoding) -> int:
    return value.type.quantized(encoding).storage_bytes + encoding.parameter_bytes


def _summary(graph: Graph, found: Mapping[str, StoredWeight], coded: Mapping[str, _Coded]) -> Table:
    constants = sum(v.type.storage_bytes for v in graph.constants if v.type.dtype.is_floating)
    before = sum(found[name].value.type.storage_bytes for name in coded)
    after = sum(_stored_bytes(found[name].value, c.encoding) for name, c in coded.items())
    figures: tuple[tuple[str, Cell], ...] = (
        ("weight_bytes_before", before),
        ("weight_bytes_after", after),
        ("constant_bytes_before", constants),
        ("constant_bytes_after", constants - before + after),
    )
    return Table("summary", ("figure", "value"), figures)
