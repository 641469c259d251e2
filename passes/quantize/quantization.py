"""The pass `quantize`: post-training quantization to integers, from calibration data.

    fold        arithmetic on the inputs of the network becomes part of its first layers (`first_layers`)
    recurrent   a recurrent layer becomes a node for each of its layers and directions (`recurrent_layers`)
    masks       an addend that only masks positions of a softmax becomes an operand of its own (`masks`)
    attention   products and softmax that compute an attention become that operator (`written_attention`)
    prepare     an unmerged batch norm becomes a depthwise convolution, activations become part of their producers
    plan        selection of the nodes that compute on integers (`quantization_plan`)
    calibrate   the float graph runs on the samples (`calibrate`)
    encodings   scale and zero point of each group of values that data movement joins (`activation_encodings`)
    lower       nodes are rebuilt on integers, with conversions between float and integers (`integer_lowering`)
    round       with `adaround`, weights are rounded again for the output of each layer (`weight_rounding`)

An operator without an integer form, or without one that is proven not to overflow, stays in float; the report
contains the operator and the reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ...ir import Graph, encode_codebooks
from ...specs.options import AdaRound, QuantizeOptions
from ..base import Context, PassResult, register
from ..calibration.calibrate import Batch, collect
from ..fuse.fuse_activation import FUSE_ACTIVATION
from ..masks import lift_masks
from ..pattern import apply_rules
from ..report import Decision, PassReport, Table, merged
from .activation_encodings import ActivationEncodings, choose_encodings
from .attention_scores import far_scores
from .codebook import shared_weights, storage_table
from .first_layers import fold_into_first_layers
from .integer_forms import DROP_HALF, INTEGER_FORMS
from .integer_lowering import Lowering
from .layer_precisions import Precisions
from .quantization_plan import Plan, make_plan
from .recurrent_layers import split_recurrent
from .value_roles import wide_ends
from .weight_rounding import learn_roundings
from .written_attention import fuse_written_attention

OUTLIERS = "outliers"
"""Table of the groups of values in which calibration found outliers."""


@register(QuantizeOptions)
def quantize(graph: Graph, options: QuantizeOptions, context: Context) -> PassResult:
    """The integer graph; its results are near those of the float graph on data like the calibration samples."""
    samples = context.calibration[: options.samples]
    precisions = Precisions(options, graph.precisions, context.selects)
    prepared = prepare(split_recurrent(graph, precisions.is_float), samples)
    plan = make_plan(
        prepared.graph,
        precisions.is_float,
        in_float=prepared.in_float,
        state=context.state,
        wide=wide_ends(prepared.graph, options),
    )
    if plan.observed.keys() <= context.statistics.keys():
        statistics = {name: context.statistics[name] for name in plan.observed}
    else:
        statistics = collect(prepared.graph, samples, plan.observed, progress=context.progress)
    encodings = choose_encodings(prepared.graph, plan, statistics, precisions, rests=prepared.rests)
    lowering = Lowering(prepared.graph, plan, encodings, options, precisions=precisions)
    quantized = lowering.graph()
    report = PassReport(
        "quantize",
        (*prepared.decisions, *lowering.decisions),
        (encodings.table, lowering.table(), *_outlier_table(encodings)),
        (*encodings.warnings, *_nothing_quantized(prepared.graph, plan)),
    )
    if options.codebook_bits is not None:
        report = merged("quantize", [report, PassReport("quantize", tables=(storage_table(quantized),))])
        quantized = encode_codebooks(quantized, shared_weights(quantized, bits=options.codebook_bits))
    if isinstance(options.rounding, AdaRound):
        quantized, rounding = learn_roundings(
            prepared.graph,
            quantized,
            samples,
            options.rounding,
            corrects_bias=options.bias_correction,
            progress=context.progress,
        )
        report = merged("quantize", [report, rounding])
    return PassResult(quantized, report)


def _nothing_quantized(graph: Graph, plan: Plan) -> Iterator[str]:
    """A note if no operator computes on integers, with the reason for most of the work."""
    if plan.computing or not plan.declined:
        return
    work = Counter[str]()
    for node in graph.nodes:
        name = node.outputs[0].name
        if name in plan.declined:
            work[plan.declined[name]] += max(node.macs, 1)
    ((reason, _),) = work.most_common(1)
    yield f"nothing was quantized; the reason for most of the work: {reason}"


def _outlier_table(encodings: ActivationEncodings) -> tuple[Table, ...]:
    return (
        (Table(OUTLIERS, ("group",), tuple((name,) for name in encodings.outliers)),)
        if encodings.outliers
        else ()
    )


@dataclass(frozen=True)
class Prepared:
    """A float graph whose nodes become integer nodes one by one, except those that `in_float` maps to a reason.

    `rests` are values that are often zero throughout.
    """

    graph: Graph
    in_float: Mapping[str, str]
    rests: frozenset[str]
    decisions: tuple[Decision, ...]


def prepare(graph: Graph, samples: Sequence[Batch]) -> Prepared:
    """The graph with masks as operands, and with batch norms and activations in their integer forms."""
    full, halves = apply_rules(graph, (DROP_HALF,))
    folded, first = fold_into_first_layers(full)
    masked = lift_masks(folded, samples)
    fused, attentions = fuse_written_attention(masked.graph)
    prepared, decisions = apply_rules(fused, (*INTEGER_FORMS, FUSE_ACTIVATION))
    applied = (d for d in (*halves, *decisions) if d.applied)
    in_float = dict.fromkeys(masked.in_float, "adds a mask, whose numbers no scale resolves beside others")
    in_float |= far_scores(prepared, samples)
    return Prepared(prepared, in_float, masked.rests, (*first, *masked.decisions, *attentions, *applied))
