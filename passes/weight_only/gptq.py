"""Calibrated rounding of a weight matrix, column by column, against the layer's output error.

GPTQ (Frantar et al., ICLR 2023). For inputs x with H = sum x^T x, the error of a rounded column is compensated in the
remaining columns, such that x W^T changes least:

    e = (w_c - round(w_c)) / U[c, c],   w_d -= e U[c, d] for d > c,   U^T U = (H + damping * mean(diag H) * I)^-1

Blocks of columns are updated together. The scales of a group are fitted to its weights after the updates so far,
unless columns are processed in the order of their activations, which mixes groups. With `sequential` the inputs of a
layer are the outputs of the already rounded layers. Samples pass through the network block by block. Scales that are
stored as codes depend on each other: columns are rounded again with the stored scales.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from ...ir import Encoding, Graph, Numbers
from ...ir.ops.linear import Linear
from ...specs.options import Gptq
from ..calibration.block_replay import BlockReplay
from ..calibration.calibrate import Batch
from ..calibration.input_statistics import InputStatistics, inverse_factor, statistics_of_block
from ..network_blocks import split_blocks
from ..workers import make_shards
from .groupwise import choose_scales, fitting_dtype
from .rounding_methods import Coded, Rounded, RoundingTask, nearest_weight, rounding_method

_BLOCK = 128


@rounding_method(Gptq)
def round_by_gptq(task: RoundingTask, options: Gptq) -> Rounded:
    """Weights of linear layers rounded for their outputs in the float graph on the samples; others rounded to
    nearest.
    """
    samples = task.samples[: options.samples]
    coded = _in_sequence(task, options, samples) if options.sequential else _rounded(task, options, samples)
    coded |= {name: nearest_weight(task, task.graph, name) for name in task.weights if name not in coded}
    return Rounded(task.graph, {name: coded[name] for name in task.weights})


def _rounded(task: RoundingTask, options: Gptq, samples: Sequence[Batch]) -> dict[str, Coded]:
    """Weights of linear layers, for the inputs in the float graph."""
    coded: dict[str, Coded] = {}
    for inputs in task.inputs_by_block(samples):
        coded |= {name: _coded(task, options, name, found) for name, found in inputs.items()}
    return coded


def _in_sequence(task: RoundingTask, options: Gptq, samples: Sequence[Batch]) -> dict[str, Coded]:
    """Weights of linear layers, for the inputs from already rounded layers.

    A weight that several blocks read is rounded before them, for the inputs in the float graph.
    """
    blocks = Counter(
        name for part in split_blocks(task.graph, task.weights) for name in part.params.keys() & task.weights
    )
    shared = {name: task.weights[name] for name, count in blocks.items() if count > 1}
    coded = _rounded(replace(task, weights=shared), options, samples) if shared else {}
    graph = task.graph.with_params(_reals(task, coded))
    replay, context = BlockReplay(graph, task.weights, samples), task.context
    for given in replay.blocks():
        block = given
        for names in _by_input(given, task.weights.keys() - coded):
            found = statistics_of_block(
                replay, block, names, workers=context.workers, progress=context.progress
            )
            new = {name: _coded(task, options, name, inputs) for name, inputs in found.items()}
            block, coded = block.with_params(_reals(task, new)), coded | new
        context.workers.map(make_shards(replay.count), partial(_advance, replay, block), lambda done: None)
    return coded


def _reals(task: RoundingTask, coded: Mapping[str, Coded]) -> dict[str, Tensor]:
    return {name: found.reals(task.weights[name].value.type.dtype.torch) for name, found in coded.items()}


def _advance(replay: BlockReplay, block: Graph, shard: range) -> None:
    for index in shard:
        replay.run(block, index)


def _coded(task: RoundingTask, options: Gptq, name: str, inputs: InputStatistics) -> Coded:
    weight = task.graph.params[name]
    quantize = partial(
        quantize_by_gptq,
        weight,
        inputs.hessian,
        bits=task.weights[name].bits,
        group_size=task.group_size(weight.shape),
        damping=options.damping,
        by_activation=options.activation_order,
        observer=task.options.observer,
        dtype=task.scales,
    )
    integers, encoding = quantize()
    stored = task.with_stored_scales(encoding)
    if stored is not encoding:
        integers, stored = quantize(given=stored.scale)
    return Coded.of(weight, integers, stored, in_file=task.is_lazy(name))


def _by_input(graph: Graph, weights: Collection[str]) -> list[list[str]]:
    """The weights of linear layers in the order in which they are read, grouped by the value that they read first."""
    groups: dict[str, list[str]] = {}
    seen: set[str] = set()
    for node in graph.nodes:
        if (
            isinstance(node.op, Linear)
            and (name := node.operand("weight").name) in weights
            and name not in seen
        ):
            seen.add(name)
            groups.setdefault(node.operand("x").name, []).append(name)
    return [*groups.values()]


def quantize_by_gptq(
    weight: Tensor,
    hessian: Tensor,
    *,
    bits: int,
    group_size: int | None,
    damping: float = 0.01,
    by_activation: bool = False,
    observer: Literal["minmax", "mse"] = "mse",
    dtype: torch.dtype = torch.float16,
    given: Numbers[float] | None = None,
) -> tuple[Tensor, Encoding]:
    """Integers of `weight` [out, in] and their encoding, for inputs of `hessian` [in, in] = sum x^T x.

    `by_activation`: columns in descending order of the diagonal of H; scales are then those of the original weights.
    `given` scales are not fitted.
    """
    rows, inputs = weight.shape
    size = group_size or inputs
    dtype = fitting_dtype(weight.reshape(-1, size), bits, dtype)
    order = torch.arange(inputs)
    scales = torch.empty(inputs // size, rows)
    if given is not None:
        scales = given.tensor(torch.float32).view(rows, -1).T
    if by_activation:
        order = hessian.diagonal().argsort(descending=True, stable=True)
    is_fitted = not by_activation and given is None  # group by group, during the rounding of columns
    if by_activation and given is None:
        scales = choose_scales(weight.reshape(-1, size).float(), bits, observer, dtype).view(rows, -1).T
    factor = inverse_factor(hessian[order][:, order], damping)
    columns = weight.float().T[order]  # a column of the weight is a row here
    integers = torch.empty_like(columns)
    half = 1 << (bits - 1)
    block = size * max(1, _BLOCK // size)
    for start in range(0, inputs, block):
        stop = min(start + block, inputs)
        errors = torch.empty(stop - start, rows)
        for column in range(start, stop):
            if column % size == 0 and is_fitted:
                group = columns[column : column + size].T.contiguous()
                scales[column // size] = choose_scales(group, bits, observer, dtype)
            scale, row = scales[int(order[column]) // size], columns[column]
            integers[order[column]] = (row / scale).round_().clamp_(-half, half - 1)
            error = (row - integers[order[column]] * scale) / factor[column, column]
            columns[column + 1 : stop].addr_(factor[column, column + 1 : stop], error, alpha=-1)
            errors[column - start] = error
        columns[stop:].addmm_(factor[start:stop, stop:].T, errors, alpha=-1)
    stored = Numbers.of_reals(scales.T.reshape(-1).to(dtype)) if given is None else given
    encoding = Encoding(stored, bits=bits, axis=0, group_size=group_size)
    return integers.T.contiguous().to(encoding.container.torch), encoding
