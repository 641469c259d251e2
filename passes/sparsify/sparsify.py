"""The pass `sparsify`: sets single weights to zero; later training keeps the zeros.

Zeros are the smallest weights of a layer or of all layers (Han et al., 2015), the smallest blocks of consecutive
weights along the input channels, or all but N of M consecutive weights (2:4, Mishra et al., 2021); by magnitude, or for
the loss, or for the outputs of linear layers (`criteria.py`). In several steps the sparsity s increases as

    s_t = s * (1 - (1 - t / steps)^3)                       Zhu and Gupta, 2017

with training in between; or the zeros are chosen anew in each step of one training (`sparse_trainable.py`). Weights
stay dense tensors; C kernels skip blocks of zeros, and zeros that are stored as Huffman codes.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ...ir import Graph, Node, Value, element_bytes
from ...ir.ops.conv import ConvTranspose
from ...specs.options import SparsifyOptions
from ..base import Context, PassResult, register
from ..calibration.input_statistics import InputStatistics, collect_inputs
from ..errors import MissingNeedError, PassError
from ..report import Cell, Decision, PassReport, Table
from ..training import OptimizerState, Trained, train
from ..training.trainable import FloatTrainable, trainable_constants
from ..weighted_layers import constants_read, is_layer
from .blocks import blocks_of
from .criteria import (
    mask_pattern,
    mask_smallest,
    mask_smallest_of_all,
    sparse_by_sparsegpt,
    sparse_by_wanda,
    taylor_scores,
)
from .sparse_trainable import SparseTrainable

Weights = Mapping[str, tuple[Node, Value]]
_NOTE = (
    "weights stay dense: cycles are unchanged, compressed files are smaller, and so is the flash of C with "
    "`weights: huffman`, whose linear layers skip zeros"
)
_NOTE_OF_BLOCKS = (
    "weights stay dense: C for microcontrollers skips blocks of zeros where that is faster (`fxpress plan` shows the "
    "kernel `block_sparse`), and then stores the other blocks only; elsewhere compressed files are smaller"
)


@register(SparsifyOptions)
def sparsify(graph: Graph, options: SparsifyOptions, context: Context) -> PassResult:
    """Zeroes weights of layers; PassError if there are none."""
    for asks, what in (
        (options.finetune is not None, "fine-tuning between steps"),
        (options.criterion != "magnitude", f"the criterion `{options.criterion}`"),
    ):
        if asks and not context.calibration:
            raise MissingNeedError(what, "calibration")
    weights = _weights(graph, options, context)
    if not weights:
        raise PassError("there are no float weights to sparsify")
    if options.schedule != "cubic":
        trained = _trained_sparse(graph, options, weights, context)
        reached = [float(row[2]) for row in trained.rows]
        row = (1, _zeros(trained.graph, weights), reached[0], min(reached))
        return PassResult(trained.graph, _report(graph, trained.graph, weights, options, {}, [row]))
    result, state, rows = graph, OptimizerState(), list[tuple[Cell, ...]]()
    first: Mapping[str, InputStatistics] = {}
    for step in range(1, options.steps + 1):
        share = (options.sparsity or 0.0) * sparsity_at(step, options.steps)
        inputs = _inputs(result, options, weights, context)
        first = first or inputs
        result = _masked(result, options, weights, share, inputs, context)
        losses: list[float] = []
        if options.finetune is not None:
            training = options.finetune.of_step(step, options.steps).model_copy(update={"keep_zeros": True})
            trained = train(result, training, context, state=state)
            result, state = trained.graph, trained.state
            losses = [float(row[2]) for row in trained.rows]
        rows.append((step, _zeros(result, weights), losses[0] if losses else None, min(losses, default=None)))
    return PassResult(result, _report(graph, result, weights, options, first, rows))


def sparsity_at(step: int, steps: int) -> float:
    """The share of the final sparsity that is reached after a step, counted from 1."""
    return 1.0 - (1.0 - step / steps) ** 3


def _trained_sparse(graph: Graph, options: SparsifyOptions, weights: Weights, context: Context) -> Trained:
    """The graph trained with zeros that change in each step."""
    assert options.finetune is not None and options.schedule != "cubic"
    names = tuple(value.name for value in trainable_constants(graph, options.finetune, context))
    sparse = {
        name: blocks_of(graph, node, options.block)
        for name, (node, value) in weights.items()
        if name in names and not _misfit(node, value, options)
    }
    if not sparse:
        raise PassError("there are no float weights to sparsify")
    form = SparseTrainable(
        FloatTrainable(graph, names, keep_zeros=False),
        sparse,
        options.schedule,
        options.sparsity or 0.0,
        options.scope or "global",
        options.kept_of,
    )
    asked = options.model_dump_json(exclude={"finetune"})
    return train(graph, options.finetune, context, trainable=form, at=form.at, identity=asked)


@dataclass(frozen=True)
class _Size:
    """Size of a weight in bytes, raw and compressed by zlib."""

    dense: int
    compressed: int

    @staticmethod
    def of(tensor: Tensor) -> _Size:
        data = element_bytes(tensor)
        return _Size(len(data), len(zlib.compress(data, 9)))


def _weights(graph: Graph, options: SparsifyOptions, context: Context) -> Weights:
    """Float weights of layers that are not kept, by name, with the first layer that reads each."""
    return constants_read(graph, _float_weight, lambda source: context.selects_any(options.keep, source))


def _float_weight(node: Node) -> tuple[Value, ...]:
    if not is_layer(node.op):
        return ()
    weight = node.operand("weight")
    return (weight,) if weight.type.dtype.is_floating else ()


def _misfit(node: Node, value: Value, options: SparsifyOptions) -> str:
    """Reason why the pattern does not apply to a weight, or empty."""
    channels = value.type.shape[1]
    if options.kept_of is not None and channels % options.kept_of[1]:
        return f"its {channels} input channels do not divide in groups of {options.pattern}"
    if options.block > 1 and isinstance(node.op, ConvTranspose):
        return "blocks are for linear layers and convolutions that are not transposed"
    if channels < options.block:
        return f"its {channels} input channels are fewer than a block of {options.block}"
    return ""


def _inputs(
    graph: Graph, options: SparsifyOptions, weights: Weights, context: Context
) -> dict[str, InputStatistics]:
    """Statistics of the inputs of linear layers, if the criterion needs them."""
    if not options.by_layer_outputs:
        return {}
    fitting = [name for name, read in weights.items() if not _misfit(*read, options)]
    samples = context.calibration
    return collect_inputs(graph, fitting, samples, workers=context.workers, progress=context.progress)


def _masked(
    graph: Graph,
    options: SparsifyOptions,
    weights: Weights,
    share: float,
    inputs: Mapping[str, InputStatistics],
    context: Context,
) -> Graph:
    """The graph with zeros; existing zeros count among them."""
    tensors = {name: graph.params[name] for name, read in weights.items() if not _misfit(*read, options)}
    if not tensors:
        return graph
    blocks = {name: blocks_of(graph, weights[name][0], options.block) for name in tensors}
    by_output = sparse_by_wanda if options.criterion == "wanda" else sparse_by_sparsegpt
    changed = {
        name: by_output(tensors.pop(name), found.hessian, share, options.kept_of, blocks=blocks[name])
        for name, found in inputs.items()
    }
    single = taylor_scores(graph, [*tensors], context) if options.criterion == "taylor" else tensors
    scores = {name: blocks[name].scores(score) for name, score in single.items()}
    if options.kept_of is not None:
        masks = {name: mask_pattern(score, *options.kept_of) for name, score in scores.items()}
    elif options.scope == "layer" or options.by_layer_outputs:
        masks = {name: mask_smallest(score, share) for name, score in scores.items()}
    else:
        masks = mask_smallest_of_all(scores, share)
    zero = {
        name: torch.where(blocks[name].mask(masks[name], tensor.shape[1]), tensor, 0.0)
        for name, tensor in tensors.items()
    }
    return graph.with_params(changed | zero)


def _output_error(before: Tensor, after: Tensor, hessian: Tensor) -> float | None:
    """Squared change of the output relative to its square; None for an output of zeros."""
    error, whole = (
        float(((w @ hessian) * w).sum()) for w in (before.double() - after.double(), before.double())
    )
    return error / whole if whole else None


def _zeros(graph: Graph, weights: Weights) -> float:
    """Share of zeros in the weights."""
    zeros = sum(int((graph.params[name] == 0).sum()) for name in weights)
    return zeros / sum(graph.params[name].numel() for name in weights)


def _report(
    before: Graph,
    after: Graph,
    weights: Weights,
    options: SparsifyOptions,
    inputs: Mapping[str, InputStatistics],
    steps: list[tuple[Cell, ...]],
) -> PassReport:
    decisions, rows = [], list[tuple[Cell, ...]]()
    for name, (node, value) in weights.items():
        tensor = after.params[name]
        old, new = _Size.of(before.params[name]), _Size.of(tensor)
        share = float((tensor == 0).float().mean())
        error = _output_error(before.params[name], tensor, inputs[name].hessian) if name in inputs else None
        rows.append((name, tensor.numel(), share, error, old.dense, old.compressed, new.compressed))
        reason = f"{100 * share:.1f} % of the weights are zero" + _zero_blocks(after, node, tensor, options)
        if options.by_layer_outputs and name not in inputs:
            reason += f", by magnitude: `{options.criterion}` needs the inputs of linear layers"
        misfit = _misfit(node, value, options)
        decisions.append(Decision("sparsify", name, node.source, not misfit, misfit or reason))
    columns = (
        "weight",
        "elements",
        "zeros",
        "output_error",
        "bytes",
        "compressed_bytes_before",
        "compressed_bytes_after",
    )
    stages = ("step", "zeros", "loss_before_training", "loss_after_training")
    tables = [Table("weights", columns, tuple(rows))]
    if options.steps > 1 or options.finetune is not None:
        tables.append(Table("steps", stages, tuple(steps)))
    fits = any(decision.applied for decision in decisions)
    if options.block > 1:
        note = _NOTE_OF_BLOCKS if fits else f"no layer has {options.block} input channels: all weights stay"
    elif fits:
        note = _NOTE
    else:
        note = f"no layer has input channels that divide in groups of {options.pattern}: all weights stay"
    return PassReport("sparsify", tuple(decisions), tuple(tables), (note,))


def _zero_blocks(graph: Graph, node: Node, tensor: Tensor, options: SparsifyOptions) -> str:
    """Share of the blocks of a weight that are zero, as text; empty without blocks."""
    if options.block == 1:
        return ""
    scores = blocks_of(graph, node, options.block).scores(tensor)
    return f", {100 * float((scores == 0).float().mean()):.1f} % of its blocks of {options.block}"
