"""Calibrated rounding of a weight matrix, column by column, against the layer's output error.

GPTQ (Frantar et al., ICLR 2023). For inputs x with H = sum x^T x, the error of a rounded column is spread over the
columns that are still to come, in the way that keeps x W^T nearest:

    e = (w_c - round(w_c)) / U[c, c],   w_d -= e U[c, d] for d > c,   U^T U = (H + damping * mean(diag H) * I)^-1

Blocks of columns are updated at once. The scales of a group are fitted to its weights as they are by then, unless
columns are taken in the order of their activations, which mixes groups. With `sequential` the inputs of a layer are
those that the layers rounded before it give; each then costs a run of the samples.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from ...ir import Encoding
from ...specs.options import Gptq
from ..calibration.input_statistics import InputStatistics, inverse_factor
from .groupwise import choose_scales, fitting_dtype
from .rounding_methods import Coded, Rounded, RoundingTask, nearest_weight, rounding_method

_BLOCK = 128


@rounding_method(Gptq)
def round_by_gptq(task: RoundingTask, options: Gptq) -> Rounded:
    """Weights of linear layers for their outputs on the samples, as the float graph gives them; others to nearest."""
    samples = task.samples[: options.samples]
    if not options.sequential:
        inputs = task.inputs(samples)
        return Rounded(task.graph, {name: _rounded(task, options, name, inputs) for name in task.weights})
    coded: dict[str, Coded] = {}
    graph = task.graph
    for names in _by_input(task):
        found = replace(task, graph=graph, weights={name: task.weights[name] for name in names}).inputs(
            samples
        )
        coded |= {name: _rounded(task, options, name, found) for name in names}
        graph = graph.with_params({name: coded[name].reals(task.graph.params[name].dtype) for name in names})
    return Rounded(task.graph, {name: coded[name] for name in task.weights})


def _rounded(task: RoundingTask, options: Gptq, name: str, inputs: Mapping[str, InputStatistics]) -> Coded:
    if name not in inputs:
        return nearest_weight(task, task.graph, name)
    weight = task.graph.params[name]
    integers, encoding = quantize_by_gptq(
        weight,
        inputs[name].hessian,
        bits=task.weights[name].bits,
        group_size=task.group_size(weight.shape),
        damping=options.damping,
        by_activation=options.activation_order,
        observer=task.options.observer,
        dtype=task.scales,
    )
    return Coded.of(weight, integers, encoding, in_file=task.is_lazy(name))


def _by_input(task: RoundingTask) -> list[list[str]]:
    """The weights in the order in which they are read, those that first read the same value together."""
    groups: dict[str, list[str]] = {}
    seen: set[str] = set()
    for node in task.graph.nodes:
        for name in (v.name for v in node.operands if v.name in task.weights and v.name not in seen):
            seen.add(name)
            groups.setdefault(node.operands[0].name, []).append(name)
    moved = [name for name in task.weights if name not in seen]  # read after moves
    return [*groups.values(), *([moved] if moved else [])]


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
) -> tuple[Tensor, Encoding]:
    """Integers of `weight` [out, in] and their encoding, for inputs of `hessian` [in, in] = sum x^T x.

    `by_activation`: columns in the order of falling diagonal of H; scales are then those of the weights as they are.
    """
    rows, inputs = weight.shape
    size = group_size or inputs
    dtype = fitting_dtype(weight.reshape(-1, size), bits, dtype)
    order = torch.arange(inputs)
    scales = torch.empty(inputs // size, rows)
    if by_activation:
        order = hessian.diagonal().argsort(descending=True, stable=True)
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
            if column % size == 0 and not by_activation:
                group = columns[column : column + size].T.contiguous()
                scales[column // size] = choose_scales(group, bits, observer, dtype)
            scale, row = scales[int(order[column]) // size], columns[column]
            integers[order[column]] = (row / scale).round_().clamp_(-half, half - 1)
            error = (row - integers[order[column]] * scale) / factor[column, column]
            columns[column + 1 : stop].addr_(factor[column, column + 1 : stop], error, alpha=-1)
            errors[column - start] = error
        columns[stop:].addmm_(factor[start:stop, stop:].T, errors, alpha=-1)
    encoding = Encoding(scales.T.reshape(-1).to(dtype), bits=bits, axis=0, group_size=group_size)
    return integers.T.contiguous().to(encoding.container.torch), encoding
