"""The pass `weight_only`: weights of matrix products and embeddings as integers.

A weight becomes an integer constant and a `dequantize` that all its users read; a tied weight stays tied, and one of
half precision is cast back to it. Weights are the constants that linear layers, embeddings and matrix products read,
directly or after data movement (a transposed weight, the matrices of experts), of any rank. A group of consecutive
weights along the last dimension shares a scale. Rounding to nearest needs no calibration; other methods (`rounding`)
need samples. With a budget the bit width of each weight is chosen. The loss of the result is measured on samples that
are not used otherwise.

Inputs of linear layers with such a weight are rounded to int8, with a scale for each token, by a separate operator
(`fake_quantize_per_token`), which the torch backend computes inside the product.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from ...ir import Encoding, Graph, LazyTensor, Value
from ...ir.ops.convert import Cast
from ...ir.ops.embedding import Embedding
from ...ir.ops.linear import Linear
from ...ir.ops.quantize import Dequantize, FakeQuantizePerToken
from ...ir.packing import packed_bytes
from ...specs.options import WeightOnlyOptions
from ..base import Context, PassResult, register
from ..calibration.calibrate import Batch
from ..errors import PassError
from ..report import Cell, Decision, PassReport, Table
from .bit_widths import Candidate, choose_widths
from .divergence import Divergence
from .rounding_methods import Coded, RoundingTask, round_weights
from .stored_graph import store
from .stored_weights import FLOAT_BITS, OPEN_BITS, StoredWeight, find_weights, kept_decisions

_COLUMNS = ("weight", "bits", "group", "bytes_before", "bytes_after", "relative_error")
_SCALE_NAMES = {"double": "8 bits (double quantization)"}
_HELD_BACK = 8  # every eighth sample measures the result


@register(WeightOnlyOptions)
def weight_only(graph: Graph, options: WeightOnlyOptions, context: Context) -> PassResult:
    """Integer weights for a float graph; PassError if no linear layer or embedding has a constant one."""
    weights = find_weights(graph, options, context)
    if not weights:
        raise PassError(
            "no linear layer, embedding or matrix product has a constant weight of float32, bfloat16 or float16"
        )
    used, held_back = _samples(options, context)
    task = RoundingTask(graph, weights, used, options, context)
    found, tables, notes = _with_widths(task)
    rounded = {name: stored for name, stored in found.items() if stored.bits != FLOAT_BITS}
    result = round_weights(replace(task, weights=rounded), options.rounding)
    decisions, rows = list[Decision](), list[tuple[Cell, ...]]()
    for name, stored in found.items():
        before = stored.value.type.storage_bytes
        if name not in rounded:
            reason = f"stays float, {before:,} bytes: the spec keeps it"
            decisions.append(Decision("weight_only", name, stored.source, False, reason))
            continue
        coded = result.coded[name]
        size = task.group_size(stored.value.type.shape) or stored.value.type.shape[-1]
        rows.append(
            (name, stored.bits, size, before, _stored_bytes(stored.value, coded.encoding), coded.error)
        )
        kind, scales = stored.format or f"int{stored.bits}", coded.encoding.scale.form
        text = f"{kind}, a scale of {_SCALE_NAMES.get(scales, scales)} for {size} weights"
        decisions.append(Decision("weight_only", name, stored.source, True, text))
    decisions += [*kept_decisions(graph, found), *result.decisions]
    rewritten = store(result.graph, found, result.coded, rounds_inputs=options.activations == "int8")
    figures, reached = _divergence(graph, rewritten, held_back, context)
    summary = Table("summary", ("figure", "value"), (*_summary(graph, found, result.coded), *figures))
    tables = (Table("weights", _COLUMNS, tuple(rows)), summary, *tables, *result.tables)
    notes = (
        *notes,
        *result.notes,
        *reached,
        *_input_notes(rewritten),
        *_product_notes(rewritten, result.coded),
    )
    return PassResult(rewritten, PassReport("weight_only", tuple(decisions), tables, notes))


def _samples(options: WeightOnlyOptions, context: Context) -> tuple[Sequence[Batch], Sequence[Batch]]:
    """Samples for calibration, and others to measure the result; none if no option needs any."""
    if not any(options.needed()):
        return (), ()
    samples = context.calibration
    used = [sample for index, sample in enumerate(samples) if (index + 1) % _HELD_BACK]
    return used, samples[_HELD_BACK - 1 :: _HELD_BACK]


def _divergence(
    graph: Graph, stored: Graph, samples: Sequence[Batch], context: Context
) -> tuple[tuple[tuple[str, Cell], ...], tuple[str, ...]]:
    """Rows of the summary and a note with the divergence from the float graph; none without samples."""
    if not len(samples):
        return (), ()
    measure = Divergence.of(graph, states=context.state.values())
    reached = measure.mean(graph, stored, samples, progress=context.progress)
    note = (
        f"divergence from the float network on {len(samples)} held-back calibration samples: {reached:.3g} "
        f"{measure.unit}"
    )
    return (("divergence", reached), ("divergence_samples", len(samples))), (note,)


def _with_widths(
    task: RoundingTask,
) -> tuple[Mapping[str, StoredWeight], tuple[Table, ...], tuple[str, ...]]:
    """The weights with the widths chosen within the budget, the table of losses, and the reached figures."""
    options = task.options
    if options.budget is None:
        return task.weights, (), ()
    candidates = {
        name: [_candidate(task, stored, bits) for bits in sorted(options.widths)]
        for name, stored in task.weights.items()
        if stored.bits == OPEN_BITS
    }
    count = options.budget.samples
    samples = task.samples[:count]
    others = task.samples[count : 2 * count] or samples
    widths = choose_widths(
        task.graph,
        candidates,
        options.budget,
        samples,
        others,
        measure=Divergence.of(task.graph, states=task.context.state.values()),
        workers=task.context.workers,
        progress=task.context.progress,
    )
    note = (
        f"widths: {widths.bytes:,} bytes, predicted loss {widths.predicted:.3g}, of all weights together "
        f"{widths.measured:.3g}, rounded to nearest"
    )
    chosen = {name: replace(s, bits=widths.bits.get(name, s.bits)) for name, s in task.weights.items()}
    return chosen, widths.tables, (note,)


def _candidate(task: RoundingTask, stored: StoredWeight, bits: int) -> Candidate:
    entry = task.graph.params.entry(stored.value.name)
    shape, dtype = stored.value.type.shape, stored.value.type.dtype.torch

    def nearest() -> tuple[Tensor, Encoding]:
        return task.nearest(entry if isinstance(entry, Tensor) else entry.read(), bits)

    def reals() -> Tensor:
        codes, encoding = nearest()
        return encoding.dequantize(codes).to(dtype)

    return Candidate(bits, _stored_bytes(stored.value, nearest()[1]), LazyTensor(shape, dtype, reals))


def _input_notes(graph: Graph) -> tuple[str, ...]:
    """Note on the loss of precision in addition to that of weights."""
    rounded = {node.output.name for node in graph.nodes if isinstance(node.op, FakeQuantizePerToken)}
    layers = sum(isinstance(n.op, Linear) and n.operand("x").name in rounded for n in graph.nodes)
    if not layers:
        return ()
    return (
        f"inputs of {layers} linear layer{'s' * (layers > 1)} are rounded to int8 at run time, with a scale for each "
        "token; `activations: float32` does not round them, and is slower",
    )


def _product_notes(graph: Graph, coded: Mapping[str, Coded]) -> tuple[str, ...]:
    """Weights that are dequantized in each call, because no kernel multiplies with their integers."""
    slow = []
    for node in graph.nodes:
        if isinstance(node.op, Dequantize) and node.operand("x").name in coded:
            real, readers = node.output, graph.users.get(node.output.name, ())
            if len(readers) == 1 and isinstance(readers[0].op, Cast):
                real = readers[0].output
                readers = graph.users.get(real.name, ())
            if not all(isinstance(r.op, Linear | Embedding) and r.operand("weight") == real for r in readers):
                slow.append(node.operand("x").name)
    if not slow:
        return ()
    shown = ", ".join(slow[:3]) + (f" and {len(slow) - 3} more" if len(slow) > 3 else "")
    return (
        f"{shown}: read by other operators than linear layers and embeddings, and dequantized in each call; write "
        "the product as a linear layer if it must be fast",
    )


def _stored_bytes(value: Value, encoding: Encoding) -> int:
    """Bytes of codes and scales in the packed form, including the padding of its blocks."""
    return packed_bytes(value.type.quantized(encoding))


def _summary(
    graph: Graph, found: Mapping[str, StoredWeight], coded: Mapping[str, Coded]
) -> tuple[tuple[str, Cell], ...]:
    constants = sum(v.type.storage_bytes for v in graph.constants if v.type.dtype.is_floating)
    before = sum(found[name].value.type.storage_bytes for name in coded)
    after = sum(_stored_bytes(found[name].value, c.encoding) for name, c in coded.items())
    return (
        ("weight_bytes_before", before),
        ("weight_bytes_after", after),
        ("constant_bytes_before", constants),
        ("constant_bytes_after", constants - before + after),
    )
