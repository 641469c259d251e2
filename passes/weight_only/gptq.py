"""Calibrated rounding of a weight matrix, column by column, against the layer's output error.

GPTQ (Frantar et al., ICLR 2023). For inputs x with H = sum x^T x, the error of a rounded column is spread over the
columns that are still to come, in the way that keeps x W^T nearest:

    e = (w_c - round(w_c)) / U[c, c],   w_d -= e U[c, d] for d > c,   U^T U = (H + damping * mean(diag H) * I)^-1

Blocks of columns are updated at once. The scales of a group are fitted to its weights as they are by then.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ...ir import Encoding
from ...specs.options import Gptq
from ..errors import PassError
from .groupwise import choose_scales, fitting_dtype
from .rounding_methods import Coded, Rounded, RoundingTask, nearest_weight, rounding_method

_BLOCK = 128


@rounding_method(Gptq)
def round_by_gptq(task: RoundingTask, options: Gptq) -> Rounded:
    """Weights of linear layers for their outputs on the samples, as the float graph gives them; others to nearest."""
    samples = task.samples[: options.samples]
    inputs = task.inputs(samples)
    coded = {}
    for name, stored in task.weights.items():
        if name not in inputs:
            coded[name] = nearest_weight(task, task.graph, name)
            continue
        weight = task.graph.params[name]
        integers, encoding = quantize_by_gptq(
            weight,
            inputs[name].hessian,
            bits=stored.bits,
            group_size=task.group_size(weight.shape),
            damping=options.damping,
            observer=task.options.observer,
            dtype=task.scales,
        )
        coded[name] = Coded.of(weight, integers, encoding)
    return Rounded(task.graph, coded)


def quantize_by_gptq(
    weight: Tensor,
    hessian: Tensor,
    *,
    bits: int,
    group_size: int | None,
    damping: float = 0.01,
    observer: Literal["minmax", "mse"] = "mse",
    dtype: torch.dtype = torch.float16,
) -> tuple[Tensor, Encoding]:
    """Integers of `weight` [out, in] and their encoding, for inputs of `hessian` [in, in] = sum x^T x."""
    rows, inputs = weight.shape
    size = group_size or inputs
    dtype = fitting_dtype(weight.reshape(-1, size), bits, dtype)
    factor = _inverse_factor(hessian, damping)
    columns = weight.float().T.clone(
        memory_format=torch.contiguous_format
    )  # a column of the weight is a row here
    integers = torch.empty_like(columns)
    scales = torch.empty(inputs // size, rows)
    half = 1 << (bits - 1)
    block = size * max(1, _BLOCK // size)
    for start in range(0, inputs, block):
        stop = min(start + block, inputs)
        errors = torch.empty(stop - start, rows)
        for column in range(start, stop):
            if column % size == 0:
                group = columns[column : column + size].T.contiguous()
                scales[column // size] = choose_scales(group, bits, observer, dtype)
            scale, row = scales[column // size], columns[column]
            integers[column] = (row / scale).round_().clamp_(-half, half - 1)
            error = (row - integers[column] * scale) / factor[column, column]
            columns[column + 1 : stop].addr_(factor[column, column + 1 : stop], error, alpha=-1)
            errors[column - start] = error
        columns[stop:].addmm_(factor[start:stop, stop:].T, errors, alpha=-1)
    encoding = Encoding(scales.T.reshape(-1).to(dtype), bits=bits, axis=0, group_size=group_size)
    return integers.T.contiguous().to(encoding.container.torch), encoding


def _inverse_factor(hessian: Tensor, damping: float) -> Tensor:
    """The upper factor U of the damped inverse, as float32; inputs that are always zero count as uncorrelated."""
    damped = hessian.double().clone()
    diagonal = damped.diagonal()
    mean = diagonal.mean()
    diagonal += damping * mean if mean > 0 else 1.0
    try:
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
        factor: Tensor = torch.linalg.cholesky(inverse, upper=True)
    except RuntimeError as err:
        fact = "gptq: the inputs of a layer are too large or too alike to be inverted"
        raise PassError(f"{fact}; raise `damping`, or round this layer to nearest") from err
    return factor.float()
